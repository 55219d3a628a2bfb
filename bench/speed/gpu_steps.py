"""What bench.gpu_check checks, in order of value, as a machine with a GPU may be there for minutes only."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Judge = Callable[[str], "str | None"]


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing to check.

    Attributes:
        name: what --steps and the results call it.
        command: program and arguments; the program is looked for on PATH and in the CUDA toolkit.
        minutes: after which it is given up, if the deadline for everything is not nearer.
        environment: variables to set.
        judge: what is wrong with the output of a command that succeeded, or None.
        found: what the output adds to the record.
        optional: whether it is skipped where the program is not there.
    """

    name: str
    command: tuple[str, ...]
    minutes: float
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    judge: Judge = lambda output: None
    found: Callable[[str], Record] = lambda output: {}
    optional: bool = False


# ---- what outputs say ----


def closing_line(output: str) -> str:
    """Return the line that pytest closes with; where there is none, the last."""
    lines = [line.strip(" =") for line in output.splitlines() if line.strip(" =")]
    return next((line for line in reversed(lines) if re.search(r"\bin \d+\.\d+s\b", line)), lines[-1] if lines else "")


def some_test_passed(output: str) -> str | None:
    """Return what is wrong where pytest, content with having skipped everything, has run nothing."""
    return None if re.search(r"\b[1-9]\d* passed\b", closing_line(output)) else "no test ran"


def sanitizer_found_nothing(output: str) -> str | None:
    """Return what is wrong where compute-sanitizer does not say that it found no error.

    Of racecheck's hazards those count that it calls errors: warnings are about values that do not change.
    """
    summaries = [sanitizer_errors(line) for line in output.splitlines() if " SUMMARY: " in line]
    if not summaries:
        return "compute-sanitizer gave no summary"
    return f"compute-sanitizer found {max(summaries)} errors" if any(summaries) else some_test_passed(output)


def sanitizer_errors(summary: str) -> int:
    """Return the number of errors in a line such as "RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)"."""
    number = re.search(r"\((\d+) errors?\b", summary) or re.search(r"SUMMARY: (\d+)", summary)
    return int(number[1]) if number else 1


