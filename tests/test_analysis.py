"""The statistics of training runs, and `python -m bench.training analyze`."""

import csv
import dataclasses
import json
import math
import re
import runpy
import sys

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from bench.training import analysis, scores
from bench.training.analysis import overview, significance
from bench.training.scores import Score, best_steps, cell_of, compare, format_table, holm, scores_of


def scores_from(cells, dataset="digits", **others):
    """Scores from {(batch size, loss): percent per seed}."""
    return [
        Score(dataset, "mlp", loss, size, seed, 3, value, last=value - 1, **others)
        for (size, loss), by_seed in cells.items()
        for seed, value in enumerate(by_seed)
    ]


def record_of(method="cross-entropy", batch_size=32, seed=0, lr=1e-3, test=(0.1, 0.7, 0.5), validation=None, **others):
    """A record as `train` returns it; `test` is the curve of every way to predict, the later ones a point lower."""
    ways = scores.method(method).predictions
    curves = {way: [value - 0.01 * i for value in test] for i, way in enumerate(ways)}
    record = {"data": "digits", "model": "small", "method": method, "batch_size": batch_size, "seed": seed, "lr": lr}
    record |= {"epochs": len(test), "held_out": 0.0, "precision": "float32", "augmented": False, "metric": "accuracy"}
    record |= {"train_samples": 9, "test_samples": 9, "train_loss": [1.0] * len(test), "active": None, "test": curves}
    return record | ({"validation": dict.fromkeys(ways, validation)} if validation else {}) | others


def test_what_a_run_reached():
    plain = record_of()
    validated = record_of("hypersimplex", validation=[0.9, 0.5, 0.5], active=[0.2, 0.4, 0.6], held_out=0.2)
    a, b = scores_of([plain, validated])
    assert (a.loss, a.max, a.last) == ("cross-entropy", pytest.approx(70), pytest.approx(50))
    assert math.isnan(a.selected)
    assert math.isnan(a.active)
    assert (b.loss, b.selected, b.max, b.active) == (
        "HyperSimplex, calibrated",
        pytest.approx(10),  # on the test set, at the epoch that is best in validation
        pytest.approx(70),
        pytest.approx(0.4),
    )
    every = scores_of([validated], every_prediction=True)
    assert [score.loss.split(", ")[1] for score in every] == ["calibrated", "calibrate()", "argmax"]
    assert [score.max for score in every] == pytest.approx([70, 69, 68])


def test_average_precision_where_a_class_is_rare():
    measures = {"argmax": [0.9, 0.9, 0.9], "average_precision": [0.2, 0.3, 0.1]}
    (score,) = scores_of([record_of(metric="average_precision", test_=0) | {"test": measures, "validation": measures}])
    assert (score.selected, score.last) == (pytest.approx(30), pytest.approx(10))


def test_step_size_of_the_best_validation_score_at_the_first_seed():
    records = [
        record_of(lr=0.1, validation=[0.5, 0.6, 0.5], test=(0.9, 0.9, 0.9)),
        record_of(lr=0.2, validation=[0.1, 0.7, 0.1]),
        record_of(lr=0.3, validation=[math.nan] * 3),
        record_of(lr=0.1, seed=1, validation=[0.9, 0.9, 0.9]),
        record_of("mse", lr=0.3, validation=[0.1, 0.1, 0.1]),
    ]
    steps = best_steps(records)
    assert [steps[cell_of(records[i])] for i in (0, 4)] == [0.2, 0.3]


def test_comparison():
    ours, theirs = [92.0, 95.0, 91.0], [90.0, 91.0, 92.0]
    base, row = compare(scores_from({(32, "cross-entropy"): theirs, (32, "MSE"): ours}))
    test = ttest_1samp(np.subtract(ours, theirs), 0)
    assert (row.mean, row.sd, row.last) == (np.mean(ours), np.std(ours, ddof=1), np.mean(ours) - 1)
    assert row.difference == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert (row.t, row.p, row.p_holm) == pytest.approx((test.statistic, test.pvalue, test.pvalue))
    assert all(math.isnan(value) for value in (base.difference, base.t, base.p, base.p_holm))
    other, _ = compare(scores_from({(32, "cross-entropy"): theirs, (32, "MSE"): ours}), baseline="MSE")
    assert other.t == pytest.approx(-row.t)


