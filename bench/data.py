"""The data sets of the experiments, each read from its own published file format into tensors.

`digits` comes with scikit-learn. The others are read from a folder (`root`) that holds the files as their publishers
distribute them; nothing is downloaded.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import math
import pickle
import zlib
from collections.abc import Callable
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
    return _from_images(train_x, train_y, test_x, test_y)


def _cifar10(root: Path | None, _seed: int) -> Dataset:
    """50,000 + 10,000 colour images of 32 x 32, 10 classes, in the publisher's "python version" (pickled batches)."""
    train_names = [f"data_batch_{i}" for i in range(1, 6)]
    folder = _folder(
        root,
        ["cifar-10-batches-py"],
        [*train_names, "test_batch"],
        "cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html, unpacked",
    )
    train = [_read_cifar_batch(folder / name) for name in train_names]
    test_x, test_y = _read_cifar_batch(folder / "test_batch")
    train_x, train_y = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return _from_images(train_x, train_y, test_x, test_y, crop_padding=4, flip=True)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, strings and numpy arrays, and refuses any other object a file may name."""

    def find_class(self, module: str, name: str) -> object:
        if module in {"numpy.core.multiarray", "numpy._core.multiarray"} and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in {"ndarray", "dtype"}:
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR batch")


def _read_cifar_batch(path: Path) -> tuple[Array, Array]:
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        labels = np.array(batch[b"labels"], dtype=np.int64)
        return batch[b"data"].reshape(len(labels), 3, 32, 32), labels
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path}: expected a CIFAR-10 batch with b'data' [n, 3072] and b'labels' [n]; {error!r}"
        ) from error


def _mnist(root: Path | None, _seed: int) -> Dataset:
    """70,000 handwritten digits."""
    source = "https://yann.lecun.com/exdb/mnist/ or its mirror https://ossci-datasets.s3.amazonaws.com/mnist/"
    return _idx_images(root, "MNIST", source, flip=False)


def _fashion_mnist(root: Path | None, _seed: int) -> Dataset:
    """70,000 pictures of clothes."""
    return _idx_images(root, "FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist", flip=True)


def _idx_images(root: Path | None, subfolder: str, source: str, *, flip: bool) -> Dataset:
    """60,000 + 10,000 grey images of 28 x 28, 10 classes, in the idx format, gzipped or not."""
    names = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    folder = _folder(root, [subfolder, f"{subfolder}/raw"], names, source, suffixes=(".gz", ""))
    train_x, train_y, test_x, test_y = (
        _read_idx(next(path for path in (folder / f"{name}.gz", folder / name) if path.exists())) for name in names
    )
    return _from_images(train_x[:, None], train_y, test_x[:, None], test_y, crop_padding=3, flip=flip)


def _read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read an idx file of bytes: 0, 0, type 8, number of dimensions; each length as big-endian uint32; the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected a complete gzip file; {error}") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: expected an idx file of bytes (00 00 08 ..), got {content[:4].hex(' ')}")
    header = 4 + 4 * content[3]
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    if len(content) != header + math.prod(shape):
        raise ValueError(f"{path}: expected {math.prod(shape)} bytes for shape {shape}, got {len(content) - header}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


_ADULT_NUMERIC = (0, 2, 4, 10, 11, 12)
_ADULT_COLUMNS = 15


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
        if column in _ADULT_NUMERIC:
            train_columns.append(train[:, column, None].astype(np.float64))
            test_columns.append(test[:, column, None].astype(np.float64))
        else:
            values = np.unique(train[:, column])
            train_columns.append(train[:, column, None] == values)
            test_columns.append(test[:, column, None] == values)
    return _from_features(
        np.concatenate(train_columns, axis=1, dtype=np.float64),
        train[:, -1] == ">50K",
        np.concatenate(test_columns, axis=1, dtype=np.float64),
        test[:, -1] == ">50K",
    )


def _read_adult(path: Path) -> npt.NDArray[np.str_]:
    """Read rows of 15 comma-separated values; the test file opens with a line to skip and ends its labels in a dot."""
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file, skipinitialspace=True), start=1):
            if not row or row[0].startswith("|"):
                continue
            if len(row) != _ADULT_COLUMNS:
                raise ValueError(f"{path}, line {number}: expected {_ADULT_COLUMNS} values, got {len(row)}")
            row[-1] = row[-1].removesuffix(".")
            if row[-1] not in {"<=50K", ">50K"}:
                raise ValueError(f"{path}, line {number}: expected the label <=50K or >50K, got {row[-1]!r}")
            rows.append(row)
    return np.array(rows)


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
    train_x: Array, train_y: Array, test_x: Array, test_y: Array, *, crop_padding: int = 0, flip: bool = False
) -> Dataset:
    """Standardise per channel."""
    mean = train_x.mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    deviation = train_x.std(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    return _dataset(mean, deviation, train_x, train_y, test_x, test_y, crop_padding=crop_padding, flip=flip)


def _from_features(train_x: Array, train_y: Array, test_x: Array, test_y: Array) -> Dataset:
    """Standardise per column; a column that is constant in training becomes 0 there."""
    mean = train_x.mean(axis=0, dtype=np.float64)
    deviation = train_x.std(axis=0, dtype=np.float64)
    return _dataset(mean, np.where(deviation > 0, deviation, 1.0), train_x, train_y, test_x, test_y)


def _dataset(
    mean: Array,
    deviation: Array,
    train_x: Array,
    train_y: Array,
    test_x: Array,
    test_y: Array,
    *,
    crop_padding: int = 0,
    flip: bool = False,
) -> Dataset:
    for part, x, y in (("training", train_x, train_y), ("test", test_x, test_y)):
        if len(x) != len(y):
            raise ValueError(f"expected one label for each {part} sample, got {len(y)} labels for {len(x)} samples")

    def standardised(x: Array) -> Tensor:
        return torch.from_numpy(((x - mean) / deviation).astype(np.float32))

    def indices(y: Array) -> Tensor:
        return torch.from_numpy(y.astype(np.int64))

    return Dataset(
        standardised(train_x),
        indices(train_y),
        standardised(test_x),
        indices(test_y),
        num_classes=int(train_y.max()) + 1,
        crop_padding=crop_padding,
        flip=flip,
    )


DATASETS: dict[str, Callable[[Path | None, int], Dataset]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "adult": _adult,
}
