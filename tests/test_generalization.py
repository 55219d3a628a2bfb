"""The commands that train: from end to end, on data sets in their true format, interrupted, with bad arguments."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.results import ResultsFile, environment
from bench.training import generalization, grid, sensitivity
from bench.training.data import load
from bench.training.generalization import main
from bench.training.grid import train_missing
from bench.training.training import Run, check, train

CPU = torch.device("cpu")


@pytest.fixture
def in_process(monkeypatch):
    """Train here, not in workers, each of which takes seconds to start."""

    def train_missing(runs, results, *, root, device, compiled, **_others):
        done = {Run.of(record) for record in results.records}
        for run in runs:
            if run not in done:
                results.append(train(run, load(run.data, root, run.seed), device, compiled=compiled))

    monkeypatch.setattr(generalization, "train_missing", train_missing)


def run_of(method="cross-entropy", batch_size=128, seed=0, epochs=1, lr=1e-3):
    return Run("digits", "small", method, batch_size, seed, epochs, lr)


# The command


def test_command_from_end_to_end(tmp_path, capsys, monkeypatch):
    command = ["--data", "digits", "--quick", "--losses", "cross-entropy", "hypersimplex", "--epochs", "1"]
    command += ["--batch-sizes", "full", "300", "--workers", "1", "--out", str(tmp_path / "out")]
    results, table = tmp_path / "out" / "results.jsonl", tmp_path / "out" / "table.md"
    pictures = [tmp_path / "out" / name for name in ("accuracy.png", "curves.png")]

    assert main(command) == 0
    printed = capsys.readouterr()
    assert "100%" in printed.err
    assert "4/4" in printed.err
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert {(record["batch_size"], record["method"]) for record in records} == {
        (size, method) for size in (300, 898) for method in ("cross-entropy", "hypersimplex")
    }
    assert all(len(record["train_loss"]) == 1 for record in records)
    ways = {"cross-entropy": {"argmax"}, "hypersimplex": {"running", "calibrated", "argmax"}}
    assert all(record["test"].keys() == ways[record["method"]] for record in records)
    assert table.read_text() in printed.out
    assert [line.split("|")[1].strip() for line in table.read_text().splitlines()[4:]] == ["300", "300", "898", "898"]
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG\r\n")
        picture.unlink()

    # Interrupted while the third record was being written: two runs are trained again, the others kept as they are.
    lines = results.read_bytes().splitlines(keepends=True)
    results.write_bytes(lines[0] + lines[1] + lines[2][:40])
    assert main(command) == 0
    assert "2/2" in capsys.readouterr().err
    resumed = results.read_bytes().splitlines(keepends=True)
    assert resumed[:2] == lines[:2]
    assert len(resumed) == 4

    # Complete: nothing is trained, table and pictures are made again, byte for byte the same results.
    monkeypatch.setattr(grid, "ProcessPoolExecutor", None)
    assert main(command) == 0
    assert results.read_bytes().splitlines(keepends=True) == resumed
    assert "training" not in capsys.readouterr().err
    assert all(picture.exists() for picture in pictures)
    with pytest.raises(TypeError):  # and with --fresh it would train: there is no pool here
        main([*command, "--fresh"])


def test_interruption_keeps_finished_runs_and_stops_the_workers(tmp_path):
    class Interrupted(ResultsFile):
        def append(self, record):
            super().append(record)
            raise KeyboardInterrupt

    runs = [run_of(batch_size=449), *(run_of(seed=seed, epochs=10_000) for seed in range(3))]
    with pytest.raises(KeyboardInterrupt):  # a worker that went on would take an hour
        train_missing(runs, Interrupted(tmp_path / "r.jsonl"), root=None, device=CPU, workers=2, threads=1)
    assert [Run.of(record) for record in ResultsFile(tmp_path / "r.jsonl").records] == runs[:1]


def test_workers_end_with_a_command_that_is_killed(tmp_path):
    command = [sys.executable, "-m", "bench.training", "--epochs", "10000", "--workers", "1", "--out", str(tmp_path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL)
    workers = []
    while not workers:
        assert process.poll() is None
        time.sleep(0.1)
        workers = [int(pid) for pid in children_of(process.pid) if "spawn_main" in command_of(pid)]
    process.kill()
    process.wait()
    for _ in range(600):
        if not any("spawn_main" in command_of(pid) for pid in workers):
            break
        time.sleep(0.1)
    else:
        pytest.fail("a worker outlived the command by a minute")


def children_of(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_interrupted_command_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(generalization, "train_missing", interrupt)
    for command, options in ((main, []), (sensitivity.main, ["--batch-size", "64", "--model", "small"])):
        assert command(["--data", "digits", "--out", str(tmp_path), *options]) == 130
        assert f"finished runs are in {tmp_path}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "cifar10"], "error: root: expected the folder with data_batch_1"),
        (["--data", "adult", "--root", "nowhere"], "error: root: expected the folder with adult.data"),
        (["--losses", "l1"], "error: loss: expected one of cross-entropy, smoothed, "),
        (["--losses", "hypersimplex@k=some"], "error: loss: expected one of cross-entropy, smoothed, "),
        (["--losses", "mse@tau=1"], "error: loss: expected one of cross-entropy, smoothed, "),
        (["--lr", "1e-3", "1e-2"], "error: held out: expected a share above 0 to choose a step size with, got 0"),
        (["--epochs", "1", "2"], "error: epochs: expected one number or 3, one for each batch size; got (1, 2)"),
        (["--batch-sizes", "899"], "error: batch sizes: expected at most the 898 training samples of digits, got 899"),
    ],
)
def test_command_reports_what_it_cannot_do(options, message, capsys):
    assert main(options) == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(
    "options",
    [
        ["--batch-sizes", "half"],
        ["--epochs", "0"],
        ["--lr", "nan"],
        ["--lr", "inf"],
        ["--held-out", "1"],
        ["--precision", "int8"],
    ],
)
def test_command_rejects_bad_options(options, capsys):
    with pytest.raises(SystemExit):
        main(options)
    assert options[1] in capsys.readouterr().err


@pytest.mark.usefixtures("in_process")
def test_step_size_is_chosen_by_validation(tmp_path, capsys):
    command = [
        "--losses",
        "cross-entropy",
        "fenchel-young",
        "--lr",
        "1e-5",
        "3e-3",
        "--held-out",
        "0.2",
        "--epochs",
        "2",
    ]
    command += ["--seeds", "0", "1", "2", "--batch-sizes", "64", "--model", "mlp", "--out", str(tmp_path)]
    assert main(command) == 0
    records = ResultsFile(tmp_path / "results.jsonl", check).records
    runs = [(record["method"], record["lr"], record["seed"]) for record in records]
    assert len(runs) == 2 * 2 + 2 * 2  # both step sizes at the first seed, the better one at the others
    assert {lr for _, lr, seed in runs if seed > 0} == {3e-3}
    assert all((record["train_samples"], record["held_out"]) == (718, 0.2) for record in records)
    assert all(len(record["validation"]["argmax"]) == 2 for record in records)
    table = capsys.readouterr().out
    assert "at the best epoch of validation, 3 seeds, 2 epochs" in table
    assert table.count("0.003") == 2


def test_epochs_of_other_batch_sizes(monkeypatch, tmp_path):
    """Those of the largest batch size in the protocol that is not larger."""
    seen = []
    monkeypatch.setattr(generalization, "trained", lambda runs, out, args: seen.extend(runs) or [])
    monkeypatch.setattr(generalization, "_report", lambda records, out: None)
    assert main(["--data", "letter", "--batch-sizes", "64", "512", "1024", "full", "--seeds", "0"]) == 0
    assert {(run.batch_size, run.epochs) for run in seen} == {(64, 20), (512, 20), (1024, 40), (13333, 80)}
    assert {run.lr for run in seen} == {3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1}


@pytest.mark.usefixtures("in_process")
def test_published_experiment_on_cifar10(tmp_path, capsys):
    """A dry run on files in the true format: the paper's settings but for length; 40 training and 8 test samples."""
    folder, rng = tmp_path / "cifar-10-batches-bin", np.random.default_rng(0)
    folder.mkdir()
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        records = rng.integers(0, 256, (8, 3073), dtype=np.uint8)
        records[:, 0] = rng.integers(0, 10, 8)
        (folder / name).write_bytes(records.tobytes())
    out = tmp_path / "out"
    command = ["--data", "cifar10", "--root", str(tmp_path), "--quick", "--batch-sizes", "20"]
    command += ["--losses", "cross-entropy", "hypersimplex-published", "--out", str(out)]
    assert main(command) == 0
    records = ResultsFile(out / "results.jsonl", check).records
    assert [(r["model"], r["augmented"], r["lr"], r["held_out"]) for r in records] == 2 * [("published", True, 1e-4, 0)]
    assert [(r["train_samples"], r["test_samples"], r["epochs"]) for r in records] == 2 * [(40, 8, 2)]
    assert "cifar10, published: maximum over the epochs, 1 seed, 2 epochs" in capsys.readouterr().out
    protocol = generalization.PROTOCOLS["cifar10"]["published"]
    assert (protocol.epochs, len(protocol.seeds), protocol.batch_sizes[-1]) == ((600,), 5, "8192")


