"""The data sets of the experiments, each read from its own published file format into tensors.

`digits` comes with scikit-learn. The others are read from a folder (`root`) that holds the files as their publishers
distribute them; nothing is downloaded. No file is trusted: of each, no more is read or unpacked than the publisher's
holds, nothing in it is run, and one that is not in its format is a ValueError that names the file and what is wrong.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification task, split into training and test samples.

    Attributes:
        train_x: float32, images [N, channels, height, width] or features [N, F], standardised.
        train_y: int64 class indices [N].
        test_x: as train_x, standardised with the training set's mean and standard deviation.
        test_y: as train_y.
        num_classes: number of classes.
        crop_padding: pixels of reflect padding before a random crop in training; 0 means no crop.
        flip: whether training mirrors images at random.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int
    crop_padding: int = 0
    flip: bool = False

    def to(self, device: torch.device) -> Dataset:
        """Return the same data set with its tensors on `device`."""
        return dataclasses.replace(
            self,
            train_x=self.train_x.to(device),
            train_y=self.train_y.to(device),
            test_x=self.test_x.to(device),
            test_y=self.test_y.to(device),
        )


def load(name: str, root: Path | None = None, seed: int = 0) -> Dataset:
    """Load a data set by name.

    Args:
        name: one of `DATASETS`.
        root: folder that holds the files, or the folder they unpack into; `digits` needs none.
        seed: draws the split of `digits`; the others come with theirs.

    Raises:
        ValueError: the name is not known, root is missing, or a file does not have its format.
        FileNotFoundError: files are missing; the message lists them and where they come from.
    """
    if name not in DATASETS:
        raise ValueError(f"data: expected one of {', '.join(DATASETS)}; got {name!r}")
    return DATASETS[name](root, seed)


def _digits(_root: Path | None, seed: int) -> Dataset:
    """1797 grey images of 8 x 8, 10 classes: a stratified half for training, the other for testing."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=0.5, stratify=labels, random_state=seed
    )
    return _from_images(train_x, train_y, test_x, test_y, num_classes=10)


_CIFAR_CLASSES = 10
_CIFAR_RECORD = 1 + 3 * 32 * 32
_CIFAR_RECORDS = 10_000


def _cifar10(root: Path | None, _seed: int) -> Dataset:
    """50,000 + 10,000 colour images of 32 x 32, 10 classes, in the publisher's "binary version"."""
    train_names = [f"data_batch_{i}.bin" for i in range(1, 6)]
    folder = _folder(
        root,
        ["cifar-10-batches-bin"],
        [*train_names, "test_batch.bin"],
        "cifar-10-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html, unpacked",
    )
    train = [_read_cifar_batch(folder / name) for name in train_names]
    test_x, test_y = _read_cifar_batch(folder / "test_batch.bin")
    train_x, train_y = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return _from_images(train_x, train_y, test_x, test_y, _CIFAR_CLASSES, crop_padding=4, flip=True)