def json_line(output: str) -> Record:
    """Return the object in the last line that holds one; empty without."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            return dict(record)
    return {}


def _computed_on_cuda(output: str) -> str | None:
    return None if "on cuda" in output else "the self-check did not run on the GPU"


def _profiled(output: str) -> str | None:
    return None if "Speed Of Light" in output else "ncu profiled no launch"


# ---- pytest on a machine whose packages are not those of requirements-dev.txt ----

# Plugins that the tests do not need can warn or fail; hypothesis works without its own. Processes that share the tests
# have to agree on their order, sets included.
_PYTEST = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONHASHSEED": "0"}
_WORKERS = 8


def _there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _options(failures: int, seconds: int, workers: int) -> tuple[str, ...]:
    options = ["-q", "-p", "no:cacheprovider", "-W", "default", "--tb=short", f"--maxfail={failures}"]
    if _there("pytest_timeout"):
        # A thread ends the process: a signal would wait for a call into the driver, which does not return.
        options += ["-p", "pytest_timeout", f"--timeout={seconds}", "--timeout-method=thread"]
    if workers > 1 and _there("xdist"):
        options += ["-p", "xdist.plugin", "-n", str(workers)]
    return tuple(options)


def _tests(python: str, name: str, minutes: float, *selection: str, workers: int = 1) -> Step:
    """Tests; several at a time where their time does not matter, with pytest-xdist or else a process for each file."""
    module = "pytest" if workers == 1 or _there("xdist") else "bench.speed.pytest_files"
    command = (python, "-m", module, *_options(10, 60, workers), *selection)
    return Step(name, command, minutes, _PYTEST, some_test_passed)


_KERNELS = ("tests/test_cuda.py", "tests/test_cuda_order.py")
_STREAMS = "tests/test_cuda_streams.py"
# Run by other steps; of the compiler and the CPU alone, whatever their names say; or tests of these steps.
_NOT_CUDA = tuple(f"tests/test_{name}.py" for name in ("build", "gpu_check", "kernel_report", "running", "simt"))
_CLOCKS = "tests/test_clocks.py::test_clocks_agree_on_cuda"

# ---- compute-sanitizer ----

# Our kernels alone, by a part of their names, mangled or not: PyTorch's take hours, and are not ours to mend. A call
# that fails is an exception here; PyTorch makes some to see whether they do.
KERNEL_NAMES = ("--kernel-name", "kns=hypersimplex")
# Every kernel in every regime, in float32, on rows and on columns.
_SANITIZED = (
    "every_regime and not simt and not special"
    " and (dtype0 and (shape1 or shape2) or float32 and True or random and (True or block_products) or kl and 1.0)"
)


def _sanitizer(python: str, tool: str, minutes: float) -> Step:
    pytest = (python, "-m", "pytest", *_options(5, 300, 1), *_KERNELS, "-k", _SANITIZED)
    environment = dict(_PYTEST)
    if tool == "memcheck":  # without PyTorch's cache of memory every tensor ends where its allocation ends
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    command = (
        "compute-sanitizer",
        "--tool",
        tool,
        *KERNEL_NAMES,
        "--report-api-errors",
        "no",
        "--print-limit",
        "20",
        *pytest,
    )
    return Step(tool, command, minutes, environment, sanitizer_found_nothing)


# ---- the profiler ----

_SECTIONS = ("SpeedOfLight", "SchedulerStats", "WarpStateStats", "Occupancy", "LaunchStats")
# The clocks are left as they are; the launches that count lie between cudaProfilerStart and cudaProfilerStop.
_NCU = ("ncu", "--clock-control", "none", "--profile-from-start", "off", "--kernel-name", "regex:project|loss_team")


def _profile(python: str) -> Step:
    sections = (argument for section in _SECTIONS for argument in ("--section", section))
    command = (*_NCU, *sections, python, "-m", "bench.speed.launches")
    return Step("profile", command, 3, judge=_profiled, optional=True)


# ---- all of them ----


def machine(python: str) -> Step:
    """Return the step that describes the machine; its record has what `python -m bench.speed.gpu` prints."""
    return Step("machine", (python, "-m", "bench.speed.gpu"), 3, found=json_line)


def steps(python: str, out: Path, capability: str | None = None, brief: bool = False) -> list[Step]:
    """Return all steps but the machine's, in order.

    Args:
        python: the interpreter to check with.
        out: folder for the benchmark's results.
        capability: compute capability of the GPU at hand, such as "9.0", to compile for it alone.
        brief: whether time is short, so that the cases that are left after the first ones are measured briefly too.
    """
    build = (python, "setup.py", "--quiet", "egg_info", "build_ext", "--inplace")
    measure = (python, "-m", "bench", "measure", "--out", str(out))
    waiting = "graph or side_stream or another_device or not_wait or pytorch_wait or clocks_agree"
    ignored = (f"--ignore={file}" for file in (*_KERNELS, _STREAMS, *_NOT_CUDA))
    others = ("tests", *ignored, f"--deselect={_CLOCKS}", "-k", "cuda and not simt")
    return [
        Step("build", build, 20, {"HYPERSIMPLEX_CUDA": "ON", **_architecture(capability)}),
        Step("self-check", (python, "-m", "hypersimplex_ext"), 3, judge=_computed_on_cuda),
        _tests(python, "kernels", 5, *_KERNELS, "-k", "not simt", workers=_WORKERS),
        Step("benchmark", (*measure, "--gpu-brief", "--first", "7"), 5),
        Step("clusters", (python, "-m", "bench.speed.clusters"), 2, found=json_line),
        _tests(python, "graphs", 5, _STREAMS, _CLOCKS, "-k", waiting),
        _profile(python),
        _tests(python, "tests", 30, *others, workers=_WORKERS),
        _tests(python, "assertions", 10, _STREAMS, "-k", "assert_on_the_device", workers=_WORKERS),
        *(_sanitizer(python, tool, 20) for tool in ("memcheck", "racecheck")),
        Step("other-cases", (*measure, "--gpu-brief" if brief else "--gpu"), 30),
        _sanitizer(python, "synccheck", 20),
    ]


def _architecture(capability: str | None) -> dict[str, str]:
    """Machine code for the GPU alone, unless the caller has chosen."""
    if capability is None or {"CMAKE_CUDA_ARCHITECTURES", "CUDAARCHS"} & set(os.environ):
        return {}
    return {"CMAKE_CUDA_ARCHITECTURES": capability.replace(".", "") + "-real"}
