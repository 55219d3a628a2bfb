"""The command that checks everything on a GPU, with steps that need none: what passes, what fails, what is written."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import gpu, gpu_check
from bench.gpu_check import Step, closing_line, run, sanitizer_found_nothing, some_test_passed, steps
from bench.results import ResultsFile

ROOT = Path(__file__).resolve().parents[1]
PASSED = "....\n==== 12 passed, 3 skipped in 4.56s ====\n"


def shell(name, script, **settings):
    return Step(name, ("sh", "-c", script), **{"minutes": 1, **settings})


@pytest.fixture
def log(tmp_path):
    with (tmp_path / "log.txt").open("w") as file:
        yield file


def logged(log):
    return Path(log.name).read_text()


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
        (PASSED + "========= RACECHECK SUMMARY: 1 hazard displayed\n", "compute-sanitizer found 1 errors"),
        ("3 skipped in 0.10s\n========= ERROR SUMMARY: 0 errors\n", "no test ran"),
        (PASSED, "compute-sanitizer gave no summary"),
    ],
)
def test_sanitizer_summaries(output, wrong):
    assert sanitizer_found_nothing(output) == wrong


# ---- a step ----


def test_a_step_that_passes(log):
    record = run(shell("greet", f"echo hello; printf '{PASSED}'", judge=some_test_passed), log)
    assert record.pop("seconds") >= 0
    assert record == {
        "step": "greet",
        "passed": True,
        "summary": "12 passed, 3 skipped in 4.56s",
        "command": ["sh", "-c", f"echo hello; printf '{PASSED}'"],
    }
    assert logged(log).startswith("\n==== greet: sh -c echo hello")
    assert "\nhello\n" in logged(log)


@pytest.mark.parametrize(
    ("step", "summary"),
    [
        (shell("bad", "echo oh no >&2; exit 3"), "exit status 3: oh no"),
        (shell("bad", "kill -9 $$"), "exit status -9: "),
        (shell("bad", "echo '2 skipped in 0.01s'", judge=some_test_passed), "no test ran"),
        (Step("bad", ("no-such-sanitizer",), 1), "no-such-sanitizer was not found on PATH, in CUDA_HOME, in CUDA_PATH"),
    ],
)
def test_a_step_that_fails_says_why(log, step, summary):
    record = run(step, log)
    assert not record["passed"]
    assert record["summary"].startswith(summary)
    assert f"==== bad failed: {summary}" in logged(log)


def test_a_step_that_does_not_end_is_ended_with_what_it_started(log, tmp_path):
    start = time.monotonic()
    record = run(shell("endless", f"sleep 60 & echo $! > {tmp_path}/child; echo begun; wait", minutes=0.01), log)
    assert time.monotonic() - start < 30
    assert record["summary"] == "not finished after 0.01 minutes"
    assert "begun" in logged(log)
    status = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/status")
    while status.exists() and "(zombie)" not in status.read_text():  # killed, but maybe not yet gone
        assert time.monotonic() - start < 30
        time.sleep(0.01)


def test_a_step_has_its_environment_the_sources_and_no_input(log):
    record = run(shell("where", "cat; echo $PLACE $PWD", environment={"PLACE": "here"}), log)
    assert record["summary"] == f"here {ROOT}"


def test_a_report_is_kept_beside_the_log_if_the_step_passed(log, tmp_path):
    for script, there in (("echo table; exit 1", False), ("echo table", True)):
        run(shell("tables", script, report="tables.md"), log)
        assert (tmp_path / "tables.md").exists() == there
    assert (tmp_path / "tables.md").read_text() == "table\n"


def test_programs_of_the_toolkit_are_found(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpu_check.find("compute-sanitizer") == str(program)


# ---- all of them ----


def test_every_check_is_a_step():
    names = [step.name for step in steps("python", Path("out"))]
    assert names == [
        *("build", "self-check", "tests", "graphs", "streams", "no-wait", "assertions"),
        *("memcheck", "racecheck", "synccheck", "benchmark", "tables"),
    ]


@pytest.mark.parametrize("step", [s for s in steps(sys.executable, Path()) if "-k" in s.command], ids=lambda s: s.name)
def test_every_step_selects_tests_on_cuda(step):
    command = step.command[step.command.index(sys.executable) :]
    done = subprocess.run([*command, "--collect-only"], cwd=ROOT, capture_output=True, text=True, check=True)
    chosen = re.findall(r"^tests/\S+::(\S+)$", done.stdout, re.MULTILINE)
    assert len(chosen) >= 12
    assert not any("simt" in name for name in chosen)
    if step.judge is sanitizer_found_nothing:
        for kernels in ("test_every_regime", "test_products", "test_losses"):
            for regime in ("short", "block:", "stream=1", "cluster:", "grid:"):
                assert any(kernels in name and regime in name for name in chosen)


def pretend(monkeypatch, *chosen):
    monkeypatch.setattr(gpu, "require", lambda: torch.device("cpu"))
    monkeypatch.setattr(gpu, "describe", lambda: {"copy_bandwidth": 4e12, "sm_clock": 1980.0})
    monkeypatch.setattr(gpu, "driver", lambda: "580.1")
    monkeypatch.setattr(gpu_check, "steps", lambda python, out: list(chosen))


def test_a_failed_step_does_not_keep_the_others_from_running(monkeypatch, tmp_path, capsys):
    pretend(monkeypatch, shell("one", "echo 1"), shell("two", "exit 1"), shell("three", "echo 3"))
    out = tmp_path / "new" / "folder"
    assert gpu_check.main([str(out)]) == 1
    printed = capsys.readouterr()
    assert "two         FAILED  exit status 1" in printed.out
    assert printed.err == "error: two failed; log.txt there says why\n"
    machine, *records = ResultsFile(out / "steps.jsonl").records
    assert [(record["step"], record["passed"]) for record in records] == [
        ("one", True),
        ("two", False),
        ("three", True),
    ]
    assert machine["step"] == "machine"
    assert machine["gpu"] == {"copy_bandwidth": 4e12, "sm_clock": 1980.0}
    assert machine["driver"] == "580.1"
    assert {"date", "device", "torch", "python"} <= set(machine)
    assert machine["summary"].endswith(", 4.00 TB/s")


def test_chosen_steps_run_and_add_to_the_folder(monkeypatch, tmp_path):
    pretend(monkeypatch, shell("one", "echo 1"), shell("two", "echo 2"))
    assert gpu_check.main([str(tmp_path), "--steps", "two"]) == 0
    assert gpu_check.main([str(tmp_path)]) == 0
    found = [json.loads(line)["step"] for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert found == ["machine", "two", "machine", "one", "two"]


def test_a_machine_that_cannot_be_described_is_a_failure(monkeypatch, tmp_path, capsys):
    pretend(monkeypatch, shell("one", "echo 1"))
    monkeypatch.setattr(gpu, "describe", lambda: {}["bandwidth"])
    assert gpu_check.main([str(tmp_path)]) == 1
    assert "machine     FAILED  KeyError: 'bandwidth'" in capsys.readouterr().out
    assert [record["passed"] for record in ResultsFile(tmp_path / "steps.jsonl").records] == [False, True]


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
