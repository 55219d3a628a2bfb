"""The loss to second order; gradients in everything are in test_derivatives.py."""

import functools

import pytest
import torch

from hypersimplex_ext import _loss, hypersimplex_loss, soft_binary_argmax

from .cases import assert_close, clear_of_kinks
from .test_loss import IGNORED, KINDS


def smooth_batch(device, n=9, classes=3):
    """Float64 logits, soft targets, k, tau and weights away from kinks, all requiring grad."""
    while True:
        x, t = torch.randn(n, classes).double(), 0.1 + 0.8 * torch.rand(n, classes).double()
        k, tau = 1 + (n - 2) * torch.rand(classes).double(), 0.5 + torch.rand(classes).double()
        both = [clear_of_kinks(x, mass, tau, 0, margin=1e-3).all() for mass in (k, t.sum(0))]
        if all(both):
            weight, sample_weight = 0.5 + torch.rand(classes).double(), 0.5 + torch.rand(n).double()
            return tuple(v.to(device).requires_grad_() for v in (x, t, k, tau, weight, sample_weight))


@pytest.mark.parametrize("kind", KINDS)
def test_second_order_with_class_indices(device, kind):
    x, *_ = smooth_batch(device)
    target = torch.arange(9, device=device) % 3
    target[4] = IGNORED
    function = lambda x: hypersimplex_loss(x, target, 0.4, 0.9, kind=kind)  # noqa: E731
    by_transforms = torch.func.hessian(function)(x.detach())
    assert_close(by_transforms, torch.autograd.functional.hessian(function, x), 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("k", ["targets", 0.5, 3, "tensor"])
def test_second_order_with_every_option(device, kind, reduction, k):
    """In the logits alone, where the fused loss has its Hessian in closed form."""
    x = smooth_batch(device)[0]
    samples, classes = x.shape
    target = torch.arange(samples, device=device) % classes
    target[-1] = IGNORED
    settings = {
        "weight": torch.linspace(0.5, 1.5, classes, device=device),
        "sample_weight": torch.linspace(0.3, 2, samples, device=device).double(),
        "ignore_index": IGNORED,
        "label_smoothing": 0.1,
    }
    mass = torch.full((classes,), 2.5, device=device) if k == "tensor" else k
    tau = torch.linspace(0.8, 1.2, classes, device=device)

    def value(x, **more):
        return hypersimplex_loss(x, target, mass, tau, kind=kind, reduction=reduction, **more)

    upstream = torch.tensor(0.7, dtype=torch.float64, device=device, requires_grad=True)
    v = torch.randn_like(x)
    for some in (settings, {"ignore_index": IGNORED}, {"ignore_index": IGNORED, "weight": settings["weight"]}):
        leaf = x.detach().clone().requires_grad_()
        route = value(leaf, **some).grad_fn
        assert type(route).__name__ == "_FusedLossBackward"
        products = []
        for function in (value, functools.partial(composed, value)):
            (first,) = torch.autograd.grad(function(leaf, **some), leaf, upstream, create_graph=True)
            products.append(torch.autograd.grad(first, (leaf, upstream), v))
        for closed, other in zip(*products, strict=True):
            assert other.any()
            assert_close(closed, other, 1e-11)


def composed(value, x, **settings):
    """The same loss by the other route."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_loss, "_fusible", lambda *_: False)
        return value(x, **settings)


def test_hessian_of_the_squared_loss(device):
    """(2 / tau^2) J for each class."""
    x, *_ = smooth_batch(device, n=8, classes=1)
    target = torch.rand(8, dtype=torch.float64, device=device)
    hessian = torch.autograd.functional.hessian(
        lambda v: hypersimplex_loss(v, target, 3, 0.8, reduction="sum"), x.detach()[:, 0]
    )
    y = soft_binary_argmax(x.detach()[:, 0], 3, 0.8)
    inside = ((y > 0) & (y < 1)).double()
    expected = 2 / 0.8**2 * (torch.diag(inside) - torch.outer(inside, inside) / inside.sum())
    assert_close(hessian, expected, 1e-10)


def test_gradients_per_sample_by_transforms(device):
    weights = torch.randn(6, 4, dtype=torch.float64, device=device)
    batches, labels = torch.randn(3, 10, 6).double().to(device), torch.randint(4, (3, 10), device=device)
    value = lambda w, x, t: hypersimplex_loss(x @ w, t)  # noqa: E731
    together = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0, 0))(weights, batches, labels)
    for i in range(3):
        leaf = weights.clone().requires_grad_()
        (alone,) = torch.autograd.grad(value(leaf, batches[i], labels[i]), leaf)
        assert_close(together[i], alone, 1e-12)
