"""The paper's route to the projection, sort and isotonic regression, against the threshold solver and the reference."""

import pytest
import torch

from hypersimplex_ext import soft_binary_argmax
from hypersimplex_ext.nn import SoftBinaryArgmax

from .cases import DISTRIBUTIONS, INF, NAN, all_types, assert_close, assert_projection, clear_of_kinks, draw, masses
from .test_threshold import LAYOUTS
from .tolerances import TOLERANCES


def pav(*arguments, **options):
    return soft_binary_argmax(*arguments, solver="pav", **options)


@all_types
@pytest.mark.parametrize("n", [1, 2, 3, 31, 33, 128, 997])
def test_lengths(device, n, dtype):
    x = torch.randn(4, n, dtype=torch.float64).to(dtype).to(device)
    for k in masses(n):
        assert_projection(pav(x, k), x, k)
    k, tau = (n * torch.rand(4)).double().to(device), (0.3 + torch.rand(4)).double().to(device)
    assert_projection(pav(x, k, tau), x, k.cpu(), tau.cpu())


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions(device, name):
    for n in (17, 300):
        x, tau = draw(name, n)
        for k in masses(n):
            assert_projection(pav(x.to(device), k, tau), x, k, tau)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_layouts(device, layout, dim):
    x = LAYOUTS[layout](torch.randn(3, 11, 14, device=device))
    y = pav(x, 2.5, dim=dim)
    assert_projection(y, x, 2.5, dim=dim)
    assert y.stride() == soft_binary_argmax(x, 2.5, dim=dim).stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_and_thresholds_are_those_of_the_threshold_solver(device, dtype):
    x = torch.randn(50, 60).to(dtype)
    k, tau = 1 + 50 * torch.rand(50).double(), 0.3 + torch.rand(50).double()
    clear = clear_of_kinks(x, k, tau)
    v, mask = torch.randn(50, 60, device=device).to(dtype), torch.rand(50, 60, device=device) < 0.9
    results = []
    for solver in ("threshold", "pav"):
        leaves = [t.to(device).requires_grad_() for t in (x, k, tau)]
        y, t = soft_binary_argmax(*leaves, mask=mask, solver=solver, return_threshold=True)
        results.append([y.detach(), t, *torch.autograd.grad(y, leaves, v)])
    assert clear.sum() > 40
    for by_threshold, by_pav in zip(*results, strict=True):
        assert_close(by_pav[clear], by_threshold[clear], TOLERANCES[dtype].gradient)


@pytest.mark.parametrize(
    "row",
    [
        [NAN, 1.0, 2.0, 3.0],
        [INF, 1.0, 1.5, -2.0],
        [INF, INF, INF, 0.0],
        [-INF, 0.3, -INF, 0.1],
        [-INF, -INF, -INF, 1.0],
        [-INF, INF, 0.2, 0.4],
        [5.0, 5.0, -5.0, -5.0],
        [0.0, -0.0, 0.0, 0.0],
    ],
)
def test_special_values(device, row):
    x = torch.tensor([row, [0.1, 0.2, 0.3, 0.4]], device=device)
    for k in (0, 0.5, 1, 2, 3.5, 4):
        found = []
        for solver in ("threshold", "pav"):
            leaf = x.clone().requires_grad_()
            y, t = soft_binary_argmax(leaf, k, solver=solver, return_threshold=True)
            (grad,) = torch.autograd.grad(y, leaf, torch.tensor([1.0, 2, 3, 4], device=device).expand_as(x))
            found.append((y.detach(), t, grad))
        for expected, actual in zip(*found, strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_no_elements(device, shape):
    y, t = pav(torch.empty(shape, device=device), 0, return_threshold=True)
    assert y.shape == shape
    assert t.shape == shape[:-1]


def test_layer_and_errors():
    x = torch.randn(4, 9)
    layer = SoftBinaryArgmax(2, solver="pav")
    assert torch.equal(layer(x), pav(x, 2))
    assert "solver='pav'" in repr(layer)
    for call in (lambda: SoftBinaryArgmax(2, solver="sort"), lambda: soft_binary_argmax(x, 2, solver="sort")):
        with pytest.raises(ValueError, match="solver must be one of 'threshold', 'pav', got 'sort'"):
            call()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch about itself
def test_registration_and_compilation():
    operator = torch.ops.hypersimplex_ext.project_pav
    for x in (torch.randn(4, 5, 6), torch.randn(6, 5, 4).permute(2, 1, 0), torch.randn(4, 5, 6).bfloat16()):
        torch.library.opcheck(operator.default, (x, None, None, 2.0, None, 1.0, 1))
    x = torch.randn(7, 9)
    compiled = torch.compile(lambda x: pav(2 * x, 2), fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), pav(2 * x, 2), 1e-6)
