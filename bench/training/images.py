"""Images: digits, which scikit-learn holds, and CIFAR-10, MNIST and Fashion-MNIST from their publishers' files."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.training.dataset import Array, Dataset, check_labels, folder_of, opened, size, standardised


def digits(_root: Path | None, seed: int) -> Dataset:
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


def cifar10(root: Path | None, _seed: int) -> Dataset:
    """50,000 + 10,000 colour images of 32 x 32, 10 classes, in the publisher's "binary version"."""
    train_names = [f"data_batch_{i}.bin" for i in range(1, 6)]
    folder = folder_of(
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
    with opened(path) as file:
        content = file.read(limit + 1)
    if not content or len(content) % _CIFAR_RECORD:
        raise ValueError(
            f"{path}: expected at most {_CIFAR_RECORDS} records of {_CIFAR_RECORD} bytes, got {size(content, limit)}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)
    check_labels(path, records[:, 0], _CIFAR_CLASSES)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def mnist(root: Path | None, _seed: int) -> Dataset:
    """70,000 handwritten digits."""
    source = "https://yann.lecun.com/exdb/mnist/ or its mirror https://ossci-datasets.s3.amazonaws.com/mnist/"
    return _idx_images(root, "MNIST", source, flip=False)


_DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def fashion_mnist(root: Path | None, _seed: int) -> Dataset:
    """70,000 pictures of clothes; without a folder, those of Debian's package."""
    source = "https://github.com/zalandoresearch/fashion-mnist or Debian's package dataset-fashion-mnist"
    return _idx_images(_DEBIAN if root is None else root, "FashionMNIST", source, flip=True)


_SHIRT = 6
_RARE_SHARE = 0.01


def rare_shirts(root: Path | None, seed: int) -> Dataset:
    """Shirts, of which so many are left out that they are 1 % of training and test set, among all else of the same.

    `seed` draws those that stay.
    """
    data = fashion_mnist(root, seed)
    generator = torch.Generator().manual_seed(seed)

    def thinned(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        shirts, others = (y == _SHIRT).nonzero()[:, 0], (y != _SHIRT).nonzero()[:, 0]
        count = max(1, round(_RARE_SHARE / (1 - _RARE_SHARE) * len(others)))
        kept = torch.cat([others, shirts[torch.randperm(len(shirts), generator=generator)[:count]]])
        return x[kept], (y[kept] == _SHIRT).long()

    train_x, train_y = thinned(data.train_x, data.train_y)
    test_x, test_y = thinned(data.test_x, data.test_y)
    return Dataset(train_x, train_y, test_x, test_y, 2, metric="average_precision")


_IDX_CLASSES = 10
_IDX_SAMPLES = 60_000


def _idx_images(root: Path | None, subfolder: str, source: str, *, flip: bool) -> Dataset:
    """60,000 + 10,000 grey images of 28 x 28, 10 classes, in the idx format, gzipped or not."""
    names = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    folder = folder_of(root, [subfolder, f"{subfolder}/raw"], names, source, suffixes=(".gz", ""))
    paths = [next(path for path in (folder / f"{name}.gz", folder / name) if path.exists()) for name in names]
    arrays = []
    for images, labels in (paths[:2], paths[2:]):
        x, y = _read_idx(images, (28, 28)), _read_idx(labels, ())
        if len(y) != len(x):
            raise ValueError(f"{labels}: expected {len(x)} labels, one for each image of {images.name}, got {len(y)}")
        check_labels(labels, y, _IDX_CLASSES)
        arrays += [x[:, None], y]
    train_x, train_y, test_x, test_y = arrays
    return _from_images(train_x, train_y, test_x, test_y, _IDX_CLASSES, crop_padding=3, flip=flip)


def _read_idx(path: Path, sample: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Read an idx file of bytes that holds samples of this shape.

    The header is 0, 0, type 8 (bytes), the number of dimensions, and each length as big-endian uint32. The values
    follow; no more are read than it announces.
    """
    kind, length = bytes((0, 0, 8, 1 + len(sample))), 4 * (2 + len(sample))
    with opened(path) as file:
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
        raise ValueError(f"{path}: expected {limit} bytes for shape {list(shape)}, got {size(content, limit)}")
    return np.frombuffer(content, np.uint8).reshape(shape)


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
    data = standardised(train_x, train_y, test_x, test_y, num_classes, axes=(0, 2, 3))
    return dataclasses.replace(data, crop_padding=crop_padding, flip=flip)
