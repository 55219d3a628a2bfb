"""Everything that takes a GPU to find out, in one command: build, tests, benchmark, profile, compute-sanitizer.

    make gpu-check OUT=folder MINUTES=9
    python -m bench.gpu_check folder [--minutes 9] [--steps build kernels ...]

It needs the CUDA toolkit and a Python with torch and what the tests and the build use (requirements-dev.txt), and
neither a network nor a place to install to: the core is built into the source tree. The steps come in order of value,
for a machine that is there for some minutes: with --minutes nothing runs longer than that, and what did not start is
recorded as skipped. A step that fails does not keep the others from running. Whenever this ends, killed or not, what it
started ends too, and the folder holds whole lines: steps.jsonl, one per step; log.txt, what the steps print, as they
print it; results.jsonl, the benchmark's results. bench/results/README.md describes them, and

    python -m bench table --gpu --out folder

prints them, on any machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.arguments import described_parser
from bench.speed import gpu_steps
from bench.speed.gpu_steps import Record, Step, closing_line
from bench.speed.running import Deadline, Interrupted, Log, execute, signals_held, signals_raise

if TYPE_CHECKING:
    from bench.results import ResultsFile  # which needs torch

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "numpy", "pytest", "hypothesis", "setuptools", "pybind11", "tqdm", "matplotlib")


def run(step: Step, log: Log, deadline: Deadline) -> Record:
    """Run a step and return its record: step, passed, summary, seconds, command, and what was found.

    `passed` is None where the step was skipped.
    """
    start = time.monotonic()
    log.write(f"\n==== {step.name}: {' '.join(step.command)}\n")
    output, passed, summary = _attempt(step, log, deadline)
    if not passed:
        log.write(f"\n==== {step.name} {'skipped' if passed is None else 'failed'}: {summary}\n")
    record = _record(step, passed, summary, time.monotonic() - start)
    return {**record, **step.found(output)} if passed else record


def _attempt(step: Step, log: Log, deadline: Deadline) -> tuple[str, bool | None, str]:
    """Return what the command prints, whether it passed, and what there is to say."""
    program = find(step.command[0])
    if program is None:
        missing = f"{step.command[0]} was not found on PATH, in CUDA_HOME, in CUDA_PATH or in /usr/local/cuda"
        return "", None if step.optional else False, missing
    seconds = min(60 * step.minutes, deadline.left())
    if not seconds:
        return "", None, "no time was left"
    variables = {**os.environ, "PATH": path(), "PYTHONUNBUFFERED": "1", **step.environment}
    output, status = execute([program, *step.command[1:]], ROOT, variables, seconds, log)
    if status is None:
        return output, False, f"not finished after {seconds:.3g} seconds"
    if status:
        return output, False, f"exit status {status}: {closing_line(output)}"
    failure = step.judge(output)
    return output, failure is None, failure or closing_line(output)


def _record(step: Step, passed: bool | None, summary: str, seconds: float = 0.0) -> Record:
    command = list(step.command)
    return {"step": step.name, "passed": passed, "summary": summary, "seconds": round(seconds, 1), "command": command}


def path() -> str:
    """Return PATH with the toolkit's programs, so that what a step starts finds them too."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [str(Path(home, "bin")) for home in homes if home]
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *folders])


def find(program: str) -> str | None:
    """Return the full path of a program, on PATH or in the toolkit."""
    return shutil.which(program, path=path())


class Report:
    """Every record in steps.jsonl and on standard output, as soon as it is there."""

    def __init__(self, file: ResultsFile) -> None:
        self._file = file
        self.failed: list[str] = []

    def add(self, record: Record) -> Record:
        """Write a record and return it."""
        state = {True: "passed", False: "FAILED", None: "skipped"}[record["passed"]]
        with signals_held():
            self._file.append(record)
            print(f"{record['step']:12}{state:8}{record['seconds']:7.1f} s  {record['summary']}", flush=True)
            self.failed += [record["step"]] if state == "FAILED" else []
        return record


def check(out: Path, chosen: Sequence[str] | None, deadline: Deadline, report: Report) -> None:
    """Run the machine's step and the chosen ones, or all.

    Raises:
        Interrupted: a signal asked for the end; what was left of the steps is in the report.
    """
    todo = [gpu_steps.machine(sys.executable)]
    with Log(out / "log.txt") as log, signals_raise():
        try:
            described = report.add(run(todo[0], log, deadline))
            capability = described.get("gpu", {}).get("compute_capability")
            todo = gpu_steps.steps(sys.executable, out, capability, brief=deadline.near)
            todo = [step for step in todo if not chosen or step.name in chosen]
            while todo:
                report.add(run(todo[0], log, deadline))
                del todo[0]
        except Interrupted as interruption:
            summary = f"ended by {interruption.name}"
            log.write(f"\n==== {summary}\n")
            for step in todo:
                report.add(_record(step, False if step is todo[0] else None, summary))
            raise


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = described_parser("python -m bench.gpu_check", __doc__)
    names = [step.name for step in gpu_steps.steps("python", Path())]
    parser.add_argument("out", type=Path, help="folder for what is found")
    parser.add_argument("--minutes", type=float, metavar="N", help="end after so many; default: when all is done")
    parser.add_argument("--steps", nargs="+", choices=names, metavar="STEP", help=f"some of {', '.join(names)}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps and return the exit status: 1 where a step failed, 2 where nothing could be started.

    Where a signal ended it, 128 and the signal's number, as a shell counts.
    """
    args = _parse(arguments)
    deadline = Deadline(args.minutes)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: {sys.executable} lacks {', '.join(missing)}: see requirements-dev.txt", file=sys.stderr)
        return 2

    from bench.results import MalformedResultsError, ResultsFile
    from bench.speed import gpu

    out = args.out.resolve()
    try:
        gpu.require()
        out.mkdir(parents=True, exist_ok=True)
        report = Report(ResultsFile(out / "steps.jsonl"))
    except (gpu.NoGpuError, MalformedResultsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        check(out, args.steps, deadline, report)
    except Interrupted as interruption:
        print(f"error: ended by {interruption.name}", file=sys.stderr)
        return 128 + interruption.signal
    print(f"Results: {out}")
    if report.failed:
        print(f"error: {', '.join(report.failed)} failed; log.txt there says why", file=sys.stderr)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
