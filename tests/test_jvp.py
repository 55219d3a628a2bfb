"""Derivatives of the projection: the product with its Jacobian, and what autograd makes of it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hypersimplex_ext import _ops, reference, soft_binary_argmax

from .cases import DISTRIBUTIONS, INF, LENGTHS, NAN, all_types, assert_close, clear_of_kinks, draw, masses, numbers
from .test_threshold import LAYOUTS, LONG
from .tolerances import TOLERANCES


def gradients(x, k, tau, v, dim=-1):
    """Gradients of <v, y> in x, k and tau, per vector."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, k, tau)]
    y = soft_binary_argmax(*leaves, dim=dim)
    return torch.autograd.grad(y, leaves, v)


def assert_gradients(x, k, tau, dim=-1):
    """Compare with the formula in float64, for vectors clear of kinks; `k` and `tau` are tensors per vector."""
    original, clear = x, clear_of_kinks(x, k.double().cpu(), tau.double().cpu(), dim)
    v = torch.randn(x.shape, device=x.device).to(x.dtype)
    grad_x, grad_k, grad_tau = gradients(x, k, tau, v, dim)
    assert grad_x.dtype == x.dtype
    x, k, tau, v = (t.double().cpu() for t in (x, k, tau, v))
    state = reference.threshold(x, k, tau, dim)
    expected_x, (expected_k, expected_tau) = reference.jvp(x, v, state, tau, dim)
    # Relative to what is summed: the sums themselves may cancel.
    largest = v.abs().amax(dim)
    summed = (v * reference.evaluate(x, state, tau, dim)).abs().sum(dim)
    for actual, expected, scale in (
        (grad_x.movedim(dim, 0), expected_x.movedim(dim, 0), largest / tau),
        (grad_k, expected_k, largest),
        (grad_tau, expected_tau, summed / tau),
    ):
        error = (actual.double().cpu() - expected).abs() / scale
        assert (error <= TOLERANCES[original.dtype].gradient)[..., clear].all(), error
    return clear


@all_types
@pytest.mark.parametrize("n", LENGTHS)
def test_lengths(backend, device, n, dtype):
    if backend == "simt" and n > LONG:
        pytest.skip("long vectors are slow to emulate")
    count = 5 if n <= LONG else 1
    x = torch.randn(count, n, dtype=torch.float64).to(dtype).to(device)
    k, tau = (n * torch.rand(count)).double().to(device), (0.3 + torch.rand(count)).double().to(device)
    assert_gradients(x, k, tau)
    assert_gradients(x.t().contiguous(), k, tau, dim=0)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions(device, name):
    compared = 0
    for n in (17, 300, 1500):
        x, temperature = draw(name, n)
        k = torch.tensor(masses(n), device=device)
        x = x.expand(len(k), n).contiguous().to(device)
        tau = torch.full((len(k),), temperature, dtype=torch.float64, device=device)
        compared += int(assert_gradients(x, k, tau).sum())
        assert_gradients(x.t().contiguous(), k, tau, dim=0)
    assert compared >= 3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("upstream", LAYOUTS)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_layouts(device, layout, upstream, dim):
    x, v = (LAYOUTS[name](torch.randn(5, 9, 10, device=device)) for name in (layout, upstream))
    v = (
        v
        if v.shape == x.shape
        else torch.randn(12, 9, 20, device=device)[: x.shape[0], : x.shape[1], : 2 * x.shape[2] : 2]
    )
    leaf = x.detach().requires_grad_()
    plain = x.detach().contiguous().requires_grad_()
    (grad,) = torch.autograd.grad(soft_binary_argmax(leaf, 2.5, dim=dim), leaf, v)
    (expected,) = torch.autograd.grad(soft_binary_argmax(plain, 2.5, dim=dim), plain, v.contiguous())
    assert torch.equal(grad, expected)


def test_ties_among_saturated_entries(device):
    x = torch.tensor([[5.0, 5, -5, -5]], device=device, requires_grad=True)
    for index in range(4):
        (grad,) = torch.autograd.grad(soft_binary_argmax(x, 2)[0, index], x)
        assert grad.tolist() == [[0.0] * 4]


