"""The operators under torch.func, in forward mode and to second order, against plain autograd and closed forms.

By finite differences they are checked in test_derivatives.py.
"""

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from hypersimplex_ext import hypersimplex_loss, soft_binary_argmax
from hypersimplex_ext.nn import HyperSimplexLoss

from .cases import assert_close, clear_of_kinks

KINDS = ("squared", "fenchel_young")
SAMPLES, CLASSES = 9, 3
kinds = pytest.mark.parametrize("kind", KINDS)


def smooth_logits(device, *batch, k=3.0, tau=0.8):
    """Float64 logits [*batch, n, C] of which no column is near a kink for this k and tau."""
    x = torch.randn(*batch, SAMPLES, CLASSES).double()
    while not (clear := clear_of_kinks(x, k, tau, -2, margin=1e-3)).all():
        x = torch.where(clear.unsqueeze(-2), x, torch.randn_like(x))
    return x.to(device)


def labels(device, *batch):
    return (torch.arange(SAMPLES, device=device) % CLASSES).expand(*batch, SAMPLES)


def projector(x, k, tau):
    """J of each column of x [n, C]: [C, n, n]."""
    y = soft_binary_argmax(x, k, tau, dim=0).t()
    active = ((y > 0) & (y < 1)).to(x.dtype)
    assert (active.sum(1) > 1).any()
    return torch.diag_embed(active) - active.unsqueeze(2) * (active / active.sum(1, keepdim=True).clamp(min=1))[:, None]


# ---- the losses to second order: J is a projection, so the Hessian is a multiple of J ----


def products_with_the_hessian(function, x, v):
    """By double backward, and by both nestings of forward and reverse mode."""
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    (double,) = torch.autograd.grad(first, leaf, v)
    forward_over_reverse = jvp(grad(function), (x,), (v,))[1]
    reverse_over_forward = grad(lambda x: jvp(function, (x,), (v,))[1])(x)
    return double, forward_over_reverse, reverse_over_forward


@kinds
@pytest.mark.parametrize("weighted", [False, True])
def test_products_with_the_hessian_in_closed_form(device, kind, weighted):
    x, v = smooth_logits(device), torch.randn(SAMPLES, CLASSES, device=device).double()
    w = torch.tensor([0.5, 1.0, 2.0], device=device) if weighted else None
    function = lambda x: hypersimplex_loss(x, labels(device), 3, 0.8, kind=kind, weight=w, reduction="sum")  # noqa: E731
    factor = (2 if kind == "squared" else 1) / 0.8**2
    expected = factor * (projector(x, 3, 0.8) @ v.t().unsqueeze(2)).squeeze(2).t()
    if weighted:
        expected = expected * w
    for product in products_with_the_hessian(function, x, v):
        assert_close(product, expected, 1e-11)


def test_products_with_the_hessian_of_weighted_samples(device):
    """J diag(s) J in place of J."""
    x, v = smooth_logits(device), torch.randn(SAMPLES, CLASSES, device=device).double()
    s = torch.linspace(0.5, 2, SAMPLES, device=device).double()
    function = lambda x: hypersimplex_loss(x, labels(device), 3, 0.8, sample_weight=s, reduction="sum")  # noqa: E731
    j = projector(x, 3, 0.8)
    expected = 2 / 0.8**2 * (j @ (s.unsqueeze(1) * (j @ v.t().unsqueeze(2)))).squeeze(2).t()
    for product in products_with_the_hessian(function, x, v):
        assert_close(product, expected, 1e-11)


@kinds
def test_third_derivatives_vanish(device, kind):
    """The losses are quadratic between kinks."""
    x, v = smooth_logits(device), torch.randn(SAMPLES, CLASSES, device=device).double()
    function = lambda x: hypersimplex_loss(x, labels(device), 3, 0.8, kind=kind)  # noqa: E731
    third = grad(lambda x: (jvp(grad(function), (x,), (v,))[1] * v).sum())(x)
    assert third.abs().max() < 1e-12


# ---- the loss under each transform ----


def losses(device, kind):
    """x, tau -> loss, one way for each route through the code."""
    t = labels(device)
    dense = torch.nn.functional.one_hot(t, CLASSES).double()
    mass = torch.full((CLASSES,), 3.0, device=device)
    return {
        "indices": lambda x, tau: hypersimplex_loss(x, t, 3, tau, kind=kind),
        "dense": lambda x, tau: hypersimplex_loss(x, dense, mass, tau, kind=kind, label_smoothing=0.1),
        "targets": lambda x, tau: hypersimplex_loss(x, t, "targets", tau, kind=kind, reduction="sum"),
        "elements": lambda x, tau: (hypersimplex_loss(x, t, 3, tau, kind=kind, reduction="none") ** 2).sum(),
    }