@pytest.mark.usefixtures("in_process")
def test_sensitivity(tmp_path, capsys):
    command = ["--data", "digits", "--model", "mlp", "--batch-size", "256", "--epochs", "1", "--seeds", "0"]
    command += ["--taus", "1", "learned", "suggested", "--lr", "1e-3", "--out", str(tmp_path)]
    assert sensitivity.main(command) == 0
    records = ResultsFile(tmp_path / "results.jsonl", check).records
    assert len({record["method"] for record in records}) == len(records) == 2 * 3 * 3
    cells = [line.split("|")[1:-1] for line in (tmp_path / "table.md").read_text().splitlines()[4:]]
    assert [(line[0].strip(), line[1].strip()) for line in cells] == [
        (kind, k) for kind in ("squared", "Fenchel-Young") for k in ("targets", "0.5", "1/C")
    ]
    assert all(0 < float(cell) <= 100 for line in cells for cell in line[2:])
    assert (tmp_path / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out


# Results


def test_results_survive_a_torn_line(tmp_path):
    path = tmp_path / "folder" / "r.jsonl"
    results = ResultsFile(path)
    assert results.records == []
    results.append({"a": 1})
    results.append({"b": [float("nan")]})
    with path.open("a") as file:
        file.write('{"c": ')
    reopened = ResultsFile(path)
    assert reopened.records[0] == {"a": 1}
    assert math.isnan(reopened.records[1]["b"][0])
    reopened.append({"d": 2})
    assert ResultsFile(path).records[2:] == [{"d": 2}]


@pytest.mark.parametrize("line", ["{broken", "[1]"])
def test_results_reject_other_content(tmp_path, line):
    (tmp_path / "r.jsonl").write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"r\.jsonl, line 2: expected a JSON object, got"):
        ResultsFile(tmp_path / "r.jsonl")


def test_environment_is_json():
    assert json.loads(json.dumps(environment(CPU)))["torch"] == torch.__version__