def test_a_kink_is_not_active(device):
    """With t = 1 the entries 1 and 2 are exactly 0 and 1, and only 1.5 and 1.25 move."""
    x = torch.tensor([2.0, 1.5, 1.25, 1.0], device=device, requires_grad=True)
    y, t = soft_binary_argmax(x, 1.75, return_threshold=True)
    assert (y.tolist(), t.item()) == ([1.0, 0.5, 0.25, 0.0], 1.0)
    (grad,) = torch.autograd.grad(y, x, torch.tensor([1.0, 2.0, 4.0, 8.0], device=device))
    assert grad.tolist() == [0.0, -1.0, 1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounded_logits_have_the_true_derivative(device, dtype):
    """Logits with many ties, where block boundaries found by comparing values with a tolerance would be wrong."""
    x = torch.randn(20, 8192).bfloat16().to(dtype).to(device)
    k, tau = torch.full((20,), 4096.0, device=device), torch.ones(20, device=device)
    assert assert_gradients(x, k, tau).any()


def test_special_values(device):
    x = torch.tensor(
        [
            [NAN, 1.0, 2.0, 0.0],
            [INF, 1.0, 1.5, -INF],
            [INF, INF, 0.0, 1.0],
            [0.0, -INF, -INF, 3.0],
            [0.1, 0.2, 0.3, 0.4],
        ],
        device=device,
    )
    v = torch.tensor([1.0, 2.0, 4.0, 8.0], device=device).expand(5, 4)
    k, tau = torch.tensor([1.0, 1.5, 1.0, 3.0, 0.0], device=device), torch.ones(5, device=device)
    grad_x, grad_k, grad_tau = (g.cpu() for g in gradients(x, k, tau, v))
    nothing = [0.0] * 4
    expected = torch.tensor([[NAN] * 4, [0.0, 0.0, 0.0, 0.0], nothing, nothing, nothing])
    torch.testing.assert_close(grad_x, expected, equal_nan=True)
    torch.testing.assert_close(grad_k, torch.tensor([NAN, 4.0, 0.0, 0.0, 0.0]), equal_nan=True)
    torch.testing.assert_close(grad_tau, torch.tensor([NAN, 0.0, 0.0, 0.0, 0.0]), equal_nan=True)
    columns = gradients(x.t().contiguous(), k, tau, v.t(), dim=0)
    for actual, row in zip(columns, (grad_x.t(), grad_k, grad_tau), strict=True):
        torch.testing.assert_close(actual.cpu(), row, equal_nan=True)


def test_special_upstream_off_the_active_set_is_not_seen(device):
    x = torch.tensor([9.0, 1.5, 1.0, -9.0], device=device, requires_grad=True)
    v = torch.tensor([NAN, 2.0, 4.0, INF], device=device)
    (grad,) = torch.autograd.grad(soft_binary_argmax(x, 2), x, v)
    assert grad.tolist() == [0.0, -1.0, 1.0, 0.0]


def test_mask(device):
    x, v = torch.randn(6, 9, device=device), torch.randn(6, 9, device=device)
    mask = torch.rand(6, 9, device=device) < 0.6
    leaf, filled = x.clone().requires_grad_(), x.masked_fill(~mask, -INF).requires_grad_()
    (grad,) = torch.autograd.grad(soft_binary_argmax(leaf, 1.5, mask=mask), leaf, v)
    (expected,) = torch.autograd.grad(soft_binary_argmax(filled, 1.5), filled, v)
    assert torch.equal(grad, expected)
    assert (grad[~mask] == 0).all()


def test_gradients_arrive_in_the_shape_of_the_argument(device):
    x = torch.randn(4, 11, 6, device=device)
    v = torch.randn_like(x)
    full = gradients(x, torch.full((4, 6), 3.0, device=device), torch.full((4, 6), 0.7, device=device), v, dim=1)
    for shape in [(), (6,), (4, 1)]:
        k, tau = torch.full(shape, 3.0, device=device), torch.full(shape, 0.7, device=device)
        for actual, whole in zip(gradients(x, k, tau, v, dim=1)[1:], full[1:], strict=True):
            assert_close(actual, whole.sum_to_size(shape), 1e-5)


@pytest.mark.parametrize("wanted", ["x", "k", "tau", "k tau", "x tau"])
def test_only_what_is_asked_for(device, wanted):
    x, k, tau = torch.randn(3, 8, device=device), torch.tensor(2.5, device=device), torch.tensor(0.7, device=device)
    v = torch.randn(3, 8, device=device)
    everything = dict(zip(("x", "k", "tau"), gradients(x, k, tau, v), strict=True))
    leaves = {name: t.requires_grad_(name in wanted.split()) for name, t in {"x": x, "k": k, "tau": tau}.items()}
    y = soft_binary_argmax(leaves["x"], leaves["k"], leaves["tau"])
    asked = [leaves[name] for name in wanted.split()]
    for name, actual in zip(wanted.split(), torch.autograd.grad(y, asked, v), strict=True):
        assert_close(actual, everything[name], 1e-6)


# ---- to higher order; by finite differences in test_derivatives.py ----


def smooth_inputs(shape, dim, device):
    """Float64 inputs away from kinks, all requiring grad."""
    while True:
        x = torch.randn(shape, dtype=torch.float64)
        rest = list(shape)
        n = rest.pop(dim)
        k, tau = n * (0.1 + 0.8 * torch.rand(rest).double()), 0.5 + torch.rand(rest).double()
        if clear_of_kinks(x, k, tau, dim, margin=1e-3).all():
            return tuple(t.to(device).requires_grad_() for t in (x, k, tau))


def test_second_derivative_uses_the_same_product(device):
    """For L = |y|^2 / 2 the Hessian is J / tau^2, as J is a projection."""
    x, k, tau = smooth_inputs((2, 9), 1, device)
    y = soft_binary_argmax(x, k, tau)
    (grad,) = torch.autograd.grad((y**2).sum() / 2, x, create_graph=True)
    v = torch.randn_like(x)
    (along,) = torch.autograd.grad(grad, x, v)
    y, state = _ops.project(x.detach(), None, k.detach(), 0.0, tau.detach(), 0.0, 1)
    expected = _ops.jvp(x.detach(), None, v, state, tau.detach(), 0.0, 1) / tau.detach().unsqueeze(1)
    assert_close(along, expected, 1e-12)


def test_function_transforms(device):
    x, k, tau = (t.detach() for t in smooth_inputs((4, 6), 1, device))
    rows = torch.func.vmap(soft_binary_argmax)(x, k, tau)
    assert torch.equal(rows, soft_binary_argmax(x, k, tau))
    columns = torch.func.vmap(soft_binary_argmax, in_dims=(1, None, None), out_dims=1)(x.t().contiguous(), k[0], tau[0])
    assert torch.equal(columns, soft_binary_argmax(x, k[0], tau[0]).t())
    temperatures = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, device=device)
    several = torch.func.vmap(lambda t: soft_binary_argmax(x[0], 2, t))(temperatures)
    assert_close(several, torch.stack([soft_binary_argmax(x[0], 2, float(t)) for t in temperatures]), 1e-12)

    def total(row, mass, temperature):
        return (soft_binary_argmax(row, mass, temperature) ** 2).sum()

    def expected_gradients(row, mass, temperature):
        leaves = [t.clone().requires_grad_() for t in (row, mass, temperature)]
        return torch.autograd.grad(total(*leaves), leaves)

    per_row = torch.func.vmap(torch.func.grad(total, argnums=(0, 1, 2)))(x, k, tau)
    for i in range(4):
        for actual, expected in zip(per_row, expected_gradients(x[i], k[i], tau[i]), strict=True):
            assert_close(actual[i], expected, 1e-12)
    row = x[0], k[0], tau[0]
    by_vjp = torch.func.vjp(total, *row)[1](torch.ones((), dtype=torch.float64, device=device))
    for actual, expected in zip(by_vjp, expected_gradients(*row), strict=True):
        assert_close(actual, expected, 1e-12)
    tangents = tuple(torch.randn_like(t) for t in row)
    along = sum((g * t).sum() for g, t in zip(expected_gradients(*row), tangents, strict=True))
    assert_close(torch.func.jvp(total, row, tangents)[1], along, 1e-12)
    for argument in range(3):
        by_columns = torch.func.jacfwd(soft_binary_argmax, argnums=argument)(x[0], k[0], tau[0])
        by_rows = torch.func.jacrev(soft_binary_argmax, argnums=argument)(x[0], k[0], tau[0])
        assert_close(by_columns, by_rows, 1e-12)
    for outer in (torch.func.hessian, lambda f: torch.func.jacrev(torch.func.jacrev(f))):
        hessian = outer(lambda row: total(row, k[0], tau[0]))(x[0])
        plain = torch.autograd.functional.hessian(lambda row: total(row, k[0], tau[0]), x[0])
        assert_close(hessian, plain, 1e-12)


