"""The benchmark: that it works end to end, that what it compares agrees, and the memory that the operators take.

Nothing here looks at a time.
"""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bench.__main__ as command
from bench.results import ResultsFile
from bench.speed import cases, figures, measure, peers, tables
from bench.speed.cases import Case
from bench.speed.contender import OURS, Contender, Prepared
from bench.speed.measure import Effort, peak_memory
from bench.training import generalization
from bench.training.training import Run
from hypersimplex_ext import hypersimplex_loss, soft_binary_argmax

EFFORT = Effort(rounds=1, seconds=0.0)
CASE = Case("mass", 3, 20, 5)
MIB = 1 << 20
ROOT = Path(__file__).parents[1]
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is told by Linux alone")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("smoke")
    assert command.main(["--smoke", "--out", str(out)]) == 0
    return out


def records_of(folder):
    return ResultsFile(folder / "results.jsonl").records


def contender(y, gradient=None):
    """A contender for the projection that returns these results."""
    prepared = Prepared(lambda: y, lambda: y if gradient is None else gradient)
    return Contender(lambda case, x, v, classes: prepared)


def test_parts_of_the_overhead_add_up(smoke):
    (record,) = [r for r in records_of(smoke) if r["case"]["group"] == "loss-overhead"]
    *parts, everything = record["parts"].values()
    assert sum(parts) == pytest.approx(everything)
    assert min(record["parts"][name] for name in ("core", "autograd")) > 0
    (header,) = [line for line in tables.tables(records_of(smoke)).splitlines() if "parts of forward" in line]
    assert [cell.strip() for cell in header.split("|")[2:-1]] == list(record["parts"])


def test_smoke_run_agrees(smoke):
    records = records_of(smoke)
    assert [Case(**record["case"]) for record in records] == cases.SMOKE
    for record in records:
        tolerance = measure.TOLERANCES[record["case"]["dtype"]]
        same = 0
        for name, system in record["systems"].items():
            assert "failure" not in system, (name, system)
            if system["same"]:
                same += 1
                assert system["error"] <= tolerance
                assert system["gradient_error"] is None or system["gradient_error"] <= tolerance
            if record["case"]["group"] != "memory":
                assert 0 < system["both"]["p20"] <= system["both"]["median"] <= system["both"]["p80"]
        assert same >= (3 if record["case"]["group"] in {"peers", "memory"} else 1)
    assert any(record["systems"][OURS]["gradient_error"] is not None for record in records)


def test_smoke_run_draws_and_prints(smoke, capsys):
    for name in ("length", "peers", "memory", "bandwidth", "accuracy", "loss-grid"):
        assert (smoke / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert command.main(["table", "--smoke", "--out", str(smoke)]) == 0
    printed = capsys.readouterr().out
    for record in records_of(smoke):
        assert Case(**record["case"]).label in printed or record["case"]["group"] == "loss-grid"
    lines = printed.splitlines()
    for above, line in itertools.pairwise(lines):
        if above.startswith("|") and line.startswith("|"):
            assert len(above) == len(line)


def test_a_finished_run_measures_nothing(smoke, monkeypatch):
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("measured again"))
    command.run(cases.SMOKE, command.EFFORTS["smoke"][1], ResultsFile(smoke / "results.jsonl"))


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, capsys):
    arguments = ["--smoke", "--groups", "mass", "--out", str(tmp_path)]
    planned = [case for case in cases.SMOKE if case.group == "mass"]

    def interrupted(case, effort):
        if case == planned[2]:
            raise KeyboardInterrupt
        return measure.measure(case, effort)

    monkeypatch.setattr(command, "measure", interrupted)
    assert command.main(arguments) == 130
    assert "goes on from there" in capsys.readouterr().out
    before = records_of(tmp_path)
    assert [Case(**record["case"]) for record in before] == planned[:2]

    monkeypatch.setattr(command, "measure", measure.measure)
    assert command.main(arguments) == 0
    after = records_of(tmp_path)
    assert after[:2] == before
    assert [Case(**record["case"]) for record in after] == planned


@pytest.mark.parametrize("field", ["build", "versions", "device"])
def test_another_origin_is_measured_again_and_kept_apart(tmp_path, field):
    path = tmp_path / "results.jsonl"
    command.run([CASE], EFFORT, ResultsFile(path))
    other = json.loads(path.read_text())
    other[field] = {"other": "1"}
    path.write_text(json.dumps(other) + "\n")
    command.run([CASE], EFFORT, ResultsFile(path))
    records = ResultsFile(path).records
    assert len(records) == 2
    assert command.newest([CASE, dataclasses.replace(CASE, k=6)], records) == records[1:]


