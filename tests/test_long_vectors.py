"""Long vectors, whose root a sample brackets, and those of which the sample says the wrong thing."""

import pytest
import torch

from hypersimplex_ext import soft_binary_argmax

from .cases import DISTRIBUTIONS, INF, NAN, assert_close, assert_projection, draw
from .test_loss import KINDS, assert_loss

LENGTH = 200_003
MASSES = (0.25, 5, 40, 1_000, 20_000.5, 100_000, 190_000)


@pytest.fixture(autouse=True)
def solver_runs(used):
    """Every test here is one of long_vectors.h, though it may leave some vectors to the general search."""
    yield
    assert "long_vectors" in used()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions(name):
    x, tau = draw(name, LENGTH)
    for k in MASSES:
        assert_projection(soft_binary_argmax(x, k, tau), x, k, tau)
    for k in (0.25, 5):
        assert_projection(soft_binary_argmax(x[:20_001], k, tau), x[:20_001], k, tau)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tau", [1e-6, 0.1, 30.0])
def test_types_and_temperatures(dtype, tau):
    x = torch.randn(LENGTH, dtype=torch.float64).to(dtype)
    for k in MASSES:
        assert_projection(soft_binary_argmax(x, k, tau), x, k, tau)


@pytest.mark.parametrize("k", MASSES)
def test_layouts(k):
    rows = torch.randn(3, LENGTH)
    y = soft_binary_argmax(rows, k)
    for i in range(3):
        assert torch.equal(y[i], soft_binary_argmax(rows[i], k))
    pairs = torch.stack([rows, -rows], -1)
    assert torch.equal(soft_binary_argmax(pairs[0, :, 0], k), y[0])  # strided


@pytest.mark.parametrize("k", MASSES)
@pytest.mark.parametrize("place", [0, 17, 4096, 99_999, LENGTH - 1])
def test_special_values(place, k):
    x = torch.randn(LENGTH)
    x[place] = NAN
    assert soft_binary_argmax(x, k).isnan().all()
    rest = torch.cat([x[:place], x[place + 1 :]])
    for value, taken in ((INF, min(k, 1)), (-INF, 0)):
        x[place] = value
        y = soft_binary_argmax(x, k)
        assert y[place] == taken
        assert_close(torch.cat([y[:place], y[place + 1 :]]), soft_binary_argmax(rest, k - taken), 1e-5)


@pytest.mark.parametrize("k", MASSES)
@pytest.mark.parametrize("count", [3, 1_000, 150_000])
def test_many_infinities(count, k):
    x = torch.randn(LENGTH)
    places = torch.randperm(LENGTH)[:count]
    x[places] = INF
    y = soft_binary_argmax(x, k)
    torch.testing.assert_close(y[places], torch.full((count,), min(1.0, k / count)))
    assert abs(float(y.double().sum()) - k) <= 1e-5 * max(k, 1)
    x[places] = -INF
    y = soft_binary_argmax(x, k)
    assert (y[places] == 0).all()
    assert abs(float(y.double().sum()) - min(k, LENGTH - count)) <= 1e-5 * max(k, 1)


@pytest.mark.parametrize("k", MASSES)
@pytest.mark.parametrize("elsewhere", [-3.0, 3.0, 1e6])
def test_a_sample_that_misleads(elsewhere, k):
    """All that the sample sees is alike, and unlike the rest."""
    x = torch.randn(LENGTH) + elsewhere
    groups = int(LENGTH ** (2 / 3)) // 64 * 4
    for i in range(groups):
        first = int(i / groups * (LENGTH // 64)) * 64
        x[first : first + 64] = torch.randn(64)
    assert_projection(soft_binary_argmax(x, k), x, k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [5, 1_000, 100_000])
def test_loss(kind, k):
    x, target = torch.randn(2, LENGTH, dtype=torch.float64)
    target = (target > target.kthvalue(LENGTH - k).values).double()
    assert_loss(x, target, k, kind=kind)
