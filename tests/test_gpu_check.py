"""The command that checks everything on a GPU, with steps that need none: what passes, what fails, what is written."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.results import ResultsFile
from bench.speed import gpu, gpu_check, gpu_steps
from bench.speed.gpu_check import run
from bench.speed.gpu_steps import Step, closing_line, json_line, sanitizer_found_nothing, some_test_passed, steps
from bench.speed.running import Deadline, Log

ROOT = Path(__file__).resolve().parents[1]
PASSED = "....\n==== 12 passed, 3 skipped in 4.56s ====\n"


ALWAYS = Deadline(None)


def shell(name, script, **settings):
    return Step(name, ("sh", "-c", script), **{"minutes": 1, **settings})


@pytest.fixture
def log(tmp_path):
    with Log(tmp_path / "log.txt") as log:
        yield log


def logged(log):
    return log.path.read_text()


# ---- what an output says ----


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (PASSED, "12 passed, 3 skipped in 4.56s"),
        ("x\n2 passed in 70.12s (0:01:10)\n========= ERROR SUMMARY: 0 errors\n", "2 passed in 70.12s (0:01:10)"),
        ("one\ntwo\n\n", "two"),
        ("\n", ""),
    ],
)  # fmt: skip
def test_closing_line(output, line):
    assert closing_line(output) == line


@pytest.mark.parametrize(
    ("output", "wrong"),
    [
        (PASSED, None),
        ("3 skipped in 0.10s", "no test ran"),
        ("40 deselected in 0.10s", "no test ran"),
        ("0 passed in 1.00s", "no test ran"),
        ("", "no test ran"),
    ],
)
def test_tests_that_skip_everything_have_not_passed(output, wrong):
    assert some_test_passed(output) == wrong


@pytest.mark.parametrize(
    ("output", "wrong"),
    [
        (PASSED + "========= ERROR SUMMARY: 0 errors\n", None),
        (PASSED + "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", None),
        (PASSED + "========= ERROR SUMMARY: 2 errors\n", "compute-sanitizer found 2 errors"),
        (PASSED + "========= RACECHECK SUMMARY: 3 hazards displayed (0 errors, 3 warnings)\n", None),
        (
            PASSED + "========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)\n",
            "compute-sanitizer found 1 errors",
        ),
        (PASSED + "========= RACECHECK SUMMARY: 1 hazard displayed\n", "compute-sanitizer found 1 errors"),
        (PASSED + "========= RACECHECK SUMMARY: unreadable\n", "compute-sanitizer found 1 errors"),
        ("3 skipped in 0.10s\n========= ERROR SUMMARY: 0 errors\n", "no test ran"),
        (PASSED, "compute-sanitizer gave no summary"),
    ],
)
def test_sanitizer_summaries(output, wrong):
    assert sanitizer_found_nothing(output) == wrong


@pytest.mark.parametrize(
    ("output", "record"),
    [
        ('{"a": 1}\n', {"a": 1}),
        ('{"a": 1}\n{"a": 2}\n{broken\nafter\n', {"a": 2}),
        ("nothing\n", {}),
        ("", {}),
    ],
)
def test_records_in_outputs(output, record):
    assert json_line(output) == record


# ---- a step ----


def test_a_step_that_passes(log):
    script = f"echo hello; printf '{PASSED}'"
    record = run(shell("greet", script, judge=some_test_passed, found=lambda output: {"said": output[:5]}), log, ALWAYS)
    assert record.pop("seconds") >= 0
    assert record == {
        "step": "greet",
        "passed": True,
        "summary": "12 passed, 3 skipped in 4.56s",
        "command": ["sh", "-c", script],
        "said": "hello",
    }
    assert logged(log).startswith("\n==== greet: sh -c echo hello")
    assert "\nhello\n" in logged(log)


@pytest.mark.parametrize(
    ("step", "summary"),
    [
        (shell("bad", "echo oh no >&2; exit 3"), "exit status 3: oh no"),
        (shell("bad", "kill -9 $$"), "exit status -9: "),
        (shell("bad", "echo '2 skipped in 0.01s'", judge=some_test_passed), "no test ran"),
        (shell("bad", "echo begun; sleep 600", minutes=0.01), "not finished after 0.6 seconds"),
        (Step("bad", ("no-such-sanitizer",), 1), "no-such-sanitizer was not found on PATH, in CUDA_HOME, in CUDA_PATH"),
    ],
)
def test_a_step_that_fails_says_why(log, step, summary):
    record = run(step, log, ALWAYS)
    assert record["passed"] is False
    assert record["summary"].startswith(summary)
    assert f"==== bad failed: {summary}" in logged(log)


def test_a_program_that_one_can_do_without_is_skipped_where_it_is_missing(log):
    record = run(Step("profile", ("no-such-profiler",), 1, optional=True), log, ALWAYS)
    assert record["passed"] is None
    assert record["summary"].startswith("no-such-profiler was not found")
    assert "==== profile skipped: no-such-profiler" in logged(log)


def test_a_step_gets_the_time_that_is_left(log):
    assert run(shell("late", "sleep 600"), log, Deadline(0.01))["summary"].startswith("not finished after 0.")
    record = run(shell("later", "echo never"), log, Deadline(0))
    assert record["passed"] is None
    assert record["summary"] == "no time was left"
    assert "\nnever" not in logged(log)


def test_a_flood_is_judged_by_its_end(tmp_path):
    flood = shell("flood", f"yes | head -c 3000000; printf '{PASSED}'", judge=some_test_passed)
    with Log(tmp_path / "log.txt") as log:
        assert run(flood, log, ALWAYS)["passed"]
    assert (tmp_path / "log.txt").stat().st_size < 2_000_000
    assert (tmp_path / "log.txt").read_text().endswith(PASSED)


def test_a_step_has_its_environment_the_sources_and_no_input(log):
    record = run(shell("where", "cat; echo $PLACE $PWD", environment={"PLACE": "here"}), log, ALWAYS)
    assert record["summary"] == f"here {ROOT}"


def test_programs_of_the_toolkit_are_found_by_steps_and_what_they_start(tmp_path, monkeypatch, log):
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho checked\n")
    program.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert run(shell("indirect", "compute-sanitizer"), log, ALWAYS)["summary"] == "checked"
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpu_check.find("compute-sanitizer") == str(program)


# ---- all of them ----


def test_every_check_is_a_step():
    assert [step.name for step in steps("python", Path("out"))] == [
        *("build", "self-check", "kernels", "benchmark", "clusters", "graphs", "profile", "tests", "assertions"),
        *("memcheck", "racecheck", "other-cases", "synccheck"),
    ]


def test_where_time_is_short_what_is_left_is_measured_briefly():
    for brief, mode in ((True, "--gpu-brief"), (False, "--gpu")):
        (step,) = (step for step in steps("python", Path("out"), brief=brief) if step.name == "other-cases")
        assert mode in step.command


@pytest.mark.parametrize(
    ("capability", "chosen", "architecture"),
    [("9.0", {}, "90-real"), ("12.0", {}, "120-real"), (None, {}, None), ("9.0", {"CUDAARCHS": "80"}, None)],
)
def test_the_build_is_for_the_gpu_at_hand(monkeypatch, capability, chosen, architecture):
    for name in ("CMAKE_CUDA_ARCHITECTURES", "CUDAARCHS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    build = steps("python", Path("out"), capability)[0]
    assert build.environment.get("CMAKE_CUDA_ARCHITECTURES") == architecture


@pytest.mark.parametrize("step", [s for s in steps(sys.executable, Path()) if "-k" in s.command], ids=lambda s: s.name)
def test_every_step_selects_tests_on_cuda(monkeypatch, step):
    monkeypatch.setattr(gpu_steps, "_there", lambda module: False)
    (step,) = (other for other in steps(sys.executable, Path()) if other.name == step.name)
    command = list(step.command[step.command.index(sys.executable) :])
    command[2] = "pytest"
    done = subprocess.run([*command, "--collect-only"], cwd=ROOT, capture_output=True, text=True, check=True)
    chosen = re.findall(r"^tests/\S+::(\S+)$", done.stdout, re.MULTILINE)
    assert len(chosen) >= 12
    assert not any("simt" in name for name in chosen)
    if step.judge is sanitizer_found_nothing:
        assert len(chosen) < 100
        for kernels in ("test_every_regime", "test_products", "test_losses"):
            for regime in ("short", "block:", "stream=1", "cluster:", "grid:"):
                assert any(kernels in name and regime in name for name in chosen)
        for kernels in ("sort", "regression", "kl", "block_products"):
            for regime in ("short", "block", "grid"):
                assert any(f"test_{kernels}_in_every_regime" in name and regime in name for name in chosen)


def test_options_are_those_of_the_plugins_that_are_there(monkeypatch):
    monkeypatch.setattr(gpu_steps, "_there", lambda module: False)
    by_name = {step.name: step.command for step in steps("python", Path())}
    assert by_name["kernels"][:3] == ("python", "-m", "bench.speed.pytest_files")
    assert by_name["graphs"][:3] == ("python", "-m", "pytest")
    assert not {"-n", "--timeout=60"} & set(by_name["kernels"])
    monkeypatch.setattr(gpu_steps, "_there", lambda module: True)
    by_name = {step.name: step.command for step in steps("python", Path())}
    assert by_name["kernels"][:3] == by_name["graphs"][:3] == ("python", "-m", "pytest")
    assert {"-n", "xdist.plugin", "pytest_timeout"} <= set(by_name["kernels"])
    assert "-n" not in by_name["graphs"]  # which tell times


def pretend(monkeypatch, *chosen):
    """A GPU, a machine that is described, and other steps."""
    described = {"gpu": {"copy_bandwidth": 4e12}, "driver": "580.1", "summary": "a GPU, 4.00 TB/s"}
    monkeypatch.setattr(gpu, "require", lambda: torch.device("cpu"))
    monkeypatch.setattr(
        gpu_steps, "machine", lambda python: shell("machine", f"echo '{json.dumps(described)}'", found=json_line)
    )
    monkeypatch.setattr(gpu_steps, "steps", lambda *_, **__: list(chosen))


def outcomes(out):
    return [(record["step"], record["passed"]) for record in ResultsFile(out / "steps.jsonl").records]


def test_a_failed_step_does_not_keep_the_others_from_running(monkeypatch, tmp_path, capsys):
    pretend(monkeypatch, shell("one", "echo 1"), shell("two", "exit 1"), shell("three", "echo 3"))
    out = tmp_path / "new" / "folder"
    assert gpu_check.main([str(out)]) == 1
    printed = capsys.readouterr()
    assert re.search(r"^two +FAILED +\d+\.\d s  exit status 1", printed.out, re.MULTILINE)
    assert printed.err == "error: two failed; log.txt there says why\n"
    assert outcomes(out) == [("machine", True), ("one", True), ("two", False), ("three", True)]
    machine = ResultsFile(out / "steps.jsonl").records[0]
    assert machine["gpu"] == {"copy_bandwidth": 4e12}
    assert (machine["driver"], machine["summary"]) == ("580.1", "a GPU, 4.00 TB/s")


def test_what_there_is_no_time_for_is_skipped_and_is_no_failure(monkeypatch, tmp_path, capsys):
    pretend(monkeypatch, shell("one", "echo 1"), shell("two", "echo 2"))
    assert gpu_check.main([str(tmp_path), "--minutes", "0"]) == 0
    assert outcomes(tmp_path) == [("machine", None), ("one", None), ("two", None)]
    assert capsys.readouterr().out.count("no time was left") == 3


def test_a_deadline_ends_the_step_that_runs(monkeypatch, tmp_path):
    pretend(monkeypatch, shell("one", "echo 1"), shell("two", "sleep 600"), shell("three", "echo 3"))
    start = time.monotonic()
    assert gpu_check.main([str(tmp_path), "--minutes", "0.1"]) == 1
    assert time.monotonic() - start < 60
    assert outcomes(tmp_path) == [("machine", True), ("one", True), ("two", False), ("three", None)]


def test_chosen_steps_run_and_add_to_the_folder(monkeypatch, tmp_path):
    pretend(monkeypatch, shell("kernels", "echo 1"), shell("tests", "echo 2"))
    monkeypatch.setattr(
        gpu_check, "_parse", lambda chosen: argparse.Namespace(out=tmp_path, minutes=None, steps=chosen)
    )
    assert gpu_check.main(["tests"]) == 0
    assert gpu_check.main(None) == 0
    assert [step for step, _ in outcomes(tmp_path)] == ["machine", "tests", "machine", "kernels", "tests"]


def test_a_machine_that_cannot_be_described_is_a_failure(monkeypatch, tmp_path):
    pretend(monkeypatch, shell("one", "echo 1"))
    monkeypatch.setattr(gpu_steps, "machine", lambda python: shell("machine", "exit 1", found=json_line))
    assert gpu_check.main([str(tmp_path)]) == 1
    assert outcomes(tmp_path) == [("machine", False), ("one", True)]


def test_packages_that_are_missing_are_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_check, "NEEDED", ("torch", "no_such_package"))
    assert gpu_check.main([str(tmp_path)]) == 2
    assert f"error: {sys.executable} lacks no_such_package: see requirements-dev.txt" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_make_without_a_gpu_ends_with_the_reason(tmp_path):
    command = ["make", "--no-print-directory", "gpu-check", f"PYTHON={sys.executable}", f"OUT={tmp_path}/out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"error: a GPU is needed, and torch {torch.__version__} " in done.stderr
    assert not os.listdir(tmp_path)


def test_make_without_a_folder_ends_with_the_reason():
    done = subprocess.run(["make", "gpu-check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "make gpu-check OUT=folder: no folder is given" in done.stderr
