"""What a data set is to an experiment, and what its loaders share: files that are not trusted, and standardisation."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import zlib
from collections.abc import Iterator
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
        validation_x: as train_x, held out of training; None if nothing is.
        validation_y: likewise.
        metric: what runs are compared by, "accuracy" or, where one class is rare, "average_precision".
        crop_padding: pixels of reflect padding before a random crop in training; 0 means no crop.
        flip: whether training mirrors images at random.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int
    validation_x: Tensor | None = None
    validation_y: Tensor | None = None
    metric: str = "accuracy"
    crop_padding: int = 0
    flip: bool = False

    def to(self, device: torch.device) -> Dataset:
        """Return the same data set with its tensors on `device`."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **tensors)  # type: ignore[arg-type]

    def held_out(self, share: float, seed: int) -> Dataset:
        """Return the data set with this share of the training samples, drawn by `seed`, held out for validation."""
        samples = len(self.train_y)
        count = round(share * samples)
        if count == 0:
            return self
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
        held, kept = order[:count], order[count:]
        return dataclasses.replace(
            self,
            train_x=self.train_x[kept],
            train_y=self.train_y[kept],
            validation_x=self.train_x[held],
            validation_y=self.train_y[held],
        )

    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return samples and labels of what a network is judged by: the test set and, if there is one, validation."""
        splits = {"test": (self.test_x, self.test_y)}
        if self.validation_x is not None and self.validation_y is not None:
            splits["validation"] = self.validation_x, self.validation_y
        return splits


@contextlib.contextmanager
def opened(path: Path) -> Iterator[gzip.GzipFile | io.BufferedReader]:
    """A file to read, unpacked as it is read if its name ends in .gz."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected a complete gzip file; {error}") from error


def folder_of(
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


def size(content: bytes, limit: int) -> str:
    """Return how long what was read is, of a file of which no more than limit + 1 bytes are."""
    return f"{len(content)} bytes" if len(content) <= limit else f"more than {limit} bytes"


def check_labels(path: Path, labels: Array, num_classes: int) -> None:
    """Raise ValueError unless every label is below `num_classes`."""
    if labels.max() >= num_classes:
        sample = int((labels >= num_classes).argmax())
        raise ValueError(f"{path}: expected labels below {num_classes}, got {labels[sample]} for sample {sample}")


def standardised(
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