def _read_cifar_batch(path: Path) -> tuple[Array, Array]:
    """Read records of 3073 bytes: the label; 1024 pixels each of red, green and blue, row by row."""
    limit = _CIFAR_RECORDS * _CIFAR_RECORD
    with _opened(path) as file:
        content = file.read(limit + 1)
    if not content or len(content) % _CIFAR_RECORD:
        raise ValueError(
            f"{path}: expected at most {_CIFAR_RECORDS} records of {_CIFAR_RECORD} bytes, got {_size(content, limit)}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)
    _check_labels(path, records[:, 0], _CIFAR_CLASSES)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def _size(content: bytes, limit: int) -> str:
    return f"{len(content)} bytes" if len(content) <= limit else f"more than {limit} bytes"


def _check_labels(path: Path, labels: Array, num_classes: int) -> None:
    if labels.max() >= num_classes:
        sample = int((labels >= num_classes).argmax())
        raise ValueError(f"{path}: expected labels below {num_classes}, got {labels[sample]} for sample {sample}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[gzip.GzipFile | io.BufferedReader]:
    """A file to read, unpacked as it is read if its name ends in .gz."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected a complete gzip file; {error}") from error


def _mnist(root: Path | None, _seed: int) -> Dataset:
    """70,000 handwritten digits."""
    source = "https://yann.lecun.com/exdb/mnist/ or its mirror https://ossci-datasets.s3.amazonaws.com/mnist/"
    return _idx_images(root, "MNIST", source, flip=False)


def _fashion_mnist(root: Path | None, _seed: int) -> Dataset:
    """70,000 pictures of clothes."""
    return _idx_images(root, "FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist", flip=True)


_IDX_CLASSES = 10
_IDX_SAMPLES = 60_000


def _idx_images(root: Path | None, subfolder: str, source: str, *, flip: bool) -> Dataset:
    """60,000 + 10,000 grey images of 28 x 28, 10 classes, in the idx format, gzipped or not."""
    names = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    folder = _folder(root, [subfolder, f"{subfolder}/raw"], names, source, suffixes=(".gz", ""))
    paths = [next(path for path in (folder / f"{name}.gz", folder / name) if path.exists()) for name in names]
    arrays = []
    for images, labels in (paths[:2], paths[2:]):
        x, y = _read_idx(images, (28, 28)), _read_idx(labels, ())
        if len(y) != len(x):
            raise ValueError(f"{labels}: expected {len(x)} labels, one for each image of {images.name}, got {len(y)}")
        _check_labels(labels, y, _IDX_CLASSES)
        arrays += [x[:, None], y]
    train_x, train_y, test_x, test_y = arrays
    return _from_images(train_x, train_y, test_x, test_y, _IDX_CLASSES, crop_padding=3, flip=flip)


def _read_idx(path: Path, sample: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Read an idx file of bytes that holds samples of this shape.

    The header is 0, 0, type 8 (bytes), the number of dimensions, and each length as big-endian uint32. The values
    follow; no more are read than it announces.
    """
    kind, length = bytes((0, 0, 8, 1 + len(sample))), 4 * (2 + len(sample))
    with _opened(path) as file:
        header = file.read(length)
        if len(header) < length or header[:4] != kind:
            raise ValueError(f"{path}: expected an idx file of bytes ({kind.hex(' ')} ..), got {header[:4].hex(' ')}")
        shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(4, length, 4))
        if not 0 < shape[0] <= _IDX_SAMPLES or shape[1:] != sample:
            expected = f"1 to {_IDX_SAMPLES} samples of shape {list(sample)}"
            raise ValueError(f"{path}: expected {expected}, got an array of shape {list(shape)}")
        limit = math.prod(shape)
        content = file.read(limit + 1)
    if len(content) != limit:
        raise ValueError(f"{path}: expected {limit} bytes for shape {list(shape)}, got {_size(content, limit)}")
    return np.frombuffer(content, np.uint8).reshape(shape)


_ADULT_NUMERIC = (0, 2, 4, 10, 11, 12)
_ADULT_COLUMNS = 15
_ADULT_BYTES = 1 << 23
_ADULT_CATEGORIES = 100  # of one column; the publisher's have up to 42


def _adult(root: Path | None, _seed: int) -> Dataset:
    """32,561 + 16,281 people of the 1994 census, 2 classes (income above 50,000 dollars): numbers and categories.

    Numbers are standardised; a category becomes one column per value seen in training ("?" is a value of its own).
    """
    folder = _folder(
        root, ["adult"], ["adult.data", "adult.test"], "https://archive.ics.uci.edu/dataset/2/adult, unpacked"
    )
    train, test = _read_adult(folder / "adult.data"), _read_adult(folder / "adult.test")
    train_columns: list[Array] = []
    test_columns: list[Array] = []
    for column in range(_ADULT_COLUMNS - 1):
        seen, unseen = [row[column] for row in train], [row[column] for row in test]
        if column in _ADULT_NUMERIC:
            train_columns.append(np.array(seen, np.float64)[:, None])
            test_columns.append(np.array(unseen, np.float64)[:, None])
            continue
        values = sorted(set(seen))
        if len(values) > _ADULT_CATEGORIES:
            expected = f"at most {_ADULT_CATEGORIES} different values in column {column + 1}"
            raise ValueError(f"{folder / 'adult.data'}: expected {expected}, got {len(values)}")
        train_columns.append(np.array([[value == v for v in values] for value in seen]))
        test_columns.append(np.array([[value == v for v in values] for value in unseen]))
    return _from_features(
        np.concatenate(train_columns, axis=1, dtype=np.float64),
        np.array([row[-1] == ">50K" for row in train]),
        np.concatenate(test_columns, axis=1, dtype=np.float64),
        np.array([row[-1] == ">50K" for row in test]),
        num_classes=2,
    )


def _read_adult(path: Path) -> list[list[str]]:
    """Read rows of 15 comma-separated values; the test file opens with a line to skip and ends its labels in a dot."""
    with _opened(path) as file:
        content = file.read(_ADULT_BYTES + 1)
    if len(content) > _ADULT_BYTES:
        raise ValueError(f"{path}: expected at most {_ADULT_BYTES} bytes, got more")
    try:
        lines = csv.reader(io.StringIO(content.decode(), newline=""), skipinitialspace=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8; {error}") from error
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


def _folder(
    root: Path | None, subfolders: list[str], names: list[str], source: str, suffixes: tuple[str, ...] = ("",)
) -> Path:
    """Return root or the subfolder of it that holds every one of the named files."""
    expected = f"the folder with {', '.join(name + suffixes[0] for name in names)}, which come from {source}"
    if root is None:
        raise ValueError(f"root: expected {expected}; got None")
    for folder in (root, *(root / subfolder for subfolder in subfolders)):
        if all(any((folder / (name + suffix)).exists() for suffix in suffixes) for name in names):
            return folder
    raise FileNotFoundError(f"root: expected {expected}; neither {root} nor its {subfolders[0]} holds them all")


def _from_images(
    train_x: Array,
    train_y: Array,
    test_x: Array,
    test_y: Array,
    num_classes: int,
    *,
    crop_padding: int = 0,
    flip: bool = False,
) -> Dataset:
    """Standardise per channel."""
    data = _standardised(train_x, train_y, test_x, test_y, num_classes, axes=(0, 2, 3))
    return dataclasses.replace(data, crop_padding=crop_padding, flip=flip)


def _from_features(train_x: Array, train_y: Array, test_x: Array, test_y: Array, num_classes: int) -> Dataset:
    """Standardise per column."""
    return _standardised(train_x, train_y, test_x, test_y, num_classes, axes=(0,))


def _standardised(
    train_x: Array, train_y: Array, test_x: Array, test_y: Array, num_classes: int, axes: tuple[int, ...]
) -> Dataset:
    """Subtract the training set's mean and divide by its deviation; what is constant in training becomes 0 there."""
    mean = train_x.mean(axis=axes, keepdims=True, dtype=np.float64)
    deviation = train_x.std(axis=axes, keepdims=True, dtype=np.float64)
    deviation = np.where(deviation > 0, deviation, 1.0)

    def features(x: Array) -> Tensor:
        return torch.from_numpy(((x - mean) / deviation).astype(np.float32))

    def indices(y: Array) -> Tensor:
        return torch.from_numpy(y.astype(np.int64))

    return Dataset(features(train_x), indices(train_y), features(test_x), indices(test_y), num_classes)


DATASETS: dict[str, Callable[[Path | None, int], Dataset]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "adult": _adult,
}
