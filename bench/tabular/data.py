"""The tables by name, split into training, validation and test.

`digits` and `breast-cancer` come with scikit-learn; `letter`, `magic`, `penbased`, `spambase` and `flights` with the
packages of bench/requirements-data.txt; `synthetic` is drawn. The others are the paper's, read from files as their
publishers distribute them, of which `--root` holds one for training and, where there is one, one for testing. No file
is trusted: what is not in its format is a ValueError that names file and line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.tabular import files
from bench.training import data as images_and_tables

Array = npt.NDArray[Any]

VALIDATION, TEST = 0.2, 0.2  # shares of all rows, where there is no file to test with


@dataclasses.dataclass(frozen=True)
class Table:
    """A classification task.

    Attributes:
        x: features by part, "train", "validation" and "test": arrays [n, F], or sparse matrices.
        y: class indices by part, [n].
        classes: how many there are.
    """

    x: dict[str, Any]
    y: dict[str, Array]
    classes: int


def load(name: str, seed: int, root: Path | None = None, rows: int | None = None) -> Table:
    """Load a table by name, split by `seed`, from the first `rows` rows of a file.

    Raises:
        ValueError: the name is not known, there is no folder, or a file does not have its format.
        FileNotFoundError: files are missing; the message lists them and where they come from.
    """
    if name not in TABLES:
        raise ValueError(f"data: expected one of {', '.join(TABLES)}; got {name!r}")
    return TABLES[name](seed, root, rows)


Loader = Callable[[int, Path | None, int | None], Table]


def split(x: Any, y: Array, seed: int, test: tuple[Any, Array] | None = None) -> Table:
    """Draw validation rows, and test rows where there are none, in the proportions of the classes."""
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    counts = np.bincount(y)
    if len(counts) < 2 or counts.min() < 5:
        raise ValueError(f"data: expected 5 rows or more of each of two classes or more, got {counts.tolist()}")
    if test is None:
        x, test_x, y, test_y = train_test_split(x, y, test_size=TEST, stratify=y, random_state=seed)
        test = test_x, test_y
    share = VALIDATION / (1 - TEST)
    train_x, own_x, train_y, own_y = train_test_split(x, y, test_size=share, stratify=y, random_state=seed)
    parts_x, parts_y = (train_x, own_x, test[0]), (train_y, own_y, test[1])
    names = ("train", "validation", "test")
    return Table(dict(zip(names, parts_x, strict=True)), dict(zip(names, parts_y, strict=True)), len(counts))


def _of_scikit_learn(name: str) -> Loader:
    def loader(seed: int, _root: Path | None, rows: int | None) -> Table:
        from sklearn import datasets  # type: ignore[import-untyped]

        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        return split(x[:rows], y[:rows], seed)

    return loader


def _of_packages(name: str) -> Loader:
    """What `bench.training` reads, with its test set; trees do not care about standardised features."""

    def loader(seed: int, root: Path | None, rows: int | None) -> Table:
        found = images_and_tables.load(name, root, seed)
        x, y, test_x, test_y = (t.numpy() for t in (found.train_x, found.train_y, found.test_x, found.test_y))
        return split(x[:rows], y[:rows], seed, (test_x, test_y))

    return loader


def _spambase(seed: int, root: Path | None, rows: int | None) -> Table:
    x, y = files.keel("spambase", root, rows)
    return split(x, y, seed)


def _synthetic(seed: int, _root: Path | None, rows: int | None) -> Table:
    """20 features, of which half say something about a label that is wrong in a tenth of the rows."""
    rng = np.random.default_rng(seed)
    rows = rows or 100_000
    x = rng.standard_normal((rows, 20), np.float32)
    signal = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + x[:, 3:10].sum(1) / 3
    y = ((signal > 0) ^ (rng.random(rows) < 0.1)).astype(np.int64)
    return split(x, y, seed)


def _of_files(read: files.Reader) -> Loader:
    def loader(seed: int, root: Path | None, rows: int | None) -> Table:
        (x, y), test = read(root, rows)
        return split(x, y, seed, test)

    return loader


TABLES: dict[str, Loader] = {
    "breast-cancer": _of_scikit_learn("breast_cancer"),
    "digits": _of_scikit_learn("digits"),
    "letter": _of_packages("letter"),
    "magic": _of_packages("magic"),
    "penbased": _of_packages("penbased"),
    "spambase": _spambase,
    "flights": _of_packages("flights"),
    "synthetic": _synthetic,
    **{name: _of_files(read) for name, read in files.READERS.items()},
}
