"""What a busy neighbour costs: times of an operator alone on the machine, and beside a process that keeps a core busy.

A call that shares its work over every core ends with the slowest of them, so a core that somebody else wants as well
makes it slower, and its slowest calls more than the others. What PyTorch's own functions lose in the same rounds is the
measure for that: cross-entropy for losses, softmax for everything else.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.results import Record, environment
from bench.speed import peers, tables
from bench.speed.cases import Case
from bench.speed.contender import CROSS_ENTROPY, OURS
from bench.speed.measure import Effort, key
from bench.style import markdown

NEIGHBOUR = Path(__file__).with_name("neighbour.py")
CONDITIONS = {"alone": b"w", "beside": b"s"}
_PATIENCE = 10.0  # seconds for the neighbour to end
_SETTLING = 0.01  # seconds after the neighbour began or paused
_NOTES = """Seconds of single calls, forward + backward of losses, forward of all else; alone, and beside a process that
keeps one core busy. Growth: time beside it / time alone, of the median and of the 90th percentile."""


class Neighbour:
    """A process that is busy while it is told to be; it ends with this one, whatever ends this one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def be(self, command: bytes) -> None:
        """Let it spin (b"s") or wait (b"w"), and return when it does."""
        pipe, answers = self.process.stdin, self.process.stdout
        assert pipe is not None
        assert answers is not None
        pipe.write(command)
        if answers.read(1) != command:
            raise RuntimeError("the busy neighbour has ended")
        time.sleep(_SETTLING)


@contextlib.contextmanager
def neighbour() -> Iterator[Neighbour]:
    """Within, there is a neighbour, which waits."""
    command = [sys.executable, "-I", str(NEIGHBOUR)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        try:
            yield Neighbour(process)
        finally:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
            process.kill()


def measure(case: Case, effort: Effort) -> Record:
    """Measure a case and return its record.

    Args:
        case: what is called.
        effort: rounds, and seconds that each function is called for in each condition, in all rounds together.

    Returns:
        The case, the effort and the environment; `systems`, by name: `alone` and `beside`, the seconds of a call with
        `median`, `p90` and number of `samples`.
    """
    x, v, classes = case.draw()
    functions: dict[str, Callable[[], Any]] = {}
    loss = case.operation == "loss"
    field = peers.FIELDS[case.operation] | ({} if loss else {tables.SOFTMAX: peers.CONTENDERS[tables.SOFTMAX]})
    for name in (OURS, CROSS_ENTROPY if loss else tables.SOFTMAX):
        prepared = field[name].prepare(case, x, v, classes)
        functions[name] = prepared.both if loss else prepared.forward
    with neighbour() as beside:
        samples = _alternate(functions, effort, beside)
    return {
        **key(case, effort),
        "date": environment(torch.device(case.device))["date"],
        "systems": {
            name: {condition: _summarise(samples[name, condition]) for condition in CONDITIONS} for name in functions
        },
    }


def _alternate(
    functions: dict[str, Callable[[], Any]], effort: Effort, beside: Neighbour
) -> dict[tuple[str, str], list[float]]:
    """Call every function in both conditions in every round, in a random order."""
    samples: dict[tuple[str, str], list[float]] = {pair: [] for pair in itertools.product(functions, CONDITIONS)}
    conditions, names = list(CONDITIONS), list(functions)
    shuffle = random.Random(0).shuffle
    for _ in range(effort.rounds):
        shuffle(conditions)
        for condition in conditions:
            beside.be(CONDITIONS[condition])
            shuffle(names)
            for name in names:
                samples[name, condition] += _times(functions[name], effort.seconds / effort.rounds)
    return samples


def _times(function: Callable[[], Any], seconds: float) -> list[float]:
    """Return the seconds of each call, of one or more after one that is not counted."""
    function()
    times: list[float] = []
    start = before = time.perf_counter()
    while not times or before - start < seconds:
        function()
        now = time.perf_counter()
        times.append(now - before)
        before = now
    return times


def _summarise(times: Sequence[float]) -> Record:
    median, p90 = np.quantile(times, (0.5, 0.9))
    return {"median": float(median), "p90": float(p90), "samples": len(times)}


def growth(system: Record) -> tuple[float, float]:
    """Return the time beside the neighbour by that alone, of the median and of the 90th percentile."""
    median, p90 = (system["beside"][point] / system["alone"][point] for point in ("median", "p90"))
    return median, p90


def table(records: Sequence[Record]) -> str:
    """Return where the records were taken, and a table of them."""
    rows = []
    for record in records:
        (_, ours), (their_name, theirs) = record["systems"].items()
        times = [
            f"{tables.seconds(ours[condition]['median'])} / {tables.seconds(ours[condition]['p90'])}"
            for condition in CONDITIONS
        ]
        growths = [" / ".join(map(tables.three, growth(system))) for system in (ours, theirs)]
        less = [a <= b for a, b in zip(growth(ours), growth(theirs), strict=True)]
        verdict = " / ".join("yes" if met else "no" for met in less)
        rows.append([_label(Case(**record["case"])), *times, growths[0], their_name, growths[1], verdict])
    header = ["median / p90", "alone", "beside", "growth", "counterpart", "its growth", "at most its"]
    return "\n\n".join([tables.origin(records), _NOTES, markdown(header, rows)])


def _label(case: Case) -> str:
    return f"projection, {case.label}" if case.operation == "projection" else case.label