@kinds
@pytest.mark.parametrize("name", ["indices", "dense", "targets", "elements"])
def test_derivatives_of_the_loss(device, kind, name):
    x, tau = smooth_logits(device), torch.full((CLASSES,), 0.8, device=device, dtype=torch.float64)
    function = losses(device, kind)[name]
    leaves = x.clone().requires_grad_(), tau.clone().requires_grad_()
    value = function(*leaves)
    by_autograd = torch.autograd.grad(value, leaves)
    assert_close(torch.autograd.grad(function(leaves[0], 0.8), leaves[0])[0], by_autograd[0], 1e-12)  # tau a number
    by_transforms = {
        "grad": grad(function, argnums=(0, 1))(x, tau),
        "vjp": vjp(function, x, tau)[1](torch.ones_like(value)),
        "jacrev": jacrev(function, argnums=(0, 1))(x, tau),
        "jacfwd": jacfwd(function, argnums=(0, 1))(x, tau),
    }
    for found in by_transforms.values():
        for actual, expected in zip(found, by_autograd, strict=True):
            assert_close(actual, expected, 1e-11)
    tangents = torch.randn_like(x), torch.randn_like(tau)
    expected = sum((g * t).sum() for g, t in zip(by_autograd, tangents, strict=True))
    value_again, along = jvp(function, (x, tau), tangents)
    assert_close(value_again, value.detach(), 1e-12)
    assert_close(along, expected, 1e-11)
    blocks = hessian(function, argnums=(0, 1))(x, tau)
    for row, plain in zip(blocks, torch.autograd.functional.hessian(function, (x, tau)), strict=True):
        for actual, expected in zip(row, plain, strict=True):
            assert (actual - expected).abs().max() < 1e-11


@kinds
def test_batching_the_loss(device, kind):
    """Over logits, class indices, dense targets and temperatures, alone, together and nested."""
    x, t = smooth_logits(device, 2, 4), torch.randint(CLASSES, (2, 4, SAMPLES), device=device)
    dense, tau = torch.rand_like(x), torch.tensor([0.5, 0.8], device=device, dtype=torch.float64)
    one = lambda x, t, tau: hypersimplex_loss(x, t, 2.5 * torch.ones((), device=device), tau, kind=kind)  # noqa: E731
    each = lambda x, t, tau: torch.stack([one(*a) for a in zip(x, t, tau, strict=True)])  # noqa: E731
    for target in (t, dense):
        expected = torch.stack([each(x[i], target[i], tau[i].expand(4)) for i in range(2)])
        assert_close(vmap(vmap(one, (0, 0, None)))(x, target, tau), expected, 1e-12)
        swapped = vmap(vmap(one, (0, 0, 0)), (1, 1, None), 1)(x, target, tau)
        assert_close(swapped, expected, 1e-12)
    assert_close(vmap(one, (None, 0, None))(x[0, 0], t[0], tau[0]), each([x[0, 0]] * 4, t[0], [tau[0]] * 4), 1e-12)
    assert_close(vmap(one, (None, None, 0))(x[0, 0], t[0, 0], tau), each([x[0, 0]] * 2, [t[0, 0]] * 2, tau), 1e-12)
    gradients = vmap(vmap(grad(one), (0, 0, None)))(x, t, tau)
    for i in range(2):
        for j in range(4):
            leaf = x[i, j].clone().requires_grad_()
            assert_close(gradients[i, j], torch.autograd.grad(one(leaf, t[i, j], tau[i]), leaf)[0], 1e-11)


def test_batching_the_projection_with_a_mask(device):
    x = torch.randn(4, 3, 7, device=device).double()
    mask = torch.rand(4, 3, 7, device=device) < 0.8
    one = lambda x, m: soft_binary_argmax(x, 2, 0.7, mask=m)  # noqa: E731
    assert torch.equal(vmap(vmap(one))(x, mask), one(x, mask))
    assert torch.equal(vmap(one, (None, 0))(x[0], mask), one(x[0].expand(4, 3, 7), mask))
    last = vmap(lambda x: soft_binary_argmax(x, 2, 0.7, dim=0), in_dims=2, out_dims=2)(x)
    assert torch.equal(last, soft_binary_argmax(x, 2, 0.7, dim=0))


