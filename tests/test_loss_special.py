"""The loss on special values, other dtypes and without gradients."""

from fractions import Fraction

import numpy as np
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
def test_ignored_entries_are_not_looked_at(device, kind):
    """Of dense targets, and as samples of binary ones."""
    for shape, targets in (((60, 5), "holes"), ((70,), "binary"), ((70, 1), "binary")):
        x, target = make(shape, targets, device)
        if targets == "binary":
            target[::3] = IGNORED
        holes = (target == IGNORED).reshape(x.shape)
        poisoned = torch.where(holes, NAN, x)
        for reduction in ("mean", "none"):
            leaf, clean = poisoned.clone().requires_grad_(), x.clone().requires_grad_()
            value = hypersimplex_loss(leaf, target, 0.5, kind=kind, reduction=reduction)
            expected = hypersimplex_loss(clean, target, 0.5, kind=kind, reduction=reduction)
            assert torch.equal(value, expected)
            (grad,), (expected,) = (torch.autograd.grad(v.sum(), t) for v, t in ((value, leaf), (expected, clean)))
            assert torch.equal(grad, expected)
            assert (grad[holes] == 0).all()
        renamed = torch.where(target == IGNORED, 7, target)
        assert torch.equal(hypersimplex_loss(x, renamed, ignore_index=7), hypersimplex_loss(x, target))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poison", [NAN, INF])
