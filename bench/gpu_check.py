"""Everything that takes a GPU to find out, in one command: build, tests, compute-sanitizer, graphs, benchmark.

    make gpu-check OUT=folder
    python -m bench.gpu_check folder [--steps build tests ...]

It needs the CUDA toolkit and a Python with torch and what the tests and the build use (requirements-dev.txt), and
neither a network nor a place to install to: the core is built into the source tree. A step that fails does not keep
the others from running. The folder gets steps.jsonl, a line per step; log.txt, all that the steps print; results.jsonl,
the benchmark's results; tables.md, the same to read. bench/results/README.md describes them.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "numpy", "pytest", "hypothesis", "setuptools", "pybind11", "tqdm", "matplotlib")

Judge = Callable[[str], "str | None"]


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing to check.

    Attributes:
        name: what --steps and the results call it.
        command: program and arguments; the program is looked for on PATH and in the CUDA toolkit.
        minutes: after which it is given up.
        environment: variables to set.
        judge: what is wrong with the output of a command that succeeded, or None.
        report: a file beside the log that gets the output too.
    """

    name: str
    command: tuple[str, ...]
    minutes: float
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    judge: Judge = lambda output: None
    report: str | None = None


def some_test_passed(output: str) -> str | None:
    """Return what is wrong where pytest, content with having skipped everything, has run nothing."""
    return None if re.search(r"\b[1-9]\d* passed\b", closing_line(output)) else "no test ran"


def sanitizer_found_nothing(output: str) -> str | None:
    """Return what is wrong where compute-sanitizer does not say that it found nothing."""
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", output)
    if not summaries:
        return "compute-sanitizer gave no summary"
    return f"compute-sanitizer found {summaries[-1]} errors" if any(map(int, summaries)) else some_test_passed(output)


def closing_line(output: str) -> str:
    """Return the line that pytest closes with; where there is none, the last."""
    lines = [line.strip(" =") for line in output.splitlines() if line.strip(" =")]
    return next((line for line in reversed(lines) if re.search(r"\bin \d+\.\d+s\b", line)), lines[-1] if lines else "")


# Every kernel in every regime, on rows and on columns, in float32.
_SANITIZED = "every_regime and not simt and (dtype0 and (shape1 or shape2) or order)"


def steps(python: str, out: Path) -> list[Step]:
    """Return all steps, in order."""
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    streams = "tests/test_cuda_streams.py"

    def tests(name: str, minutes: float, *arguments: str) -> Step:
        return Step(name, (*pytest, *arguments), minutes, judge=some_test_passed)

    def sanitizer(tool: str) -> Step:
        command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *pytest)
        # Without PyTorch's cache of memory every tensor ends where its allocation ends.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {}
        arguments = ("tests/test_cuda.py", "tests/test_cuda_order.py", "-k", _SANITIZED)
        return Step(tool, (*command, *arguments), 20, environment, sanitizer_found_nothing)

    build = (python, "setup.py", "--quiet", "egg_info", "build_ext", "--inplace")
    return [
        Step("build", build, 20, {"HYPERSIMPLEX_CUDA": "ON"}),
        Step("self-check", (python, "-m", "hypersimplex_ext"), 5, judge=_computed_on_cuda),
        tests("tests", 30, "tests", "--ignore", streams, "-k", "cuda and not simt"),
        tests("graphs", 10, streams, "-k", "graph"),
        tests("streams", 10, streams, "-k", "side_stream or another_device"),
        tests("no-wait", 10, streams, "-k", "wait"),
        tests("assertions", 10, streams, "-k", "assert_on_the_device"),
        *map(sanitizer, ("memcheck", "racecheck", "synccheck")),
        Step("benchmark", (python, "-m", "bench", "--gpu", "--out", str(out)), 30),
        Step("tables", (python, "-m", "bench", "table", "--gpu", "--out", str(out)), 5, report="tables.md"),
    ]


def _computed_on_cuda(output: str) -> str | None:
    return None if "on cuda" in output else "the self-check did not run on the GPU"


def run(step: Step, log: IO[str]) -> dict[str, Any]:
    """Run a step, add its output to the log, and return its record: step, passed, summary, seconds, command."""
    start = time.monotonic()
    log.write(f"\n==== {step.name}: {' '.join(step.command)}\n")
    log.flush()
    output, failure = _execute(step)
    log.write(output)
    failure = failure or step.judge(output)
    if failure:
        log.write(f"\n==== {step.name} failed: {failure}\n")
    elif step.report:
        Path(log.name).with_name(step.report).write_text(output)
    log.flush()
    return {
        "step": step.name,
        "passed": failure is None,
        "summary": failure or closing_line(output),
        "seconds": round(time.monotonic() - start, 1),
        "command": list(step.command),
    }


def _execute(step: Step) -> tuple[str, str | None]:
    """Return what the command prints, and what went wrong."""
    program = find(step.command[0])
    if program is None:
        return "", f"{step.command[0]} was not found on PATH, in CUDA_HOME, in CUDA_PATH or in /usr/local/cuda"
    process = subprocess.Popen(
        [program, *step.command[1:]],
        cwd=ROOT,
        env={**os.environ, **step.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what it starts ends with it
    )
    try:
        output, _ = process.communicate(timeout=60 * step.minutes)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return output, f"not finished after {step.minutes:g} minutes"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode == 0:
        return output, None
    return output, f"exit status {process.returncode}: {closing_line(output)}"


def find(program: str) -> str | None:
    """Return the full path of a program, on PATH or in the toolkit."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [str(Path(home, "bin")) for home in homes if home]
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *folders]))


def machine() -> dict[str, Any]:
    """Return the record of the machine: versions, driver, clocks, bandwidth of a copy."""
    import torch

    from bench import gpu
    from bench.results import environment

    described = gpu.describe()
    torch.cuda.empty_cache()
    record = {"step": "machine", "passed": True, **environment(gpu.require()), "driver": gpu.driver()}
    summary = f"{record['device']}, {described['copy_bandwidth'] / 1e12:.2f} TB/s"
    return {**record, "summary": summary, "gpu": described}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps and return the exit status: 1 where a step failed, 2 where nothing could be started."""
    description, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        "python -m bench.gpu_check",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [step.name for step in steps("python", Path())]
    parser.add_argument("out", type=Path, help="folder for what is found")
    parser.add_argument("--steps", nargs="+", choices=names, metavar="STEP", help=f"some of {', '.join(names)}")
    args = parser.parse_args(arguments)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: {sys.executable} lacks {', '.join(missing)}: see requirements-dev.txt", file=sys.stderr)
        return 2

    from bench import gpu
    from bench.results import MalformedResultsError, ResultsFile

    out = args.out.resolve()
    try:
        gpu.require()
        out.mkdir(parents=True, exist_ok=True)
        results = ResultsFile(out / "steps.jsonl")
    except (gpu.NoGpuError, MalformedResultsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = []
    with (out / "log.txt").open("a") as log:
        for step in [None, *steps(sys.executable, out)]:
            if step is not None and args.steps and step.name not in args.steps:
                continue
            try:
                record = machine() if step is None else run(step, log)
            except Exception as error:  # of the machine: that, too, is a step that failed
                record = {"step": "machine", "passed": False, "summary": f"{type(error).__name__}: {error}"}
            results.append(record)
            print(f"{record['step']:12}{'passed' if record['passed'] else 'FAILED':8}{record['summary']}", flush=True)
            failed += [] if record["passed"] else [record["step"]]
    print(f"Results: {out}")
    if failed:
        print(f"error: {', '.join(failed)} failed; log.txt there says why", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
