"""What sort, isotonic regression, permutahedra, soft ranks and sorts take and refuse, and how they say so."""

import re
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

from hypersimplex_ext import isotonic_regression, project_permutahedron, soft_rank, soft_sort, sort

from .cases import INF, NAN

X = torch.randn(3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sort([1.0]), TypeError, "input must be a Tensor, got list"),
        (lambda: sort(X.long()), TypeError, "input must be float16, bfloat16, float32 or float64, got torch.int64"),
        (lambda: sort(X, 2), IndexError, "dim must lie in [-2, 1]"),
        (lambda: isotonic_regression(torch.tensor(1.0)), ValueError, "input must have at least one dimension"),
        (lambda: isotonic_regression(X, [1.0]), TypeError, "weight must be a Tensor, got list"),
        (lambda: isotonic_regression(X, X > 0), TypeError, "weight must be real, got torch.bool"),
        (lambda: isotonic_regression(X, torch.ones(3)), ValueError, "weight must broadcast to input's shape [3, 4]"),
        (lambda: isotonic_regression(X, torch.zeros(4)), ValueError, "weight must lie in (0, inf), got 0"),
        (lambda: isotonic_regression(X, lower="0"), TypeError, "lower must be a real number, got str"),
        (lambda: isotonic_regression(X, lower=2, upper=1), ValueError, "lower must not be greater than upper"),
        (lambda: isotonic_regression(X, lower=NAN, upper=1), ValueError, "lower must be a number or None, got nan"),
        (lambda: isotonic_regression(X, upper=NAN), ValueError, "upper must be a number or None, got nan"),
        (lambda: soft_rank(X, mask=torch.ones(4)), TypeError, "mask must be a bool Tensor, got torch.float32"),
        (lambda: soft_sort(X, mask=X[0, :3] > 0), ValueError, "mask must broadcast to input's shape [3, 4]"),
        (lambda: project_permutahedron(X, [1.0]), TypeError, "w must be a Tensor, got list"),
        (lambda: project_permutahedron(X, torch.ones(3)), ValueError, "w must have 4 entries along dimension 1"),
        (lambda: project_permutahedron(X, torch.ones(2, 4)), ValueError, "w must broadcast to input's shape [3, 4]"),
        (lambda: project_permutahedron(X, torch.ones(4), 0), ValueError, "tau must lie in (0, inf), got 0"),
        (lambda: project_permutahedron(X, torch.ones(4), torch.ones(4)), ValueError, "tau must broadcast to [3]"),
        (lambda: soft_rank(X.int()), TypeError, "values must be float16, bfloat16, float32 or float64"),
        (lambda: soft_rank(X, "l1"), ValueError, "regularization must be one of 'l2', 'kl', got 'l1'"),
        (lambda: soft_sort(X, "l2", -1.0), ValueError, "regularization_strength must lie in (0, inf), got -1.0"),
        (lambda: soft_sort(X, "l2", True), TypeError, "regularization_strength must be a real number, got bool"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("dtype", "weight"),
    [
        (torch.float16, torch.tensor([1e5, 3e5, 1e5])),
        (torch.float16, torch.tensor([1e-8, 3e-8, 1e-8])),
        (torch.bfloat16, torch.tensor([100_001, 300_003, 100_001])),
        (torch.float32, torch.tensor([1e-60, 3e-60, 1e-60], dtype=torch.float64)),
    ],
    ids=str,
)
def test_weights_are_used_as_wide_as_they_come(device, dtype, weight):
    y = torch.tensor([1.0, 4.0, 0.0], dtype=dtype, device=device).requires_grad_()
    weight = weight.to(device)
    leaf = weight.requires_grad_() if weight.is_floating_point() else weight
    v = isotonic_regression(y, leaf)
    assert v.dtype == dtype
    assert v.tolist() == [1.0, 3.0, 3.0]
    gradients = torch.autograd.grad(v[1], [t for t in (y, leaf) if t.requires_grad])
    assert gradients[0].tolist() == [0.0, 0.75, 0.25]
    assert all(g.dtype == t.dtype for g, t in zip(gradients, (y, leaf), strict=False))
    assert all(g.isfinite().all() for g in gradients)


def test_bounds_of_any_real_kind(device):
    y = torch.tensor([3.0, 1.0, 2.0], device=device)
    assert isotonic_regression(y, lower=-1e39, upper=sys.float_info.max).tolist() == [2.0, 2.0, 2.0]
    assert isotonic_regression(y, lower=Fraction(5, 2), upper=np.float64(7)).tolist() == [2.5, 2.5, 2.5]
    assert isotonic_regression(y.half(), upper=-1e5).tolist() == [-65504.0] * 3
    assert isotonic_regression(y, lower=-INF, upper=INF).tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(("dtype", "tau"), [(torch.float16, 1e-3), (torch.float16, 1e5), (torch.float32, 1e-46)])
def test_a_temperature_per_vector_is_as_exact_as_a_number(device, dtype, tau):
    x, w = torch.tensor([[100.0, 50.0, 49.0]], dtype=dtype, device=device), torch.tensor([3.0, 2.0, 1.0], device=device)
    y = project_permutahedron(x, w, torch.tensor([tau], dtype=torch.float64, device=device))
    assert y.dtype == dtype
    assert torch.equal(y, project_permutahedron(x, w, tau))


def test_sort_names_its_results(device):
    x = torch.randn(3, 4, device=device)
    result = sort(x, descending=True)
    assert type(result) is type(torch.sort(x))
    assert torch.equal(result.values, x.gather(-1, result.indices))
