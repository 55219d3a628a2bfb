"""The reference against the definition, against itself by another route, and in place of the kernels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hypersimplex_ext import _backends, hypersimplex_loss, reference, soft_binary_argmax

from .cases import DISTRIBUTIONS, INF, NAN, assert_projection, clear_of_kinks, draw, masses, numbers


@pytest.mark.parametrize(
    ("tau", "expected"), [(0.01, (0, 1, 0)), (1, (0, 0.8, 0.2)), (10, (0.25333, 0.40333, 0.34333))]
)
@pytest.mark.parametrize("project", [reference.project_sort_pav, reference.project_bisection])
def test_illustration_of_the_paper(project, tau, expected):
    torch.testing.assert_close(project(numbers(0.1, 1.6, 1.0), 1, tau), numbers(*expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("n", [1, 2, 17, 200])
def test_two_routes_agree(name, n):
    x, tau = draw(name, n)
    for k in masses(n):
        by_pav = reference.project_sort_pav(x, k, tau)
        by_bisection = reference.project_bisection(x.double(), k, tau)
        torch.testing.assert_close(by_bisection, by_pav, rtol=0, atol=1e-9)


@given(
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8),
    share=st.floats(0, 1),
    tau=st.sampled_from([0.1, 1.0, 7.0]),
)
def test_projection_is_the_nearest_point(values, share, tau):
    """Of a projection y of z onto a convex set, (z - y) . (v - y) <= 0 at every vertex v of the set."""
    z = numbers(*values) / tau
    k = round(share * len(values))
    y = reference.project_bisection(numbers(*values), k, tau)
    assert ((y >= 0) & (y <= 1)).all()
    assert float(y.sum()) == pytest.approx(k)
    farthest = torch.zeros_like(z).index_fill(0, (z - y).topk(k).indices, 1.0)  # the vertex that maximises the product
    assert (z - y) @ (farthest - y) <= 1e-9


def test_vectors_side_by_side():
    x, k, tau = torch.randn(3, 40, 5, dtype=torch.float64), 40 * torch.rand(3, 5), 0.1 + torch.rand(3, 5)
    for project in reference.project_bisection, reference.project_sort_pav:
        y = project(x, k, tau, dim=1)
        for i in range(3):
            for j in range(5):
                alone = project(x[i, :, j], float(k[i, j]), float(tau[i, j]))
                torch.testing.assert_close(y[i, :, j], alone, rtol=0, atol=1e-9)


def test_product_is_the_derivative():
    x, k, tau = torch.randn(6, 30, dtype=torch.float64), 30 * torch.rand(6).double(), 0.5 + torch.rand(6).double()
    clear = clear_of_kinks(x, k, tau)
    assert clear.any()
    v, k_step, tau_step = torch.randn_like(x), torch.randn_like(k), torch.randn_like(tau)
    state = reference.threshold(x, k, tau)
    h = 1e-7

    def difference(dx, dk, dtau):
        ahead = reference.project_bisection(x + h * dx, k + h * dk, tau + h * dtau)
        return (ahead - reference.project_bisection(x - h * dx, k - h * dk, tau - h * dtau)) / (2 * h)

    out, (grad_k, grad_tau) = reference.jvp(x, v, state, tau)
    zero = torch.zeros_like(k)
    torch.testing.assert_close(out[clear], difference(v, zero, zero)[clear], rtol=0, atol=1e-6)
    along_k, along_tau = difference(0, k_step, zero), difference(0, zero, tau_step)
    torch.testing.assert_close((grad_k * k_step)[clear], (along_k * v).sum(1)[clear], rtol=0, atol=1e-5)
    torch.testing.assert_close((grad_tau * tau_step)[clear], (along_tau * v).sum(1)[clear], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["squared", "fenchel_young"])
def test_gradient_of_the_loss(kind):
    x, t = torch.randn(12, 4, dtype=torch.float64), torch.rand(12, 4, dtype=torch.float64)
    k, tau = t.sum(0), 0.5 + torch.rand(4).double()
    weights = {"weight": torch.rand(4).double(), "sample_weight": torch.rand(12).double()}
    _, gradient = reference.loss(x, t, k, tau, kind=kind, **weights)
    v, h = torch.randn_like(x), 1e-7
    ahead, behind = (reference.loss(x + s * h * v, t, k, tau, kind=kind, **weights)[0].sum() for s in (1, -1))
    assert float((gradient * v).sum()) == pytest.approx(float(ahead - behind) / (2 * h), rel=1e-5)


def test_terms_of_the_fenchel_young_loss():
    x, t = torch.randn(12, 4, dtype=torch.float64), torch.rand(12, 4, dtype=torch.float64)
    terms, gradient = reference.loss(x, t, t.sum(0), 0.7, kind="fenchel_young")
    z, p = x / 0.7, reference.project_sort_pav(x, t.sum(0), 0.7, dim=0)
    torch.testing.assert_close(terms, (z - t) ** 2 / 2 - (z - p) ** 2 / 2)
    torch.testing.assert_close(gradient, (p - t) / 0.7)
    assert (terms.sum(0) >= 0).all()


# ---- in place of the kernels ----


def test_missing_kernels_are_announced_once(monkeypatch):
    monkeypatch.setattr(_backends, "BACKENDS", {})
    monkeypatch.setattr(_backends, "_announced", set())
    x = torch.randn(4, 9)
    with pytest.warns(RuntimeWarning, match="no kernels for device type 'cpu'"):
        soft_binary_argmax(x, 2)
    assert_projection(soft_binary_argmax(x, 2), x, 2)  # a second warning would be an error


@pytest.mark.usefixtures("without_kernels")
def test_projection_without_kernels():
    x = torch.randn(4, 3, 9).transpose(0, 2)
    k, tau = torch.rand(9, 4) * 3, 0.5 + torch.rand(9, 4)
    y = soft_binary_argmax(x, k, tau, dim=1)
    assert_projection(y, x, k.double(), tau.double(), dim=1)
    assert y.stride() == x.stride()
    special = torch.tensor([[NAN, 1.0, 2.0], [INF, INF, 0.0], [-INF, -INF, 5.0]])
    expected = torch.tensor([[NAN] * 3, [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(soft_binary_argmax(special, 1), expected, equal_nan=True)
    assert soft_binary_argmax(torch.randn(5, 0), 0).shape == (5, 0)


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("kind", ["squared", "fenchel_young"])
def test_loss_without_kernels(kind):
    x, labels = torch.randn(12, 4, dtype=torch.float64, requires_grad=True), torch.arange(12) % 4
    value = hypersimplex_loss(x, labels, tau=0.7, kind=kind)
    value.backward()
    terms, gradient = reference.loss(
        x.detach(), torch.nn.functional.one_hot(labels), numbers(3, 3, 3, 3), 0.7, kind=kind
    )
    torch.testing.assert_close(value, terms.mean())
    torch.testing.assert_close(x.grad, gradient / 48)


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("dim", [0, 1, 2, -2])
def test_gradients_without_kernels(dim):
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    rest = x.select(dim, 0).shape
    k, tau = 3 * torch.rand(rest).double(), 0.5 + torch.rand(rest).double()
    inputs = tuple(t.requires_grad_() for t in (x, k, tau))
    assert torch.autograd.gradcheck(lambda *inputs: soft_binary_argmax(*inputs, dim=dim), inputs)
    assert torch.autograd.gradcheck(lambda x: soft_binary_argmax(x, 1.3, 0.7, dim=dim), (x,))
