"""What gpu-check does beside the benchmark's full run, as far as it can be told without a GPU."""

import itertools
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import bench.__main__ as command
from bench.speed import cases, clusters, gpu, gpu_tables, launches, nvcc, peers, pytest_files
from bench.speed.cases import Case
from bench.speed.contender import COPY, OURS
from bench.speed.measure import Effort
from bench.speed.peers import THREAD_PER_ROW

# ---- the brief benchmark ----


def test_cases_by_value_are_all_cases():
    assert len(cases.GPU_BY_VALUE) == len(cases.GPU)
    assert set(cases.GPU_BY_VALUE) == set(cases.GPU)


def test_the_first_seven_show_every_target_in_float32():
    first = cases.GPU_BY_VALUE[:7]
    assert {case.dtype for case in first} == {"float32"}

    def with_target(chosen):
        record = {"gpu": {"copy_bandwidth": 1.0}, "systems": {OURS: {"forward": {"median": 1.0}}}}
        named = itertools.chain(*(gpu_tables.targets({**record, "case": vars_of(case)}) for case in chosen))
        return {target.what for target in named}

    wanted = [case for case in cases.GPU if case.dtype == "float32" and case.k != 512]
    assert with_target(first) == with_target(wanted)
    assert {case.n for case in first} >= {1 << 18, 10**8}


def vars_of(case):
    return {name: getattr(case, name) for name in Case.__dataclass_fields__}


def test_in_brief_only_those_take_part_that_targets_name():
    for case in cases.GPU_BY_VALUE:
        brief, everyone = peers.contenders(case, brief=True), peers.contenders(case)
        assert set(brief) <= set(everyone)
        assert next(iter(brief)) == OURS
        if case.group == "order":
            assert brief == everyone
            continue
        assert set(brief) - {THREAD_PER_ROW} == {OURS, COPY} | (
            {"F.cross_entropy"} if case.group == "gpu-loss" else set()
        )
        assert (THREAD_PER_ROW in brief) == (case.group == "gpu-rows" and case.n <= 8192)


def test_measuring_prints_no_table_draws_no_figure_and_goes_on(tmp_path, monkeypatch, capsys):
    measured = []

    def measure(case, effort):
        measured.append(case)
        return {**command.key(case, effort), "date": "", "systems": {}}

    small = [Case("mass", 2, 40, k) for k in (1, 2, 3)]
    monkeypatch.setitem(command.EFFORTS, "gpu-brief", (small, Effort(rounds=1, seconds=0.0, brief=True)))
    monkeypatch.setattr(gpu, "require", lambda: torch.device("cpu"))
    monkeypatch.setattr(command, "build_info", lambda: SimpleNamespace(cuda="13.0"))
    monkeypatch.setattr(command, "measure", measure)
    arguments = ["measure", "--gpu-brief", "--out", str(tmp_path)]
    assert command.main([*arguments, "--first", "2"]) == 0
    assert measured == small[:2]
    assert command.main(arguments) == 0
    assert measured == small
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]
    assert capsys.readouterr().out.splitlines() == [f"Results: {tmp_path}/results.jsonl"] * 2


def test_tables_take_the_newest_record_of_a_case_whatever_its_effort():
    origin = dict.fromkeys(command.ORIGIN, "the same")
    chosen = [Case("gpu-rows", 2, 40, k) for k in (1, 2)]
    efforts = [(chosen[0], "brief"), (chosen[1], "brief"), (chosen[0], "full")]
    records = [{**origin, "effort": effort, "case": vars_of(case)} for case, effort in efforts]
    assert command.newest(chosen, records) == [records[2], records[1]]


# ---- clusters, launches ----


def test_clusters_are_counted_by_cuda():
    try:
        nvcc.nvcc()
    except RuntimeError:
        pytest.skip("no CUDA toolkit")
    library = nvcc.compiled(clusters.SOURCE, "sm_90")
    if torch.cuda.is_available():
        assert all(found["active"] > 0 for found in clusters.count(library))
    else:
        with pytest.raises(RuntimeError, match=r"largest_shared_memory\(\): CUDA error \d+"):
            clusters.count(library)


@pytest.mark.parametrize(
    ("capability", "found", "summary"),
    [
        ((8, 0), [], "no clusters at compute capability 8.0"),
        ((9, 0), [{"active": 15, "blocks": 8, "threads": 1024}], "at once 15 of 8 blocks of 1024 threads"),
    ],
)
def test_clusters_are_told_as_a_record(monkeypatch, capsys, capability, found, summary):
    monkeypatch.setattr(gpu, "require", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(nvcc, "compiled", lambda source, architecture: architecture)
    monkeypatch.setattr(clusters, "count", lambda library: found if library == "sm_90" else None)
    assert clusters.main() == 0
    assert json.loads(capsys.readouterr().out) == {"clusters": found, "summary": summary}


def test_launches_are_between_the_profilers_start_and_stop(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: calls.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: calls.append("stop"))
    for name in ("soft_binary_argmax", "hypersimplex_loss"):
        monkeypatch.setattr(launches, name, lambda *_, name=name: calls.append(name))
    launches.launches(torch.device("cpu"), ((2, 10, 3),), (6, 3))
    once = [["start", name, "stop"] for name in ("soft_binary_argmax", "hypersimplex_loss")]
    assert calls == ["soft_binary_argmax", *once[0], "hypersimplex_loss", *once[1]]
    assert capsys.readouterr().out == "==== projection, 2 x 10, k = 3\n==== loss, [6, 3]\n"


# ---- tests without pytest-xdist ----


def test_every_file_is_tested_in_a_process_of_its_own(tmp_path):
    files = {
        "passes": "def test_a(): pass\ndef test_b(): pass",
        "fails": "def test_a(): assert False\ndef test_b(): pass",
        "chooses_nothing": "def test_other(): pass",
        "ignored": "syntax error",
    }
    for name, content in files.items():
        (tmp_path / f"test_{name}.py").write_text(content)
    options = ["-q", "-p", "no:cacheprovider", f"--ignore={tmp_path}/test_ignored.py", "-k", "test_a or test_b"]
    runner = [sys.executable, "-m", "bench.speed.pytest_files", *options]
    done = subprocess.run([*runner, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert all(part in last for part in ("3 passed", "1 failed", " in "))
    assert "test_fails.py: FAILED" in done.stdout
    done = subprocess.run([*runner, tmp_path / "test_passes.py"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("2 passed in ")


def test_options_are_told_from_files():
    files, options = pytest_files.split(
        ["-k", "tests", "-q", "tests/test_pav.py", "tests/test_cpu.py::test_x", "--tb=short"]
    )
    assert files == ["tests/test_pav.py", "tests/test_cpu.py::test_x"]
    assert options == ["-k", "tests", "-q", "--tb=short"]
    files, _ = pytest_files.split(["tests", "--ignore=tests/test_pav.py"])
    assert "tests/test_pav.py" not in files
    assert "tests/test_cpu.py" in files