def test_table_without_results(tmp_path, capsys):
    assert command.main(["table", "--smoke", "--out", str(tmp_path)]) == 2
    assert "measure first" in capsys.readouterr().err


# ---- the results file ----


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"case": ', "expected a JSON object, got"),
        ("[1]", "expected a JSON object, got"),
        ("\xff", "'utf-8' codec can't decode"),
        ("[" * 100_000, "maximum recursion depth exceeded"),
        ("{}", "lacks 'case'"),
        ('{"case": {"colour": 1}}', "unexpected keyword argument 'colour'"),
        ('{"case": {"group": "mass", "vectors": 3, "n": [], "k": 5}}', "unhashable type: 'list'"),
        ('{"case": {"group": "mass", "vectors": 3, "n": 20, "k": 5}}', "lacks 'device'"),
    ],
)
@pytest.mark.parametrize("arguments", [["--smoke", "--groups", "mass"], ["table", "--smoke"]], ids=["run", "table"])
def test_a_malformed_results_file_is_named_with_its_line(smoke, tmp_path, capsys, arguments, line, message):
    path, good = tmp_path / "results.jsonl", (smoke / "results.jsonl").read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(good + line.encode("latin-1") + b"\n" + good)
    before = path.read_bytes()
    assert command.main([*arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"error: {path}, line 2: " in error
    assert message in error
    assert path.read_bytes() == before


def test_a_malformed_results_file_of_the_experiment_is_named_with_its_line(tmp_path, capsys):
    run = dataclasses.asdict(Run("digits", "small", "mse", 32, 0, epochs=2, lr=1e-3))
    record = {**run, "train_samples": 1, "test_samples": 1, "train_loss": [1, 2], "test": {"argmax": [0.5]}}
    (tmp_path / "results.jsonl").write_text(json.dumps(record) + "\n")
    assert generalization.main(["--data", "digits", "--quick", "--out", str(tmp_path)]) == 2
    assert f"error: {tmp_path / 'results.jsonl'}, line 1: argmax: expected 2 values" in capsys.readouterr().err


def test_opening_a_results_file_leaves_the_line_that_another_writes(tmp_path):
    path = tmp_path / "results.jsonl"
    line = json.dumps({"record": 1}).encode() + b"\n"
    with path.open("ab", buffering=0) as writer:
        writer.write(line[:5])
        assert ResultsFile(path).records == []
        writer.write(line[5:])
    assert ResultsFile(path).records == [{"record": 1}]


def test_two_processes_append_whole_lines(tmp_path):
    """Each line longer than a buffer, while a third looks on."""
    path = tmp_path / "results.jsonl"
    code = f"""
import pathlib, sys
from bench.results import ResultsFile
results = ResultsFile(pathlib.Path({str(path)!r}))
for i in range(50):
    results.append({{"writer": sys.argv[1], "number": i, "padding": "x" * 20000}})
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, name], cwd=ROOT) for name in "ab"]
    while any(writer.poll() is None for writer in writers):
        ResultsFile(path)
    assert [writer.returncode for writer in writers] == [0, 0]
    records = ResultsFile(path).records
    for name in "ab":
        assert [record["number"] for record in records if record["writer"] == name] == list(range(50))


def test_the_same_case_draws_the_same():
    for first, second in zip(CASE.draw(), CASE.draw(), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(CASE.draw()[0], dataclasses.replace(CASE, k=6).draw()[0])


@pytest.mark.parametrize("inputs", cases.INPUTS)
def test_every_input_agrees(inputs):
    record = measure.measure(Case("inputs", 3, 500, 100, inputs=inputs), EFFORT)
    assert record["systems"][OURS]["error"] <= 2e-6


def test_tables_hold_every_case_once():
    for table in (cases.SMOKE, cases.QUICK, cases.FULL):
        assert len(set(table)) == len(table)
        assert {case.group for case in table} <= set(peers.GROUPS)


def test_a_wrong_peer_is_not_timed(monkeypatch):
    x, v, _ = CASE.draw()
    y = soft_binary_argmax(x, CASE.k)
    wrong = {
        "shifted": contender(y + 0.001),
        "nan": contender(torch.full_like(y, torch.nan)),
        "wrong gradient": contender(y, v),
        "raises": Contender(lambda *_: 1 / 0),
    }
    monkeypatch.setitem(peers.FIELDS, "projection", {OURS: peers.CONTENDERS[OURS], **wrong})
    monkeypatch.setitem(peers.GROUPS, "mass", (OURS, *wrong))
    systems = measure.measure(CASE, EFFORT)["systems"]
    assert "forward" in systems[OURS]
    for name in wrong:
        assert set(systems[name]) == {"failure"}
    assert "1.0e-03" in systems["shifted"]["failure"]
    assert "gradient_error" in systems["wrong gradient"]["failure"]


def test_being_wrong_ourselves_ends_the_run(monkeypatch, tmp_path, capsys):
    case = cases.SMOKE[0]
    monkeypatch.setitem(peers.CONTENDERS, OURS, contender(torch.zeros(case.vectors, case.n)))
    assert command.main(["--smoke", "--groups", "peers", "--out", str(tmp_path)]) == 1
    assert "against float64" in capsys.readouterr().err
    assert records_of(tmp_path) == []


def test_an_absent_peer_is_named(monkeypatch, tmp_path, capsys):
    missing = dataclasses.replace(peers.CONTENDERS["torch.topk"], package="no-such-package", module="no_such_package")
    monkeypatch.setitem(peers.CONTENDERS, "torch.topk", missing)
    assert command.main(["--smoke", "--groups", "mass", "--out", str(tmp_path)]) == 0
    assert "torch.topk: absent, see bench/requirements-peers.txt" in capsys.readouterr().out
    assert all("torch.topk" not in record["systems"] for record in records_of(tmp_path))


def test_ratios_are_those_within_the_rounds():
    summary = measure._summarise({OURS: [1.0, 2.0, 9.0, 4.0, 5.0], "peer": [3.0, 6.0, 27.0]})
    assert summary["peer"]["ratio"] == 3
    assert summary["peer"]["samples"] == 3
    assert summary[OURS]["median"] == 4
    assert summary[OURS]["ratio"] == 1


def test_a_contender_over_its_time_drops_out_after_three_rounds():
    slow = torch.zeros(1 << 20)
    samples = measure._alternate({"slow": lambda: slow.add_(1), "none": lambda: None}, Effort(rounds=5, seconds=0.0))
    assert {name: len(times) for name, times in samples.items()} == {"slow": 3, "none": 3}
    samples = measure._alternate({"none": lambda: None}, Effort(rounds=5, seconds=60.0))
    assert len(samples["none"]) == 5


def test_a_contender_that_takes_seconds_is_called_once():
    class Clock:
        def calls(self, seconds):
            return 1

        def time(self, function, calls):
            return function()

    samples = measure._alternate({"slow": lambda: 9.0, "fast": lambda: 0.5}, Effort(rounds=4, seconds=60.0), Clock())
    assert samples == {"slow": [9.0], "fast": [0.5] * 4}


def test_figures_of_nothing(tmp_path):
    assert figures.draw([], tmp_path) == []


@pytest.mark.parametrize(
    ("value", "expected"), [(2.0, "2.00 s"), (0.0123, "12.3 ms"), (4.56e-6, "4.56 µs"), (7e-8, "0.07 µs")]
)
def test_seconds(value, expected):
    assert tables.seconds(value) == expected


# ---- memory ----


@linux
@pytest.mark.parametrize("temporaries", [0, 1, 3])
def test_peak_memory_counts_temporaries(temporaries):
    x = torch.zeros(8 * MIB)

    def function():
        held = [x + 1 for _ in range(temporaries)]
        return x + len(held)

    assert abs(peak_memory(function) - (1 + temporaries) * 32 * MIB) < 2 * MIB


@linux
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "dim", "k"),
    [((16, 1 << 18), 1, 5), ((1, 1 << 22), 1, 1 << 21), ((1 << 14, 256), 1, 128), ((1 << 18, 16), 0, 1 << 17)],
)
def test_projection_keeps_nothing_per_element(shape, dim, k, dtype):
    """Forward and backward take the result, the gradient, and some numbers per vector."""
    x = torch.randn(shape).to(dtype).requires_grad_()
    v = torch.randn(shape).to(dtype)
    peak = peak_memory(lambda: torch.autograd.grad(soft_binary_argmax(x, k, dim=dim), x, v))
    assert peak <= 2 * x.nbytes + 64 * shape[1 - dim] + 4 * MIB


@linux
@pytest.mark.parametrize("kind", ["squared", "fenchel_young"])
@pytest.mark.parametrize(("samples", "scratch"), [(1 << 16, 4), (1 << 18, 16), (1 << 20, 16)])
def test_loss_keeps_nothing_per_element(kind, samples, scratch):
    """Forward and backward take the gradient, some numbers per class, and scratch that does not grow with the batch."""
    x = torch.randn(samples, 64, requires_grad=True)
    target = torch.randint(64, (samples,))
    peak = peak_memory(lambda: torch.autograd.grad(hypersimplex_loss(x, target, kind=kind), x))
    assert peak <= x.nbytes + scratch * MIB
