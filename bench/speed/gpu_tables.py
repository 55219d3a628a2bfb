"""The results of a GPU as Markdown tables: shares of a copy's speed, ratios to other functions, targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.results import Record
from bench.speed.cases import Case
from bench.speed.contender import COPY, CROSS_ENTROPY, OURS
from bench.speed.peers import THREAD_PER_ROW
from bench.speed.tables import SOFTMAX, comparison, of_group, seconds, three
from bench.style import markdown

_DIRECTIONS = {"forward": "forward", "both": "forward + backward"}
_NOTES = """Times of the device, between events, with the L2 cache emptied before each call: median [20th, 80th
percentile]; ratios: to hypersimplex_ext, median of those within the rounds. "As called" is what the caller waits for,
preparation by the host included, with data in the cache. Errors: largest against float64, of a gradient relative to its
largest entry, "-" where nothing can be compared; "another function" is there for scale.
Bandwidth counts what has to be moved: a projection reads x and writes y, its backward reads x and v and writes the
gradient; a loss reads logits and labels, its backward reads both and writes the gradient. Shares are of the bandwidth
of PyTorch's copy, of a large tensor and of one with these bytes."""


class Target(NamedTuple):
    """A speed that is aimed at, and the one that was reached; None where something was not measured."""

    what: str
    wanted: float
    at_least: bool
    reached: float | None

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        if self.reached is None:
            return False
        return self.reached >= self.wanted if self.at_least else self.reached <= self.wanted


def tables(records: Sequence[Record]) -> str:
    """Return every table of the records, one per case and all of one GPU."""
    moving = of_group(records, "gpu-rows", "gpu-loss")  # what is known to move a number of bytes
    parts = [_origin(records), _NOTES, _shares(moving), _targets(moving), *map(comparison, records)]
    return "\n\n".join(part for part in parts if part)


def bandwidth(record: Record, direction: str) -> float:
    """Return the bytes per second that this package moves, of those that have to be moved."""
    case = Case(**record["case"])
    labels = 8 * case.n
    moved = {
        ("projection", "forward"): 2 * case.bytes,
        ("projection", "both"): 5 * case.bytes,
        ("loss", "forward"): case.bytes + labels,
        ("loss", "both"): 3 * case.bytes + 2 * labels,
    }[case.operation, direction]
    return float(moved / record["systems"][OURS][direction]["median"])


def targets(record: Record) -> Iterator[Target]:
    """Return the targets that concern a case."""
    case = Case(**record["case"])
    size = (case.vectors, case.n)
    if case.operation == "projection" and size in {(16_384, 1024), (4096, 8192)}:
        share = bandwidth(record, "forward") / record["gpu"]["copy_bandwidth"]
        yield Target(f"{case.label}: forward, share of copy bandwidth", 0.8, True, share)
    if case.operation == "projection" and size == (10, 8192):
        faster = _ratio(record, THREAD_PER_ROW, "forward")
        yield Target(f"{case.label}: forward, times as fast as a thread per row", 100, True, faster)
    most = {(10, 8192): 1.2, (1000, 65_536): 1.0}.get(size)
    if case.operation == "loss" and most is not None:
        for direction, words in (("both", "on the device"), ("both_called", "as called")):
            theirs = _ratio(record, CROSS_ENTROPY, direction)
            label = f"{case.label}: forward + backward {words}, to cross-entropy's"
            yield Target(label, most, False, None if theirs is None else 1 / theirs)


def _ratio(record: Record, system: str, direction: str) -> float | None:
    """Return another's time as a multiple of this package's."""
    theirs = record["systems"].get(system, {}).get(direction)
    return None if theirs is None else float(theirs["ratio"])


def _number(value: float | None) -> str:
    return "-" if value is None else three(value)


def _origin(records: Sequence[Record]) -> str:
    last = records[-1]
    gpu, build = last["gpu"], last["build"]
    clocks = "clocks unknown"
    if gpu["sm_clock"] is not None:
        clocks = f"{gpu['sm_clock']:.0f} MHz, memory {gpu['memory_clock']:.0f} MHz while copying"
    return (
        f"{last['device']}, driver {last['driver']}, {clocks}; copies {gpu['copy_bandwidth'] / 1e12:.2f} TB/s, read "
        f"and written. {last['date'][:10]}. hypersimplex_ext {build['version']}, CUDA {build['cuda']} for "
        f"{', '.join(build['cuda_architectures'])}, build {build['digest']}; torch {last['torch']}, Python "
        f"{last['python']}."
    )


def _shares(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        large = record["gpu"]["copy_bandwidth"]
        for direction, words in _DIRECTIONS.items():
            ours, moved = record["systems"][OURS], bandwidth(record, direction)
            copy = record["systems"].get(COPY, {}).get("forward")
            same = None if copy is None else moved * copy["median"] / (2 * Case(**record["case"]).bytes)
            row = [f"{Case(**record['case']).label}, {words}", seconds(ours[direction]["median"])]
            row += [seconds(ours[f"{direction}_called"]["median"]), f"{moved / 1e9:.0f}"]
            row += [f"{100 * moved / large:.0f}%", "-" if same is None else f"{100 * same:.0f}%"]
            others = (CROSS_ENTROPY, SOFTMAX, "torch.sort", "torch, bisection", THREAD_PER_ROW)
            rows.append([*row, *(_number(_ratio(record, other, direction)) for other in others)])
    header = [
        "",
        "time",
        "as called",
        "GB/s",
        "of large copy",
        "of this copy",
        "cross-entropy / ours",
        "softmax / ours",
    ]
    return markdown([*header, "sort / ours", "bisection / ours", "thread per row / ours"], rows)


def _targets(records: Sequence[Record]) -> str:
    rows = []
    for target in (target for record in records for target in targets(record)):
        wanted = f"{'>=' if target.at_least else '<='} {target.wanted:g}"
        reached = "not measured" if target.reached is None else "met" if target.met else "missed"
        rows.append([target.what, wanted, _number(target.reached), reached])
    return markdown(["target", "wanted", "measured", ""], rows)
