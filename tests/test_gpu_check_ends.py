"""However bench.gpu_check ends, killed too, its folder is whole, small and flat, and nothing it started goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .test_running import gone, number_in, wait_for

ROOT = Path(__file__).resolve().parents[1]

# The command on a machine with a make-believe GPU and other steps; these see the folder as $FOLDER.
RUNNER = """
import os, sys
from pathlib import Path
import torch
from bench.speed import gpu, gpu_check, gpu_steps
from bench.speed.gpu_steps import Step, sanitizer_found_nothing, some_test_passed

folder = Path(sys.argv[1])
gpu.require = lambda: torch.device("cpu")
gpu_steps.machine = lambda python: Step("machine", ("sh", "-c", "echo a GPU"), 1)
scripts = {scripts!r}

def steps(*_, **__):
    for name, script in scripts.items():
        judge = some_test_passed if name == "kernels" else lambda output: None
        yield Step(name, ("sh", "-c", script), 1, {{"FOLDER": str(folder)}}, judge)
    command = ("compute-sanitizer", "--tool", "memcheck", "sh", "-c", "echo '5 passed in 0.10s'")
    yield Step("memcheck", command, 1, {{}}, sanitizer_found_nothing)
    yield Step("profile", ("no-such-ncu",), 1, optional=True)

gpu_steps.steps = lambda *a, **b: list(steps())
sys.exit(gpu_check.main([str(folder / "out"), *sys.argv[2:]]))
"""
SANITIZER = """#!/bin/sh
shift 2
"$@"
echo "========= ERROR SUMMARY: 0 errors"
"""
PASSES = "echo '12 passed in 4.56s'"
HANGS = (
    "setsid sh -c 'echo $$ > $FOLDER/child; exec sleep 600' & trap '' TERM INT; "
    "while ! [ -s $FOLDER/child ]; do sleep 0.01; done; echo begun; while true; do sleep 1; done"
)
FLOODS = "yes flooding"
DIES = "echo dying; kill -SEGV $$"
# The benchmark writes its results itself.
MEASURES = f"""{sys.executable} -c '
import itertools, os, pathlib, time
from bench.results import ResultsFile
file = ResultsFile(pathlib.Path(os.environ["FOLDER"], "out", "results.jsonl"))
for number in itertools.count():
    file.append(dict(number=number, padding="x" * 20000))
    if number == 3: print("begun", flush=True)
    time.sleep(0.005)
'"""


def start(folder, scripts, *arguments):
    toolkit = folder / "toolkit" / "bin"
    toolkit.mkdir(parents=True)
    (toolkit / "compute-sanitizer").write_text(SANITIZER)
    (toolkit / "compute-sanitizer").chmod(0o755)
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER.format(scripts=scripts), str(folder), *arguments],
        cwd=ROOT,
        env={**os.environ, "CUDA_HOME": str(toolkit.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def lines(path):
    """The records of a file of which each line is whole, but for a last one that an end without warning tore."""
    content = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in content[: content.rfind("\n") + 1].splitlines()]


def outcomes(folder):
    out = folder / "out"
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) <= 8
    for file in files:
        assert file.stat().st_size <= 16 << 20
        assert len(file.relative_to(out).parts) <= 3
        assert re.fullmatch(r"[\w.-]+", file.name)
    return {record["step"]: record["passed"] for record in lines(out / "steps.jsonl")}


def test_steps_that_hang_flood_and_die_leave_the_others_their_place(tmp_path):
    """The steps that flood and hang are ended by the deadline, or what comes after them would not be skipped."""
    scripts = {"kernels": PASSES, "dies": DIES, "quick-flood": "yes | head -c 40000000", "hangs": HANGS, "late": PASSES}
    begun = time.monotonic()
    with start(tmp_path, scripts, "--minutes", "0.3") as process:
        printed = process.communicate(timeout=120)[0]
    assert time.monotonic() - begun < 90
    assert process.returncode == 1
    assert outcomes(tmp_path) == {
        "machine": True,
        "kernels": True,
        "dies": False,
        "quick-flood": True,
        "hangs": False,
        "late": None,
        "memcheck": None,
        "profile": None,
    }
    assert "error: dies, hangs failed" in printed
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "exit status -11: dying" in log
    assert "begun" in log.rpartition("==== hangs:")[2]
    assert len(log) < 2_000_000
    assert gone(number_in(tmp_path / "child"))


def test_a_flood_without_end_is_bounded(tmp_path):
    with start(tmp_path, {"floods": FLOODS}, "--minutes", "0.1") as process:
        process.communicate(timeout=120)
    assert outcomes(tmp_path) == {"machine": True, "floods": False, "memcheck": None, "profile": None}
    assert (tmp_path / "out" / "log.txt").stat().st_size < 2_000_000


def test_with_a_toolkit_everything_passes_and_what_is_missing_is_skipped(tmp_path):
    with start(tmp_path, {"kernels": PASSES}) as process:
        printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert outcomes(tmp_path) == {"machine": True, "kernels": True, "memcheck": True, "profile": None}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("script", "children"), [(HANGS, True), (FLOODS, False), (MEASURES, False)], ids=["hangs", "floods", "measures"]
)
def test_a_killed_runner_leaves_whole_records_and_no_process(tmp_path, number, script, children):
    log = tmp_path / "out" / "log.txt"
    with start(tmp_path, {"kernels": PASSES, "step": f"echo $$ > $FOLDER/step; {script}"}) as process:
        step = number_in(tmp_path / "step")
        wait_for(lambda: re.search(r"^(begun|flooding)$", log.read_text(errors="replace"), re.MULTILINE))
        os.kill(process.pid, number)
        printed = process.communicate(timeout=120)[0]
    wait_for(lambda: gone(step))
    if children:
        wait_for(lambda: gone(number_in(tmp_path / "child")))
    found = outcomes(tmp_path)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert found == {"machine": True, "kernels": True}
    else:
        assert process.returncode == 128 + number
        assert f"error: ended by {number.name}" in printed
        assert found == {"machine": True, "kernels": True, "step": False, "memcheck": None, "profile": None}
        assert f"==== ended by {number.name}" in log.read_text()
    if script == MEASURES:
        assert [record["number"] for record in lines(tmp_path / "out" / "results.jsonl")][:4] == [0, 1, 2, 3]
