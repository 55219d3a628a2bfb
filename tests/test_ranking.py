"""Sort, isotonic regression, permutahedron projection, soft rank and soft sort as users call them.

The kernels alone are tested in test_sort.py and test_isotonic.py.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from hypersimplex_ext import (
    isotonic_regression,
    project_permutahedron,
    reference,
    soft_binary_argmax,
    soft_rank,
    soft_sort,
    sort,
)

from .cases import INF, NAN, all_types, assert_close
from .test_threshold import LAYOUTS
from .tolerances import TOLERANCES

EPSILON = 0.7


def wave(x):
    """Numbers in [-1, 1] that are the same whether x is kept in single or in double precision."""
    return x.detach().nan_to_num(0, 0, 0).half().float().cos().half().to(x.dtype)


# name -> (the operator, the reference), each a function of (values, dim).
OPERATORS = {
    "regression": (
        lambda x, dim: isotonic_regression(x, dim=dim),
        lambda x, dim: reference.isotonic_regression(x, dim=dim),
    ),
    "decreasing": (
        lambda x, dim: isotonic_regression(x, dim=dim, increasing=False, lower=-0.5, upper=0.5),
        lambda x, dim: reference.isotonic_regression(x, dim=dim, increasing=False).clamp(-0.5, 0.5),
    ),
    "weighted": (
        lambda x, dim: isotonic_regression(x, 1.5 + wave(x), dim=dim),
        lambda x, dim: reference.isotonic_regression(x, 1.5 + wave(x), dim=dim),
    ),
    "permutahedron": (
        lambda x, dim: project_permutahedron(x, wave(x), EPSILON, dim),
        lambda x, dim: reference.project_permutahedron(x / EPSILON, wave(x), dim),
    ),
    "rank l2": (
        lambda x, dim: soft_rank(x, "l2", EPSILON, dim),
        lambda x, dim: reference.soft_rank(x, "l2", EPSILON, dim),
    ),
    "rank kl": (
        lambda x, dim: soft_rank(x, "kl", EPSILON, dim),
        lambda x, dim: reference.soft_rank(x, "kl", EPSILON, dim),
    ),
    "rank down": (
        lambda x, dim: soft_rank(x, "kl", EPSILON, dim, descending=True),
        lambda x, dim: reference.soft_rank(-x, "kl", EPSILON, dim),
    ),
    "sort l2": (
        lambda x, dim: soft_sort(x, "l2", EPSILON, dim),
        lambda x, dim: reference.soft_sort(x, "l2", EPSILON, dim),
    ),
    "sort kl": (
        lambda x, dim: soft_sort(x, "kl", EPSILON, dim),
        lambda x, dim: reference.soft_sort(x, "kl", EPSILON, dim),
    ),
    "sort down": (
        lambda x, dim: soft_sort(x, "kl", EPSILON, dim, descending=True),
        lambda x, dim: -reference.soft_sort(-x, "kl", EPSILON, dim),
    ),
}
operators = pytest.mark.parametrize("name", OPERATORS)


def both(name, x, dim=-1):
    """Value and gradient of an operator and of its reference, for the same upstream gradient."""
    found = []
    v = torch.randn(x.shape, device=x.device).to(x.dtype)
    for function, leaf in zip(OPERATORS[name], (x, x.double().cpu()), strict=True):
        leaf = leaf.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        y = function(leaf, dim)
        found.append((y.detach(), *torch.autograd.grad(y, leaf, v.to(y))))
    return found


def assert_like_reference(name, x, dim=-1):
    (y, grad), (expected, expected_grad) = both(name, x, dim)
    assert (y.dtype, y.shape, grad.dtype) == (x.dtype, x.shape, x.dtype)
    assert_close(y, expected, TOLERANCES[x.dtype].gradient)
    assert_close(grad, expected_grad, TOLERANCES[x.dtype].gradient)


# ---- values and gradients ----


@all_types
@operators
@pytest.mark.parametrize("n", [1, 2, 31, 33, 130, 700])
def test_lengths(device, name, n, dtype):
    x = torch.randn(3, n, dtype=torch.float64).to(dtype).to(device)
    if dtype.itemsize == 2:  # halves differ where rounding an intermediate result moves a block's edge: values alone
        y, expected = (f(t, -1) for f, t in zip(OPERATORS[name], (x, x.double().cpu()), strict=True))
        assert_close(y, expected, 4 * TOLERANCES[dtype].gradient)
    else:
        assert_like_reference(name, x)


@operators
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_layouts(device, name, layout, dim):
    x = LAYOUTS[layout](torch.randn(4, 7, 9, device=device).double())
    assert_like_reference(name, x, dim)


@operators
def test_ties(device, name):
    """Blocks of equal levels stay apart, so that ties have the derivative of untied entries beside them."""
    x = torch.randn(6, 40, device=device).double().mul(2).round().div(2)
    assert_like_reference(name, x)


def test_ranks_of_ties_have_the_true_derivative(device):
    """All pairs of equal entries are in one block: the derivative is that of finite differences."""
    x = torch.tensor([0.3, 0.3, 0.3, 5.0, 5.0, -4.0], device=device).double().requires_grad_()
    for function in (soft_rank, soft_sort):
        assert torch.autograd.gradcheck(lambda x, f=function: f(x, "l2", 3.0), (x,))


@operators
def test_special_values(device, name):
    x = torch.randn(5, 30, device=device)
    for i, value in enumerate((NAN, INF, -INF)):
        x[i + 1, 3 * i] = value
    leaf = x.clone().requires_grad_()
    y = OPERATORS[name][0](leaf, -1)
    y.sum().backward()
    assert y[1:4].isnan().all()
    assert leaf.grad[1:4].isnan().all()
    alone = x[[0, 4]].requires_grad_()
    expected = OPERATORS[name][0](alone, -1)
    expected.sum().backward()
    assert torch.equal(y[[0, 4]], expected)
    assert torch.equal(leaf.grad[[0, 4]], alone.grad)


@operators
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_no_elements(device, name, shape):
    x = torch.empty(shape, device=device, requires_grad=True)
    y = OPERATORS[name][0](x, -1)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape


@all_types
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_sort(device, dtype, descending, dim):
    x = torch.randn(5, 70, 6, device=device).mul(4).round().to(dtype)  # many ties
    x[0, 0], x[1, 1], x[2, 2], x[3, 3] = NAN, INF, -INF, -0.0
    values, indices = sort(x, dim, descending=descending)
    expected = torch.sort(x, dim=dim, descending=descending, stable=True)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, expected.indices)
    assert torch.equal(values.nan_to_num(7e4), expected.values.nan_to_num(7e4))


def test_gradient_of_sort(device):
    x = torch.randn(3, 5, device=device).double().requires_grad_()
    check = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(lambda x: sort(x, 0, descending=True)[0], (x,), **check)
    assert torch.autograd.gradgradcheck(lambda x: sort(x, 0)[0], (x,))


# ---- derivatives in both modes, to second order, batched ----

OF_SEVERAL = {
    **{
        name: lambda x, w, tau, name=name: OPERATORS[name][0](x, 1)
        for name in OPERATORS
        if name not in ("weighted", "permutahedron")
    },
    "rank down l2": lambda x, w, tau: soft_rank(x, "l2", EPSILON, 1, descending=True),
    "sort down l2": lambda x, w, tau: soft_sort(x, "l2", EPSILON, 1, descending=True),
    "weights": lambda x, w, tau: isotonic_regression(x, w, dim=1),
    "weights, decreasing": lambda x, w, tau: isotonic_regression(x, w, dim=1, increasing=False, lower=-0.5, upper=0.5),
    "w and tau": lambda x, w, tau: project_permutahedron(x, w, tau, 1),
}


def count_of_tensors(name):
    """How many of its arguments an operator of `OF_SEVERAL` takes."""
    return 3 if name == "w and tau" else 2 if "weights" in name else 1


@pytest.mark.parametrize("name", OF_SEVERAL)
def test_derivatives(name):
    function = OF_SEVERAL[name]
    inputs = [torch.randn(2, 7, 2), 0.1 + torch.rand(2, 7, 2), 0.5 + torch.rand(2, 2)]
    inputs = [t.double().requires_grad_() for t in inputs[: count_of_tensors(name)]]
    padded = lambda *inputs: function(*inputs, *(None,) * (3 - len(inputs)))  # noqa: E731
    check = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(padded, inputs, **check)
    orders = {"check_fwd_over_rev": True, "check_rev_over_rev": True, "check_batched_grad": True}
    assert torch.autograd.gradgradcheck(padded, inputs, **orders)


@operators
def test_transforms(name):
    """vmap over any dimension is the operator on a batch; per-sample gradients; Jacobians both ways."""
    function = OPERATORS[name][0]
    x = torch.randn(4, 9, 3).double()
    assert_close(torch.func.vmap(lambda x: function(x, 0), in_dims=2, out_dims=2)(x), function(x, 0), 1e-13)
    row = x[0, :, 0]
    forward, reverse = (f(lambda x: function(x, -1))(row) for f in (torch.func.jacfwd, torch.func.jacrev))
    assert_close(forward, reverse, 1e-12)
    per_sample = torch.func.vmap(torch.func.grad(lambda x: (function(x, 0) ** 2).sum()))(x)
    leaf = x.clone().requires_grad_()
    (function(leaf, 1) ** 2).sum().backward()
    assert_close(per_sample, leaf.grad, 1e-12)


@pytest.mark.parametrize("name", OF_SEVERAL)
def test_transforms_of_every_argument(name):
    """grad, vjp, jvp and hessian against autograd; vmap over each argument, over all, and nested."""
    arguments = [torch.randn(2, 7, 3), 0.1 + torch.rand(2, 7, 3), 0.5 + torch.rand(2, 3)]
    arguments = [t.double() for t in arguments[: count_of_tensors(name)]]
    function = lambda *tensors: OF_SEVERAL[name](*tensors, *(None,) * (3 - len(tensors)))  # noqa: E731
    v, every = torch.randn(2, 7, 3).double(), tuple(range(len(arguments)))
    total = lambda *tensors: (v * function(*tensors) ** 2).sum()  # noqa: E731
    leaves = [t.clone().requires_grad_() for t in arguments]
    expected = torch.autograd.grad(total(*leaves), leaves)
    tangents = tuple(torch.randn_like(t) for t in arguments)
    along = sum((g * t).sum() for g, t in zip(expected, tangents, strict=True))
    assert_close(torch.func.jvp(total, tuple(arguments), tangents)[1], along, 1e-11)
    by_vjp = torch.func.vjp(total, *arguments)[1](torch.ones(()).double())
    for due, *found in zip(expected, torch.func.grad(total, every)(*arguments), by_vjp, strict=True):
        for gradient in found:
            assert_close(gradient, due, 1e-12)
    plain = torch.autograd.functional.hessian(total, tuple(arguments))
    for row, due in zip(torch.func.hessian(total, every)(*arguments), plain, strict=True):
        for block, wanted in zip(row, due, strict=True):
            assert (block - wanted).abs().max() <= 1e-10 * max(1, float(wanted.abs().max()))
    several = [torch.stack([t, t.flip(0), t.roll(1, -1)]) for t in arguments]
    for batched in ({i} for i in every):
        in_dims = tuple(0 if i in batched else None for i in every)
        found = torch.func.vmap(function, in_dims)(*(several[i] if i in batched else arguments[i] for i in every))
        wanted = [function(*(several[i][j] if i in batched else arguments[i] for i in every)) for j in range(3)]
        assert_close(found, torch.stack(wanted), 1e-12)
    nested = torch.func.vmap(torch.func.vmap(lambda *rows: function(*(t.unsqueeze(0) for t in rows))[0]))(*several)
    assert_close(nested, torch.stack([function(*(t[j] for t in several)) for j in range(3)]), 1e-12)


# ---- against other packages ----


def test_against_scipy(device):
    from scipy.optimize import isotonic_regression as scipy_regression

    x, w = torch.randn(6, 300, device=device).double(), 0.1 + torch.rand(6, 300, device=device).double()
    for increasing in (False, True):
        for weight in (None, w):
            y = isotonic_regression(x, weight, increasing=increasing).cpu()
            for i, row in enumerate(x.cpu()):
                weights = None if weight is None else weight[i].cpu().numpy()
                expected = scipy_regression(row.numpy(), weights=weights, increasing=increasing).x.copy()
                assert_close(y[i], torch.tensor(expected), 1e-13)


def test_against_sklearn(device):
    from sklearn.isotonic import isotonic_regression as sklearn_regression

    x, w = torch.randn(300).double(), 0.1 + torch.rand(300).double()
    expected = sklearn_regression(x.numpy(), sample_weight=w.numpy(), y_min=-0.4, y_max=0.6)
    y = isotonic_regression(x.to(device), w.to(device), lower=-0.4, upper=0.6)
    assert_close(y, torch.from_numpy(expected), 1e-12)


@pytest.mark.parametrize("regularization", ["l2", "kl"])
@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("name", ["soft_rank", "soft_sort"])
def test_against_torchsort(device, name, regularization, strength):
    """The names and arguments of torchsort, and its numbers."""
    torchsort = pytest.importorskip("torchsort")
    function = {"soft_rank": soft_rank, "soft_sort": soft_sort}[name]
    x, v = torch.randn(4, 50).double(), torch.randn(4, 50).double()
    results = []
    for f, t in ((function, x.to(device)), (getattr(torchsort, name), x)):
        leaf = t.clone().requires_grad_()
        y = f(leaf, regularization=regularization, regularization_strength=strength)
        results.append((y.detach(), *torch.autograd.grad(y, leaf, v.to(y.device))))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, 1e-12)


# ---- properties ----

ROWS = st.lists(st.integers(-20, 20), min_size=1, max_size=40).map(lambda row: torch.tensor(row).double() / 4)


@given(row=ROWS, data=st.data())
def test_properties_of_the_regression(row, data):
    w = torch.tensor(data.draw(st.lists(st.integers(1, 9), min_size=len(row), max_size=len(row)))).double()
    v = isotonic_regression(row, w)
    assert (v.diff() >= 0).all()
    torch.testing.assert_close(isotonic_regression(v, w), v)
    for level in v.unique():
        block = v == level
        torch.testing.assert_close((w * row)[block].sum() / w[block].sum(), level)
    torch.testing.assert_close(isotonic_regression(-row, w, increasing=False), -v)


@given(row=ROWS, data=st.data())
def test_properties_of_the_projection(row, data):
    n = len(row)
    w = torch.tensor(data.draw(st.lists(st.integers(-9, 9), min_size=n, max_size=n))).double()
    order = torch.tensor(data.draw(st.permutations(range(n))))
    y = project_permutahedron(row, w, 0.5)
    torch.testing.assert_close(y.sum(), w.sum())
    torch.testing.assert_close(project_permutahedron(row[order], w, 0.5), y[order])
    torch.testing.assert_close(project_permutahedron(row, w[order], 0.5), y)
    torch.testing.assert_close(project_permutahedron(y, w, 1.0), y)
    # Inside the permutahedron: the largest j entries sum to no more than those of w.
    largest = y.sort(descending=True).values.cumsum(0)
    assert (largest <= w.sort(descending=True).values.cumsum(0) + 1e-9).all()


@given(row=ROWS, data=st.data())
def test_the_hypersimplex_is_a_permutahedron(row, data):
    k = data.draw(st.integers(0, len(row)))
    w = torch.cat([torch.ones(k), torch.zeros(len(row) - k)])
    torch.testing.assert_close(
        project_permutahedron(row, w, 0.7), soft_binary_argmax(row, k, 0.7), rtol=1e-12, atol=1e-12
    )


def test_limits():
    x = torch.randperm(50).double()
    for regularization in ("l2", "kl"):
        assert_close(soft_rank(x, regularization, 1e-3), x + 1, 1e-11)
        assert_close(soft_rank(x, regularization, 1e-3, descending=True), 50 - x, 1e-11)
        assert_close(soft_sort(x, regularization, 1e-3), x.sort().values, 1e-12)
        assert_close(soft_sort(x, regularization, 1e-3, descending=True), x.sort(descending=True).values, 1e-12)
    assert_close(soft_rank(x, "l2", 1e9), torch.full_like(x, 25.5), 1e-6)


@operators
def test_without_kernels(without_kernels, name):
    assert_like_reference(name, torch.randn(3, 40, 2).double(), 1)


@pytest.mark.parametrize("name", OF_SEVERAL)
def test_checkpointed(name):
    """Saved tensors may be unpacked once."""
    arguments = [torch.randn(2, 7, 3), 0.1 + torch.rand(2, 7, 3), 0.5 + torch.rand(2, 3)]
    arguments = [t.double().requires_grad_() for t in arguments[: count_of_tensors(name)]]
    function = lambda *arguments: OF_SEVERAL[name](*arguments, *(None,) * (3 - len(arguments)))  # noqa: E731
    plain, again = function(*arguments), checkpoint(function, *arguments, use_reentrant=False)
    g = torch.randn_like(plain)
    for a, b in zip(torch.autograd.grad(plain, arguments, g), torch.autograd.grad(again, arguments, g), strict=True):
        assert torch.equal(a, b)
