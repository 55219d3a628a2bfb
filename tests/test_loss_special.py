"""The loss on special values, other dtypes and without gradients."""

import pytest
import torch
from torch.nn.functional import mse_loss, one_hot

from hypersimplex_ext import hypersimplex_loss, soft_binary_argmax

from .cases import INF, NAN, assert_close
from .test_loss import IGNORED, KINDS, make


def test_ignored_samples_are_not_looked_at(device):
    x, target = make((30, 5), "ignored", device)
    target[0] = 2
    poisoned = x.clone()
    poisoned[target == IGNORED] = NAN
    keep = target != IGNORED
    for kind in KINDS:
        kept, leaf = x[keep].requires_grad_(), poisoned.clone().requires_grad_()
        expected, value = (
            hypersimplex_loss(kept, target[keep], 0.5, kind=kind),
            hypersimplex_loss(leaf, target, 0.5, kind=kind),
        )
        assert_close(value.detach(), expected.detach(), 1e-6)
        (grad,), (expected_grad,) = torch.autograd.grad(value, leaf), torch.autograd.grad(expected, kept)
        assert_close(grad[keep], expected_grad, 1e-5)
        assert (grad[~keep] == 0).all()
    renamed = torch.where(keep, target, 7)
    assert torch.equal(hypersimplex_loss(x, renamed, ignore_index=7), hypersimplex_loss(x, target))


