"""Inputs that solvers find hard, and the comparison with the reference."""

import math

import pytest
import torch

from bench import distributions
from hypersimplex_ext import reference

from .tolerances import TOLERANCES

# One and two; around the widths of vectors and warps; a prime; a block; more than one chunk of a long vector.
LENGTHS = (1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 997, 4096, 70_000)

# n -> entries, all finite, for a temperature of 1 unless TEMPERATURES says otherwise.
DISTRIBUTIONS = {name: made.draw for name, made in distributions.DISTRIBUTIONS.items() if made.finite}
TEMPERATURES = {name: made.tau for name, made in distributions.DISTRIBUTIONS.items() if made.tau != 1}


def masses(n: int) -> list[float]:
    return sorted({0.5, 1, min(5, n), max(n // 10, 1), n / 2, n // 2 + 0.25, n - 1, n - 0.5, n})


def draw(name: str, n: int) -> tuple[torch.Tensor, float]:
    """Entries [n] in float32, and a temperature."""
    return DISTRIBUTIONS[name](n).float(), TEMPERATURES.get(name, 1.0)


def assert_projection(y, x, k, tau=1.0, dim=-1):
    """Compare y with the float64 projection of finite x, and its sum with k."""
    tolerance = TOLERANCES[x.dtype]
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    expected = reference.project_bisection(x.double().cpu(), k, tau, dim)
    y = y.double().cpu()
    assert (y - expected).abs().max() <= tolerance.y
    k = torch.as_tensor(k, dtype=torch.float64)
    assert ((y.sum(dim) - k).abs() <= tolerance.total * k.clamp(min=1)).all()


def assert_close(actual, expected, tolerance):
    """Compare relative to the largest expected entry, and no closer than the numbers of the dtype lie."""
    expected, kind = expected.double().cpu(), torch.finfo(actual.dtype)
    atol = max(tolerance * float(expected.abs().max()), kind.smallest_normal * kind.eps)
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=0, atol=atol)


def clear_of_kinks(x, k, tau, dim=-1, margin=None):
    """Vectors of which no entry is so close to a kink of the projection that rounding decides on which side it lies."""
    margin = margin or (1e-11 if x.dtype == torch.float64 else 2e-6)
    x = x.double().cpu()
    p, d = reference.threshold(x, k, tau, dim).unsqueeze(dim if dim < 0 else dim + 1)
    u = ((x - p) - d) / (tau.double().cpu().unsqueeze(dim) if isinstance(tau, torch.Tensor) else tau)
    return ((u.abs() > margin) & ((u - 1).abs() > margin)).all(dim)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


INF, NAN = math.inf, math.nan
half_types = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
all_types = pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