def test_gradients_of_each_sample_through_a_layer(device):
    """Of a layer that ends in the projection: one gradient of its weight for each sample."""
    weight, x = torch.randn(7, 5, device=device).double(), torch.randn(6, 5, device=device).double()
    upstream = torch.randn(6, 7, device=device).double()
    value = lambda w, row, v: (soft_binary_argmax(w @ row, 2, 0.7) * v).sum()  # noqa: E731
    together = vmap(grad(value), (None, 0, 0))(weight, x, upstream)
    for i in range(6):
        leaf = weight.clone().requires_grad_()
        assert_close(together[i], torch.autograd.grad(value(leaf, x[i], upstream[i]), leaf)[0], 1e-11)


def test_ensemble_of_modules(device):
    """Losses with statistics of their own, trained as one by vmap."""
    x, t = torch.randn(3, 20, CLASSES, device=device), torch.arange(20, device=device) % CLASSES
    modules = [HyperSimplexLoss(CLASSES, tau=torch.tensor(0.5 + i)).to(device) for i in range(3)]
    parameters, buffers = stack_module_state(modules)
    shell = HyperSimplexLoss(CLASSES, tau=torch.tensor(1.0)).to(device)

    def value(x, buffers):
        return functional_call(shell, (parameters, buffers), (x, t))

    gradients = vmap(grad(value))(x, buffers)
    for i, module in enumerate(modules):
        leaf = x[i].clone().requires_grad_()
        assert_close(gradients[i], torch.autograd.grad(module(leaf, t), leaf)[0], 1e-5)
        assert_close(buffers["running_threshold"][i], module.running_threshold, 1e-6)
    assert not shell.running_threshold.any()


@kinds
def test_batched_gradients(device, kind):
    """Many upstream gradients at once, of the losses, their gradients and the projection."""
    x, t = smooth_logits(device).requires_grad_(), labels(device)
    value = hypersimplex_loss(x, t, 3, 0.8, kind=kind)
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    for output in (value, first, soft_binary_argmax(x, 3, 0.8, dim=0)):
        upstream = torch.randn(5, *output.shape, device=device).double()
        (together,) = torch.autograd.grad(output, x, upstream, is_grads_batched=True, retain_graph=True)
        for found, v in zip(together, upstream, strict=True):
            assert_close(found, torch.autograd.grad(output, x, v, retain_graph=True)[0], 1e-12)


@pytest.mark.parametrize("name", ["jvp", "vjp"])
def test_inner_operators_refuse_to_be_differentiated(name):
    x, v = torch.randn(2, 3, 5)
    state = torch.ops.hypersimplex_ext.project(x, None, None, 2.0, None, 1.0, 1)[1]
    result = getattr(torch.ops.hypersimplex_ext, name)(x, None, v.requires_grad_(), state, None, 1.0, 1)
    with pytest.raises(NotImplementedError, match="differentiate soft_binary_argmax twice instead"):
        (result if name == "jvp" else result[0]).sum().backward()


# ---- the projection in forward mode, as dual numbers ----


def test_dual_numbers(device):
    x, v = smooth_logits(device, k=3.0, tau=0.8).t(), torch.randn(CLASSES, SAMPLES, device=device).double()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)
        y, tangent = torch.autograd.forward_ad.unpack_dual(soft_binary_argmax(dual, 3, 0.8))
    assert torch.equal(y, soft_binary_argmax(x, 3, 0.8))
    expected = (projector(x.t(), 3, 0.8) @ v.unsqueeze(2)).squeeze(2) / 0.8
    assert_close(tangent, expected, 1e-12)
    assert soft_binary_argmax(x, 3, 0.8).grad_fn is None


@pytest.mark.usefixtures("without_kernels")
def test_jacobian_of_rows_without_kernels():
    x = smooth_logits("cpu").t()
    jacobian = jacrev(lambda x: soft_binary_argmax(x, 3, 0.8))(x)
    for i, expected in enumerate(projector(x.t(), 3, 0.8) / 0.8):
        assert_close(jacobian[i, :, i], expected, 1e-12)


@pytest.mark.parametrize("name", ["loss", "projection"])
def test_the_function_that_vjp_returns_leaves_nothing_to_differentiate(name):
    """Its tensors are those of a transform that is over."""
    x, t = torch.randn(SAMPLES, CLASSES), labels("cpu")
    function = {"loss": lambda x: hypersimplex_loss(x, t), "projection": lambda x: soft_binary_argmax(x, 2).sum()}[name]
    (gradient,) = vjp(function, x)[1](torch.tensor(1.0))
    assert not gradient.requires_grad
    assert_close(gradient, grad(function)(x), 1e-6)