def test_comparison_pairs_by_seed():
    runs = scores_from({(32, "cross-entropy"): [90.0, 80.0, 70.0], (32, "MSE"): [91.0, 83.0, 75.0]})
    shuffled = [runs[i] for i in (2, 0, 1, 4, 5, 3)]
    for some in (shuffled, shuffled[1:]):  # without the baseline's seed 2, seeds 0 and 1 are left to compare
        common = [score.seed for score in some if score.loss == "cross-entropy"]
        differences = np.array([1.0, 3.0, 5.0])[sorted(common)]
        row = compare(some)[1]
        assert row.difference == pytest.approx(differences.mean())
        assert row.p == pytest.approx(ttest_1samp(differences, 0).pvalue)


@pytest.mark.parametrize(
    ("cells", "undefined"),
    [
        ({(32, "cross-entropy"): [90.0], (32, "MSE"): [80.0]}, {"sd", "t", "p", "p_holm"}),
        ({(32, "cross-entropy"): [90.0, 80.0], (32, "MSE"): [80.0, 70.0]}, {"t", "p", "p_holm"}),
        (
            {(64, "cross-entropy"): [90.0, 80.0], (32, "MSE"): [80.0, 70.0]},
            {"difference", "t", "p", "p_holm"},
        ),
    ],
)
def test_comparison_leaves_undefined_numbers_out(cells, undefined):
    row = vars(compare(scores_from(cells))[1])
    names = {name for name, value in row.items() if isinstance(value, float) and math.isnan(value)}
    assert names - {"selected", "lr", "active"} == undefined


def test_holm():
    """The example of the definition: the i-th smallest of m is multiplied by m - i + 1, never below its predecessor."""
    assert holm([0.04, 0.01, math.nan, 0.03, 0.005]) == pytest.approx([0.06, 0.03, math.nan, 0.06, 0.02], nan_ok=True)
    assert holm([0.5, 0.6, 0.7]) == [1.0, 1.0, 1.0]
    assert holm([]) == []


def test_holm_counts_the_comparisons_of_one_table():
    cells = {
        (32, "cross-entropy"): [90.0, 91.0, 92.5],
        (32, "MSE"): [91.0, 93.0, 94.0],
        (32, "hinge"): [80.0, 85.0, 83.0],
    }
    alone = compare(scores_from(cells))
    both = compare(scores_from(cells) + scores_from(cells, dataset="letter"))
    assert [row.p_holm for row in both[:3]] == pytest.approx([row.p_holm for row in alone], nan_ok=True)
    assert [row.p_holm for row in alone[1:]] == holm([row.p for row in alone[1:]])


def test_table():
    row = compare(scores_from({(32, "MSE"): [98.0, 99.0]}))[0]
    row = dataclasses.replace(row, mean=98.765, sd=0.1, last=97.0, difference=0.4, p_holm=0.0312)
    other = dataclasses.replace(row, sd=math.nan, difference=-1.0, p_holm=1e-5)
    third = dataclasses.replace(row, difference=math.nan, p_holm=math.nan)
    lines = format_table([row, other, third]).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["batch", "loss", "test score, %", "to baseline, points", "p (Holm)", "last epoch, %"]
    assert cells[2] == ["32", "MSE", "98.77 ± 0.10", "+0.40", "0.031", "97.00"]
    assert cells[3] == ["32", "MSE", "98.77", "-1.00", "<.001", "97.00"]
    assert cells[4][3:5] == ["-", "-"]
    validated = dataclasses.replace(row, selected=98.765, lr=3e-4, active=0.25)
    assert format_table([validated]).splitlines()[0].count("|") == 10


def test_significance():
    cells = {
        (32, "cross-entropy"): [90.0, 91.0, 92.5, 91.0],
        (32, "MSE"): [92.0, 93.1, 94.4, 93.0],
        (64, "cross-entropy"): [80.0, 81.0, 82.5, 81.0],
        (64, "MSE"): [78.0, 79.1, 80.4, 79.0],
    }
    rows = compare(scores_from(cells))
    lines = overview(rows, 0.05).splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert found[0] == ["data", "batch", "cross-entropy", "MSE"]
    assert found[2:] == [["digits, mlp", "32", "91.12", "93.12+"], ["digits, mlp", "64", "81.12", "79.12-"]]
    lines = significance(rows, 0.05).splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert found[0] == ["loss", "better at 0.05", "worse at 0.05", "smallest - largest batch, points"]
    assert found[2] == ["cross-entropy", "-", "-", "10.00"]
    assert found[3] == ["MSE", "1 of 2 (50%)", "1 of 2 (50%)", "14.00"]


