"""Long vectors on CUDA (csrc/cuda/long_vectors.cu): the routes that they take, told by the packs that are read, and
what makes them take another."""

import pytest
import torch

from hypersimplex_ext import soft_binary_argmax
from tests import simt

from .cases import assert_projection

N = 102400
REGIME = "grid:blocks=4,threads=512,lists=1"
BETWEEN, OPEN, SWEEPS = 2, 1, 3  # how often all entries are read; sweeps may read them more often


@pytest.fixture
def reads(on_device, monkeypatch):
    """How often the entries of x were read in packs since the last call; None where only a GPU could tell."""
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", REGIME)
    if on_device[0].type == "cuda":
        return lambda x: None
    counters = simt.Device(simt.load("_C_simt"))
    counters.take_counts()
    return lambda x: counters.take_counts()["packs"] * 16 / (x.numel() * x.element_size())


def project(x, k, tau, reads, expected, device):
    """Project, and see that all entries were read as often as expected."""
    x = x.to(device)
    y = soft_binary_argmax(x, k, tau)
    times = reads(x)
    assert times is None or times == expected or times > expected == SWEEPS
    return x, y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("k", "tau", "expected"), [(N // 2, 0.05, BETWEEN), (N // 4, 0.05, BETWEEN), (5, 1.0, OPEN), (2.5, 0.01, OPEN)]
)
def test_routes(on_device, reads, k, tau, expected, dtype):
    x, y = project(torch.randn(2, N).to(dtype), k, tau, reads, expected, on_device[0])
    assert_projection(y, x, k, tau)
    if on_device[0].type == "cpu":
        emulator = simt.Device(simt.load("_C_simt"))
        emulator.seed += 1  # another order of blocks and warps
    assert torch.equal(soft_binary_argmax(x, k, tau), y)


def ordered(x):
    return x.sort().values


def in_runs(x):
    return torch.cat([part.sort().values for part in x.split(1000, dim=1)], dim=1)


@pytest.mark.parametrize("arranged", [ordered, in_runs])
@pytest.mark.parametrize(("k", "tau", "expected"), [(N // 2, 0.05, BETWEEN), (5, 1.0, OPEN)])
def test_any_order_fills_lists_alike(on_device, reads, k, tau, expected, arranged):
    x, y = project(arranged(torch.randn(1, N)), k, tau, reads, expected, on_device[0])
    assert_projection(y, x, k, tau)


def misleading(x):
    """All that the sample sees lies far above the rest."""
    x[:, ::255] += 100
    return x


def crowded(x):
    """What the sample does not see lies where it is undecided."""
    sampled = x[:, ::255].clone()
    x *= 1e-3
    x[:, ::255] = sampled
    return x


def tied(x):
    return x.round()


def one_value(x):
    return torch.full_like(x, 1.5)


def one_far(x):
    x[:, 7] = 1e30
    return x


@pytest.mark.parametrize(
    ("k", "arrange", "expected"),
    [
        (N // 2, misleading, SWEEPS),
        (N // 2, crowded, SWEEPS),
        (N // 2, tied, BETWEEN),  # whose value is decided: it is active
        (N // 2, one_value, BETWEEN),
        (3, one_value, SWEEPS),
        (3, one_far, OPEN),
        (N - 2, ordered, SWEEPS),
    ],
)
def test_samples_that_help_or_do_not(on_device, reads, k, arrange, expected):
    x, y = project(arrange(torch.randn(2, N)), k, 0.05, reads, expected, on_device[0])
    assert_projection(y, x, k, 0.05)


@pytest.mark.parametrize(("k", "tau"), [(N // 2, 30.0), (N // 2, 1e-30), (N // 2, 1e36), (5, 1e36), (5, 1e-30)])
def test_temperatures_at_the_ends(on_device, reads, k, tau):
    x, y = project(torch.randn(1, N), k, tau, lambda x: None, None, on_device[0])
    assert_projection(y, x, k, tau)


@pytest.mark.parametrize("k", [3, N // 2])
def test_special_values(on_device, reads, k):
    device, inf = on_device[0], float("inf")
    x = torch.randn(5, N)
    x[0, 7] = float("nan")
    x[1, :2] = inf
    x[2, : N // 2 + 4] = inf
    x[3, 4:] = -inf
    x[4, ::3] = -inf
    y = soft_binary_argmax(x.to(device), k, 0.05).cpu()
    assert y[0].isnan().all()
    assert y[1, :2].tolist() == [1.0, 1.0]
    assert_projection(y[1:2, 2:], x[1:2, 2:], k - 2, 0.05)
    assert y[2].unique().tolist() == pytest.approx([0.0, k / (N // 2 + 4)])
    finite = x[3].isfinite()
    assert not y[3, ~finite].any()
    if k <= 4:
        assert_projection(y[3:4, finite], x[3:4, finite], k, 0.05)
    finite = x[4].isfinite()
    assert not y[4, ~finite].any()
    assert_projection(y[4:5, finite], x[4:5, finite], k, 0.05)


def test_masses_of_either_route_side_by_side(on_device, reads):
    x, k = torch.randn(4, N), torch.tensor([5.0, N / 2, N - 1, N / 3])
    x, y = project(x, k, 0.05, lambda x: None, None, on_device[0])
    assert_projection(y, x, k, 0.05)