@pytest.mark.parametrize("kind", KINDS)
def test_without_samples(device, kind):
    everything_ignored = torch.full((6,), IGNORED, device=device)
    for x, target in [
        (torch.randn(0, 4, device=device), torch.zeros(0, dtype=torch.long, device=device)),
        (torch.randn(0, device=device), torch.zeros(0, device=device)),
        (torch.randn(2, 4, 0, device=device), torch.zeros(2, 0, dtype=torch.long, device=device)),
        (torch.randn(6, 4, device=device), everything_ignored),
    ]:
        leaf = x.requires_grad_()
        assert hypersimplex_loss(leaf, target, kind=kind).isnan()
        total = hypersimplex_loss(leaf, target, kind=kind, reduction="sum")
        assert total == 0
        (grad,) = torch.autograd.grad(total, leaf)
        assert torch.equal(grad, torch.zeros_like(x))
        assert torch.equal(hypersimplex_loss(leaf, target, kind=kind, reduction="none"), torch.zeros_like(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_stays_in_its_class(device, kind):
    x, target = make((20, 4), "index", device)
    x[3, 1] = NAN
    leaf = x.requires_grad_()
    value = hypersimplex_loss(leaf, target, kind=kind, reduction="sum")
    (grad,) = torch.autograd.grad(value, leaf)
    assert value.isnan()
    assert grad[:, 1].isnan().all()
    assert grad[:, [0, 2, 3]].isfinite().all()
    terms = hypersimplex_loss(leaf, target, kind=kind, reduction="none")
    assert terms[:, 1].isnan().all()
    assert terms[:, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_infinite_logits(device, kind, reduction):
    """Right and certain: no loss, no gradient, and the others are as if with one positive fewer."""
    x, target = make((20, 3), "index", device)
    target[0], target[1] = 0, 1
    x[0, 0], x[1, 0] = INF, -INF
    leaf = x.requires_grad_()
    value = hypersimplex_loss(leaf, target, kind=kind, reduction=reduction).sum()
    (grad,) = torch.autograd.grad(value, leaf)
    assert value.isfinite()
    assert grad.isfinite().all()
    assert grad[:2, 0].tolist() == [0.0, 0.0]
    rest = leaf.detach()[2:, :1].clone().requires_grad_()
    others = (target[2:] == 0).to(rest.dtype).unsqueeze(1)
    (expected,) = torch.autograd.grad(hypersimplex_loss(rest, others, kind=kind, reduction="sum"), rest)
    assert_close(grad[2:, :1], expected, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_without_or_with_only_positives(device, kind):
    x = torch.randn(8, 3, device=device, requires_grad=True)
    target = torch.zeros(8, dtype=torch.long, device=device)  # class 0 has all, the others none
    for reduction in ("sum", "none"):
        value = hypersimplex_loss(x, target, kind=kind, reduction=reduction).sum()
        assert value == 0
        (grad,) = torch.autograd.grad(value, x)
        assert (grad == 0).all()


def test_fenchel_young_is_not_negative_and_has_no_dead_zone(device):
    x = torch.tensor([9.0, 8.0, -8.0, -9.0], device=device, requires_grad=True)
    wrong = torch.tensor([0, 0, 1, 1], device=device)
    (squared,) = torch.autograd.grad(hypersimplex_loss(x, wrong), x)
    (convex,) = torch.autograd.grad(hypersimplex_loss(x, wrong, kind="fenchel_young", reduction="sum"), x)
    assert squared.tolist() == [0.0] * 4
    assert convex.tolist() == [1.0, 1.0, -1.0, -1.0]
    right = 1 - wrong
    assert hypersimplex_loss(x, right, kind="fenchel_young") == 0
    assert hypersimplex_loss(x, wrong, kind="fenchel_young") > 0


def test_fenchel_young_at_large_logits(device):
    """No cancellation: the loss depends on differences of logits, and those are exact here."""
    x, target = torch.randn(40, 3, device=device).mul(16).round().div(16), torch.randint(3, (40,), device=device)
    for reduction in ("mean", "none"):
        near, far = (hypersimplex_loss(x + c, target, kind="fenchel_young", reduction=reduction) for c in (0, 4096))
        assert_close(far.sum(0) if far.ndim else far, near.sum(0) if near.ndim else near, 1e-3 if far.ndim else 1e-5)


# ---- types and routes ----


def test_label_dtypes(device):
    x, target = make((20, 4), "index", device)
    assert torch.equal(hypersimplex_loss(x, target.to(torch.uint8)), hypersimplex_loss(x, target))
    binary = (target > 1).to(device)
    values = [
        hypersimplex_loss(x[:, 0], binary.to(dtype)) for dtype in (torch.bool, torch.int32, torch.float64, x.dtype)
    ]
    assert all(torch.equal(value, values[0]) for value in values)


def test_binary_is_one_column(device):
    x, target = make((30,), "multi_hot", device)
    assert torch.equal(hypersimplex_loss(x, target), hypersimplex_loss(x[:, None], target[:, None]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_computes_in_float32(device, dtype):
    x, target = make((64, 5), "index", device, dtype)
    leaf = x.requires_grad_()
    with torch.autocast(device.type, dtype):
        value, y = hypersimplex_loss(leaf, target), soft_binary_argmax(leaf, 2)
    assert value.dtype == y.dtype == torch.float32
    (grad,) = torch.autograd.grad(value, leaf)
    assert grad.dtype == dtype
    assert torch.equal(value, hypersimplex_loss(x.float(), target))
    assert hypersimplex_loss(x, target).dtype == dtype


def test_modes_without_gradients(device):
    x, target = make((20, 4), "index", device)
    expected = hypersimplex_loss(x, target)
    leaf = x.clone().requires_grad_()
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            value = hypersimplex_loss(leaf, target)
        assert not value.requires_grad
        assert torch.equal(value, expected)


def test_shapes_first_met_in_inference_mode_train(device):
    x, target = make((21, 4), "index", device)
    with torch.inference_mode():
        expected = hypersimplex_loss(x, target)
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        value = hypersimplex_loss(leaf, target)
        assert torch.equal(value, expected)
        assert not value.is_inference()
        value.backward()
        assert leaf.grad.any()


def test_targets_first_met_without_gradients_have_one(device):
    x, target = make((21, 4), "soft", device)
    target.requires_grad_()
    with torch.no_grad():
        hypersimplex_loss(x, target)
    assert torch.autograd.grad(hypersimplex_loss(x, target), target)[0].any()


def test_equal_to_the_snippet_in_the_documentation(device):
    x, target = make((60, 6), "index", device)
    t = one_hot(target, 6).to(x.dtype)
    p = soft_binary_argmax(x, k=t.sum(0), tau=0.8, dim=0)
    assert_close(hypersimplex_loss(x, target, tau=0.8), mse_loss(p, t), 1e-5)