@given(data=st.data())
def test_product_is_a_projection(data):
    """J is symmetric, J J = J and J 1 = 0."""
    n = data.draw(st.integers(1, 40), label="n")
    k = data.draw(st.integers(0, n), label="k")
    x = torch.randn(3, n).mul(4).round().div(4) if data.draw(st.booleans(), label="ties") else torch.randn(3, n)
    x = x.double()
    _, state = _ops.project(x, None, None, k, None, 1.0, 1)
    v, w = torch.randn(2, 3, n, dtype=torch.float64)
    jv, jw = (_ops.jvp(x, None, t, state, None, 1.0, 1) for t in (v, w))
    torch.testing.assert_close((jv * w).sum(1), (v * jw).sum(1))
    torch.testing.assert_close(_ops.jvp(x, None, jv, state, None, 1.0, 1), jv)
    torch.testing.assert_close(_ops.jvp(x, None, torch.ones_like(x), state, None, 1.0, 1), torch.zeros_like(x))


def test_nothing_is_kept_but_the_input(device):
    x = torch.randn(4, 100, device=device, requires_grad=True)
    mask = torch.rand(4, 100, device=device) < 0.9
    known = {x.data_ptr(), mask.data_ptr()}
    for masking in (None, mask):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            soft_binary_argmax(x, 3, mask=masking)
        assert [t.shape for t in kept if t.data_ptr() not in known] == [(2, 4)]