def test_weights_of_ignored_samples_are_not_looked_at(device, kind, poison):
    x, target = make((40, 3), "ignored", device)
    dense = torch.rand(40, 3, device=device)
    dense[5] = IGNORED
    for t, ignored in ((target, target == IGNORED), (dense, dense[:, 0] == IGNORED)):
        weight = torch.where(ignored, poison, torch.rand(40, device=device))
        for tau in (0.8, torch.full((3,), 0.8, device=device, requires_grad=True)):  # fused and composed
            for reduction in ("mean", "sum", "none"):
                leaf, kept = x.clone().requires_grad_(), x[~ignored].requires_grad_()
                settings = {"kind": kind, "reduction": reduction}
                value = hypersimplex_loss(leaf, t, tau=tau, sample_weight=weight, **settings).sum()
                expected = hypersimplex_loss(kept, t[~ignored], tau=tau, sample_weight=weight[~ignored], **settings)
                assert_close(value.detach(), expected.detach().sum(), 1e-5)
                (grad,), (expected,) = torch.autograd.grad(value, leaf), torch.autograd.grad(expected.sum(), kept)
                assert_close(grad[~ignored], expected, 1e-5)
                assert (grad[ignored] == 0).all()


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
def test_a_nan_among_dense_targets_stays_in_its_class(device, kind):
    x, target = make((20, 4), "soft", device)
    target[3, 1] = NAN
    ones = torch.ones(4, device=device)
    for route in ({}, {"tau": ones.clone().requires_grad_()}, {"weight": ones.clone().requires_grad_()}):
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(hypersimplex_loss(leaf, target, kind=kind, reduction="sum", **route), leaf)
        assert grad[:, 1].isnan().all()
        assert grad[:, [0, 2, 3]].isfinite().all()
        assert hypersimplex_loss(leaf, target, kind=kind, **route).isnan()
        terms = hypersimplex_loss(leaf, target, kind=kind, reduction="none", **route)
        assert terms[:, 1].isnan().all()
        assert terms[:, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("label", [1.5, -0.25, INF])
def test_labels_outside_the_unit_interval_are_errors(label):
    """On the CPU, where it costs nothing to look at them."""
    for shape in ((40, 3), (40,), (5000, 20), (3, 2, 4)):
        x, target = make(shape, "soft", "cpu")
        target[(1,) * len(shape)] = label
        for settings in ({}, {"k": 0.5}, {"reduction": "none"}, {"tau": torch.ones((), requires_grad=True)}):
            with pytest.raises(ValueError, match=rf"target must lie in \[0, 1\], got {label:g}"):
                hypersimplex_loss(x, target, **settings)
    with pytest.raises(ValueError, match="target must lie in"):
        torch.func.grad(lambda x: hypersimplex_loss(x, target))(x)
    x, target = make((8, 5), "index", "cpu")
    with pytest.raises(IndexError, match="Target 5 is out of bounds"):
        torch.func.grad(lambda x: hypersimplex_loss(x, torch.full_like(target, 5)))(x)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mask", [-1e4, -1e9, -1e30])
def test_fenchel_young_across_a_wide_gap(device, dtype, mask):
    """The threshold lies in the middle of the gap, the loss between the logits on one side: 10 r (x - (p + t) / 20)."""
    logits = torch.tensor([0.3, 0.1, mask, mask, 0.7], dtype=dtype, device=device)
    target = torch.tensor([1.0, 0, 0, 0, 1], dtype=dtype, device=device)
    terms = torch.tensor([0, 10 * logits[1].item() - 0.5, 0, 0, 0], dtype=torch.float64)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    for x, t, expected in (
        (logits, target, terms),
        (logits.repeat(64, 1).t(), target.repeat(64, 1).t(), terms.repeat(64, 1).t()),
    ):
        for reduction, value in (("sum", expected.sum()), ("mean", expected.mean()), ("none", expected)):
            loss = hypersimplex_loss(x, t, 3, 0.1, kind="fenchel_young", reduction=reduction)
            assert_close(loss, value, tolerance)
        leaf = x.clone().requires_grad_()
        for reduction in ("sum", "none"):
            loss = hypersimplex_loss(leaf, t, 3, 0.1, kind="fenchel_young", reduction=reduction)
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
            assert_close(grad, 10 * (expected > 0).double(), tolerance)


def test_fenchel_young_has_its_gradient_where_a_prediction_is_right(device):
    """(p - t) / tau, whether or not p = t somewhere, by either route and by transforms."""
    x, k = torch.tensor([0.25, -0.25, 0.0], device=device), torch.tensor(1.5, device=device)
    p = soft_binary_argmax(x, k, 2.0)
    assert_close(p, torch.tensor([0.625, 0.375, 0.5]), 1e-6)
    weight = torch.ones(1, device=device, requires_grad=True)
    for target in (p, torch.where(x == 0, 0.25, p)):
        for settings in ({"reduction": "sum"}, {"reduction": "none"}, {"reduction": "sum", "weight": weight}):
            value = lambda x: hypersimplex_loss(x, target, k, 2.0, kind="fenchel_young", **settings).sum()  # noqa: B023, E731
            leaf = x.clone().requires_grad_()
            assert_close(torch.autograd.grad(value(leaf), leaf)[0], (p - target) / 2, 1e-6)
            assert_close(torch.func.grad(value)(x), (p - target) / 2, 1e-6)


# ---- types and routes ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_sample_without_a_batch(device, kind):
    """Logits [C] with a label, as F.cross_entropy takes them."""
    x, label = torch.randn(5, device=device), torch.tensor(2, device=device)
    for reduction in ("mean", "sum", "none"):
        leaf, batch = x.clone().requires_grad_(), x.unsqueeze(0).requires_grad_()
        value = hypersimplex_loss(leaf, label, kind=kind, reduction=reduction)
        expected = hypersimplex_loss(batch, label.unsqueeze(0), kind=kind, reduction=reduction)
        assert value.shape == expected.squeeze(0).shape
        assert torch.equal(value, expected.squeeze(0))
        gradients = torch.autograd.grad(value.sum(), leaf) + torch.autograd.grad(expected.sum(), batch)
        assert torch.equal(gradients[0], gradients[1].squeeze(0))


def test_one_column_of_logits_takes_binary_labels(device):
    x, target = make((30, 1), "binary", device)
    for labels in (target, target.bool(), target.float()):
        assert torch.equal(hypersimplex_loss(x, labels), hypersimplex_loss(x[:, 0], target))


@pytest.mark.parametrize("number", [np.float64, np.float32, float, Fraction])
def test_numbers_of_any_kind(number):
    x, target = make((8, 5), "index", "cpu")
    for reduction in ("mean", "none"):
        value = hypersimplex_loss(x, target, number(0.5), number(2), label_smoothing=number(0.25), reduction=reduction)
        assert torch.equal(value, hypersimplex_loss(x, target, 0.5, 2.0, label_smoothing=0.25, reduction=reduction))
    assert torch.equal(
        hypersimplex_loss(x, target, np.int64(2), ignore_index=np.int64(-1)), hypersimplex_loss(x, target, 2)
    )
    for solver in ("threshold", "pav"):
        y = soft_binary_argmax(x, number(1.5), number(2), np.int64(0), solver=solver)
        assert torch.equal(y, soft_binary_argmax(x, 1.5, 2.0, 0, solver=solver))


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
