"""The loaders of bench.training.data, on small files in each data set's true on-disk format."""

import gzip
import re
import struct
import tokenize
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

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
            "\n".join(ADULT_TRAIN.splitlines()[0].replace("State-gov", str(i)) for i in range(101)),
            "adult.data: expected at most 100 different values in column 2, got 104",
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
    ],
)
def test_missing_files_are_named_with_their_source(tmp_path, name, files, source):
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