def test_hooks_may_move_what_is_saved(device):
    """As torch.autograd.graph.save_on_cpu(pin_memory=True) does, which gives back contiguous copies."""
    x, v = torch.randn(2, 9, 6, 5, device=device)
    gradients = []
    for hook in (lambda t: t, torch.clone, lambda t: t.clone(memory_format=torch.contiguous_format)):
        for layout in (x, x.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
            leaf = layout.clone().requires_grad_()
            with torch.autograd.graph.saved_tensors_hooks(hook, lambda t: t):
                y = soft_binary_argmax(leaf, 3, 0.7, dim=0)
            gradients.append(torch.autograd.grad(y, leaf, v)[0])
    assert all(torch.equal(gradients[0], g) for g in gradients[1:])


def test_upstream_gradients_of_any_kind(device):
    """Expanded, strided, transposed, lazily negated."""
    x = torch.randn(5, 9, device=device, requires_grad=True)
    y = soft_binary_argmax(x, 3, 0.7)
    negated = torch.complex(*torch.randn(2, 5, 9, device=device)).conj().imag
    assert negated.is_neg()
    one = torch.randn((), device=device)
    for v in (one.expand(5, 9), torch.randn(9, 5, device=device).T, torch.randn(5, 18, device=device)[:, ::2], negated):
        dense = v.resolve_neg().clone(memory_format=torch.contiguous_format)
        assert torch.equal(*(torch.autograd.grad(y, x, t, retain_graph=True)[0] for t in (v, dense)))


def test_input_may_not_change_before_backward(device):
    x = torch.randn(4, 9, device=device, requires_grad=True) * 1
    y = soft_binary_argmax(x, 3)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_one_entry_has_no_gradient(device):
    x = torch.randn(5, 1, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(soft_binary_argmax(x, 0.3).sum(), x)
    assert torch.equal(grad.cpu(), torch.zeros(5, 1))
    torch.testing.assert_close(numbers(0.3), soft_binary_argmax(x[0].double(), 0.3).cpu().detach())
