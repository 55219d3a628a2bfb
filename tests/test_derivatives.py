"""Derivatives by finite differences: in both modes, to second order, batched, with every option.

Those of the operators that sort and pool are in test_ranking.py.
"""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from hypersimplex_ext import hypersimplex_loss, soft_binary_argmax

from .cases import clear_of_kinks
from .test_loss import IGNORED, KINDS
from .test_loss_second_order import smooth_batch

kinds = pytest.mark.parametrize("kind", KINDS)
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def assert_differentiable(function, inputs):
    """In those of the inputs that require grad."""
    batched = {"check_batched_grad": True}
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_forward_grad=True, **batched)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, **batched)


# ---- the projection ----


def smooth_vectors(shape, dim, tensors, masked):
    """Float64 vectors away from kinks, k, tau and a mask; k and tau are tensors where they are among `tensors`."""
    rest = (*shape[:dim], *shape[dim + 1 :])
    while True:
        x, mask = torch.randn(shape).double(), torch.rand(shape) < (0.8 if masked else 2)
        k = 0.5 + 2 * torch.rand(rest).double() if "k" in tensors else 1.7
        tau = 0.5 + torch.rand(rest).double() if "tau" in tensors else 0.8
        if (mask.sum(dim) > 2).all() and clear_of_kinks(x.masked_fill(~mask, -torch.inf), k, tau, dim, 1e-3).all():
            return x, k, tau, mask if masked else None


@pytest.mark.parametrize("solver", ["threshold", "pav"])
@pytest.mark.parametrize("tensors", [(), ("k",), ("tau",), ("k", "tau")], ids=" and ".join)
@pytest.mark.parametrize("masked", [False, True])
def test_projection(masked, tensors, solver):
    """In the input, and in k and tau where they are tensors."""
    *inputs, mask = smooth_vectors((2, 5, 2), 1, tensors, masked)
    leaves = [t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in inputs]
    assert_differentiable(lambda x, k, tau: soft_binary_argmax(x, k, tau, 1, mask=mask, solver=solver), leaves)


@pytest.mark.parametrize(("shape", "dim"), [((3, 7), 1), ((7, 3), 0), ((2, 5, 3), 1)])
def test_projection_along_any_dimension(device, shape, dim):
    *inputs, _ = smooth_vectors(shape, dim, ("k", "tau"), False)
    inputs = [t.to(device).requires_grad_() for t in inputs]
    assert_differentiable(lambda x, k, tau: soft_binary_argmax(x, k, tau, dim), inputs)


# ---- the loss ----


@kinds
@reductions
def test_loss_in_everything(device, kind, reduction):
    """Logits, targets, k, tau and both weights."""

    def function(x, t, k, tau, weight, sample_weight):
        weights = {"weight": weight, "sample_weight": sample_weight}
        return hypersimplex_loss(x, t, k, tau, kind=kind, label_smoothing=0.1, reduction=reduction, **weights)

    assert_differentiable(function, smooth_batch(device, 5, 2))


@kinds
@reductions
@pytest.mark.parametrize("k", ["targets", 0.4, 2])
def test_loss_in_logits_and_dense_targets(kind, reduction, k):
    """Also through the mass that the targets make."""
    x, t, *_ = smooth_batch("cpu", 5, 2)
    assert_differentiable(lambda x, t: hypersimplex_loss(x, t, k, 0.9, kind=kind, reduction=reduction), (x, t))


@kinds
@reductions
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("k", ["targets", 0.4, 2, "tensor"])
def test_loss_in_logits_alone(kind, reduction, k, weighted):
    """From class indices, some of them ignored: fused where it is reduced."""
    x, _, masses, tau, weight, sample_weight = (t.detach() for t in smooth_batch("cpu", 7, 2))
    target = torch.arange(len(x)) % x.shape[1]
    target[4] = IGNORED
    options = {"weight": weight, "sample_weight": sample_weight, "label_smoothing": 0.1} if weighted else {}
    k, tau = (masses.clamp(max=5.5), tau) if k == "tensor" else (k, 0.9)
    function = lambda x: hypersimplex_loss(x, target, k, tau, kind=kind, reduction=reduction, **options)  # noqa: E731
    x.requires_grad_()
    assert (type(function(x).grad_fn).__name__ == "_FusedLossBackward") == (reduction != "none")
    assert_differentiable(function, (x,))