# The command


def test_command_on_records(tmp_path, capsys):
    records = [
        record_of(method, size, seed, lr, test=(0.5 + 0.01 * seed, 0.6 + gain + 0.011 * seed), validation=[0.1, lr])
        for size in (32, 256)
        for method, gain in (("cross-entropy", 0.0), ("hypersimplex", 0.02))
        for lr in (0.1, 0.2)
        for seed in (range(3) if lr == 0.2 else range(1))
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert analysis.main([str(path), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "digits, small: at the best epoch of validation, 3 seeds, 2 epochs" in printed
    assert (tmp_path / "out" / "comparison.md").read_text() == printed
    assert (tmp_path / "out" / "accuracy-digits-small.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["batch_size"], row["loss"], row["seeds"], row["lr"]) for row in rows] == [
        (size, loss, "3", "0.2") for size in ("32", "256") for loss in ("cross-entropy", "HyperSimplex, calibrated")
    ]
    assert float(rows[1]["difference"]) == pytest.approx(2)
    assert rows[0]["t"] == ""

    assert analysis.main([str(path), "--by", "last", "--baseline", "hypersimplex", "--predictions"]) == 0
    printed = capsys.readouterr().out
    assert "after the last epoch" in printed
    assert "HyperSimplex, argmax" in printed
    assert "Baseline: HyperSimplex, calibrated." in printed


CSV = """\
loss,dataset,batch_size,seed,max_accuracy,epochs
a,x,32,0,0.90,5
a,x,32,1,0.91,5
b,x,32,0,0.92,5
b,x,32,1,0.94,5
"""


@pytest.mark.parametrize("percent", [False, True])
def test_command_on_csv(tmp_path, capsys, percent):
    path = tmp_path / "runs.csv"
    path.write_text(re.sub(r"0\.(\d\d)", r"\1.0", CSV) if percent else CSV)
    assert analysis.main([str(path), "--baseline", "a", "--level", "0.3"]) == 0
    printed = capsys.readouterr().out
    assert "x: maximum over the epochs, 2 seeds, 5 epochs" in printed
    assert "+2.50" in printed
    assert "better at 0.3" in printed


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "r.csv",
            CSV.replace("seed", "Seed"),
            "expected the columns loss, dataset, batch_size, seed, max_accuracy, epochs",
        ),
        ("r.csv", CSV.replace("0.91", "good"), "r.csv, line 3: expected a run, got could not convert"),
        ("r.csv", CSV.replace("0.91", "nan"), "r.csv, line 3: expected a run, got an accuracy of nan"),
        ("r.csv", CSV.replace("0.91", "191"), "r.csv, line 3: expected a run, got an accuracy of 191"),
        ("r.csv", CSV + "b,x\n", "r.csv, line 6: expected a run"),
        ("r.csv", CSV, "baseline: expected one of a, b; got 'cross-entropy'"),
        ("r.jsonl", '{"data": 1}\n', "r.jsonl, line 1: lacks 'model'"),
        ("r.jsonl", "{\n", "r.jsonl, line 1: expected a JSON object"),
        ("none.jsonl", None, "none.jsonl: no such file"),
        ("none.csv", None, "No such file"),
    ],
)
def test_command_names_what_it_cannot_read(tmp_path, capsys, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    assert analysis.main([str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_module_has_three_commands(monkeypatch, capsys):
    for arguments, usage in (
        (["analyze"], "analyze"),
        (["sensitivity", "-h"], "sensitivity"),
        (["--data", "none"], "[-h]"),
    ):
        monkeypatch.setattr(sys, "argv", ["bench.training", *arguments])
        with pytest.raises(SystemExit):
            runpy.run_module("bench.training", run_name="__main__")
        printed = capsys.readouterr()
        assert f"usage: python -m bench.training {usage}" in printed.out + printed.err
