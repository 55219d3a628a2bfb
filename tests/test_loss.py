"""The loss: fused against composed against the reference, for every combination of what it takes."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import mse_loss, one_hot

from hypersimplex_ext import _loss, hypersimplex_loss, reference, soft_binary_argmax
from hypersimplex_ext._arguments import TARGETS, Arguments
from hypersimplex_ext._loss_ops import thresholds_of

from .cases import INF, all_types, assert_close, clear_of_kinks
from .tolerances import TOLERANCES

KINDS = ("squared", "fenchel_young")
IGNORED = -100


def expected_loss(
    x, target, k="targets", tau=1.0, *, weight=None, sample_weight=None, label_smoothing=0.0, kind, ignore_index=IGNORED
):
    """From the definition, in float64 with one-hot targets: terms and gradient [n, C] by sample, what the mean
    divides by, and which classes are clear of kinks."""
    original, x = x, x.detach().double().cpu()
    flat = lambda t: t.unsqueeze(1) if t.ndim == 1 else t.movedim(1, -1).flatten(0, -2)  # noqa: E731
    logits = flat(x)
    classes = logits.shape[1]
    if target.shape == x.shape or classes == 1:
        t = target.double().cpu().reshape(x.shape)
        valid = flat(t) != ignore_index
        t = flat(t).where(valid, 0)
    else:
        index = target.cpu().long().flatten()
        valid = (index != ignore_index).unsqueeze(1).expand(-1, classes)
        t = one_hot(index.where(valid[:, 0], 0), classes).double()
    t = (1 - label_smoothing) * t + label_smoothing / max(classes, 2)
    taking_part = valid.sum(0).double()
    if isinstance(k, str):
        mass = t.where(valid, 0).sum(0)
    elif isinstance(k, float):
        mass = (k * taking_part + 1e-9).floor()
    else:
        mass = torch.as_tensor(k).detach().double().cpu().expand(classes)
    tau = torch.as_tensor(tau).detach().double().cpu().expand(classes)
    s = (torch.ones(len(logits)) if sample_weight is None else sample_weight.detach().cpu().flatten()).double()
    w = (torch.ones(classes) if weight is None else weight.detach().cpu()).double()
    terms, gradient, clear = torch.zeros_like(logits), torch.zeros_like(logits), torch.ones(classes, dtype=torch.bool)
    alike = (valid == valid[:, :1]).all()
    for c in [slice(None)] if alike else [slice(c, c + 1) for c in range(classes)]:
        rows = valid[:, c][:, 0]
        terms[rows, c], gradient[rows, c] = reference.loss(
            logits[rows, c], t[rows, c], mass[c], tau[c], kind=kind, weight=w[c], sample_weight=s[rows]
        )
        margin = 1e-11 if original.dtype == torch.float64 else 2e-6
        clear[c] = clear_of_kinks(logits[rows, c], mass[c], tau[c], dim=0, margin=margin)
    return terms, gradient, float((s.unsqueeze(1) * valid * w).sum()), clear


def unflatten(t, x):
    """[n, C] in the layout of the logits."""
    return t.squeeze(1) if x.ndim == 1 else t.reshape(x.shape[0], *x.shape[2:], -1).movedim(-1, 1)


def assert_loss(x, target, *arguments, kind, **keywords):
    """Every reduction, fused and composed, and their gradients."""
    terms, gradient, divisor, clear = expected_loss(x, target, *arguments, kind=kind, **keywords)
    tolerance = TOLERANCES[x.dtype]
    leaf = x.detach().requires_grad_()
    keep = unflatten(clear.expand(terms.shape), x)
    assert keep.any()
    gradient = unflatten(gradient, x) * keep
    magnitude = float(terms.abs().sum())
    for reduction, scale in (("mean", divisor), ("sum", 1.0)):
        value = hypersimplex_loss(leaf, target, *arguments, kind=kind, reduction=reduction, **keywords)
        assert value.dtype == x.dtype
        assert value.shape == ()
        assert abs(value.item() - float(terms.sum()) / scale) <= tolerance.loss * magnitude / scale
        (grad,) = torch.autograd.grad(value, leaf)
        assert grad.dtype == x.dtype
        assert_close(grad.cpu() * keep, gradient / scale, tolerance.gradient)
    value = hypersimplex_loss(leaf, target, *arguments, kind=kind, reduction="none", **keywords)
    assert value.shape == x.shape
    assert_close(value.detach(), unflatten(terms, x), 10 * tolerance.loss)
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    assert_close(grad.cpu() * keep, gradient, tolerance.gradient)


def make(shape, targets, device, dtype=torch.float32):
    x = torch.randn(shape, dtype=torch.float64).to(dtype).to(device)
    samples = (shape[0], *shape[2:])
    if targets == "index":
        return x, torch.randint(shape[1], samples, device=device)
    if targets == "ignored":
        target = torch.randint(shape[1], samples, device=device)
        return x, torch.where(torch.rand(samples, device=device) < 0.3, IGNORED, target)
    if targets == "multi_hot":
        return x, torch.rand(shape, device=device) < 0.4
    if targets == "binary":
        return x, torch.randint(2, samples, device=device)
    soft = torch.rand(shape, device=device).to(dtype)
    return x, torch.where(torch.rand(shape, device=device) < 0.2, IGNORED, soft) if targets == "holes" else soft


SHAPES = {"[n, C]": (50, 7), "[N, C, d]": (6, 5, 9), "[N, C, d, e]": (4, 3, 2, 5), "[n]": (40,), "[n, 1]": (40, 1)}
COMBINATIONS = [
    (shape, targets)
    for shape, targets in itertools.product(SHAPES, ("index", "ignored", "binary", "multi_hot", "soft", "holes"))
    if (shape in ("[n]", "[n, 1]")) == (targets == "binary") or targets in ("multi_hot", "soft", "holes")
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "targets"), COMBINATIONS)
@pytest.mark.parametrize("weights", [(), ("weight",), ("sample_weight",), ("weight", "sample_weight")], ids="-".join)
def test_every_combination(device, kind, shape, targets, weights):
    sizes = SHAPES[shape]
    x, target = make(sizes, targets, device)
    classes = sizes[1] if len(sizes) > 1 else 1
    samples = (sizes[0], *sizes[2:])
    given_weights = {
        name: 0.5 + torch.rand((classes,) if name == "weight" else samples, device=device) for name in weights
    }
    masses = ["targets", 0.3, 5, 4.5 + torch.rand(classes, device=device)]
    taus = [0.7, 0.5 + torch.rand(classes, device=device)]
    for k, tau, smoothing in [*itertools.product(masses, taus, (0.0,)), ("targets", 0.7, 0.2), (0.3, taus[1], 0.2)]:
        assert_loss(x, target, k, tau, kind=kind, label_smoothing=smoothing, **given_weights)


@all_types
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (33, 10), (257, 17), (70, 40), (500, 100), (3, 200)])
def test_sizes(device, kind, shape, dtype):
    for targets in ("index", "ignored", "soft", "holes"):
        x, target = make(shape, targets, device, dtype)
        if targets in ("ignored", "holes"):
            target[0] = 0
        assert_loss(x, target, kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_long_columns(backend, device, kind):
    if backend == "simt":
        pytest.skip("long vectors are slow to emulate")
    for shape in ((50_000, 3), (20_000, 20), (150_000,)):
        x, target = make(shape, "holes" if len(shape) == 1 else "ignored", device)
        x = x if x.ndim > 1 else x.mul(64).round().div(64)  # or some entry would lie at a kink
        assert_loss(x, target, kind=kind)


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "strided": lambda x: torch.stack([x, -x], -1)[..., 0],
    "expanded": lambda x: x[:1].expand_as(x),
    "reversed_dimensions": lambda x: x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["[n, C]", "[N, C, d]", "[N, C, d, e]"])
@pytest.mark.parametrize(("layout", "other"), [*itertools.pairwise([*LAYOUTS, "contiguous"])])
def test_layouts(device, kind, shape, layout, other):
    for targets in ("ignored", "soft", "holes"):
        x, target = make(SHAPES[shape], targets, device)
        x = LAYOUTS[layout](x)
        if targets != "ignored":
            target = LAYOUTS[other](target)
        elif target.ndim > 1:
            target = LAYOUTS["transposed"](target)
        leaf, plain = x.detach().requires_grad_(), x.detach().contiguous().requires_grad_()
        value = hypersimplex_loss(leaf, target, tau=0.7, kind=kind)
        expected = hypersimplex_loss(plain, target.contiguous(), tau=0.7, kind=kind)
        assert torch.equal(value, expected)
        (grad,), (expected,) = torch.autograd.grad(value, leaf), torch.autograd.grad(expected, plain)
        assert torch.equal(grad, expected)
        if torch.empty_like(x).stride() == x.stride() and layout != "reversed_dimensions":
            assert grad.stride() == x.stride()


@given(data=st.data())
def test_any_batch(data):
    n, classes = data.draw(st.integers(1, 40), label="n"), data.draw(st.integers(1, 20), label="C")
    tied = data.draw(st.booleans(), label="ties")
    x = torch.randn(n, classes) * data.draw(st.sampled_from([0.1, 1.0, 10.0]), label="scale")
    x = x.mul(4).round().div(4) if tied else x
    target = torch.randint(classes, (n,))
    target[torch.rand(n) < data.draw(st.sampled_from([0.0, 0.5, 1.0]), label="ignored")] = IGNORED
    kind = data.draw(st.sampled_from(KINDS), label="kind")
    tau = data.draw(st.sampled_from([0.01, 0.6, 5.0]), label="tau")
    k = data.draw(st.one_of(st.just("targets"), st.floats(0, 1), st.integers(0, n)), label="k")
    taking_part = int((target != IGNORED).sum())
    values = {r: hypersimplex_loss(x, target, k, tau, kind=kind, reduction=r) for r in ("mean", "sum", "none")}
    if taking_part == 0:
        assert values["mean"].isnan()
        assert (values["none"] == 0).all()
        return
    terms, _, divisor, _ = expected_loss(
        x, target, k if not isinstance(k, int) else min(k, taking_part), tau, kind=kind
    )
    magnitude = float(terms.abs().sum())
    assert abs(float(values["sum"]) - float(terms.sum())) <= 1e-5 * magnitude
    assert abs(float(values["mean"]) - float(terms.sum()) / divisor) <= 1e-5 * magnitude / divisor
    assert_close(values["none"], terms, 1e-4)


# ---- k ----


def test_int_and_float_k_differ(device):
    x, target = make((10, 4), "index", device)
    one, all_of_them = hypersimplex_loss(x, target, 1, kind="squared"), hypersimplex_loss(x, target, 1.0)
    assert_close(one, mse_loss(soft_binary_argmax(x, 1, dim=0), one_hot(target, 4).float()), 1e-6)
    assert_close(all_of_them, mse_loss(torch.ones_like(x), one_hot(target, 4).float()), 1e-6)


@pytest.mark.parametrize(
    ("fraction", "n", "whole"),
    [(0.1, 49, 4), (1 / 3, 3, 1), (0.5, 7, 3), (0.29, 100, 29), (0.57, 100, 57), (0.07, 100, 7), (0.999, 100, 99)],
)
def test_fractions_are_rounded_down_as_they_are_written(device, fraction, n, whole):
    """.29 * 100 is 28.999999999999996."""
    x, target = make((n, 2), "index", device)
    expected = hypersimplex_loss(x, target, whole)
    assert torch.equal(hypersimplex_loss(x, target, fraction), expected)
    assert_close(hypersimplex_loss(x, target, fraction, reduction="none").mean(), expected, 1e-6)


def test_targets_are_counted_exactly(device):
    for n in range(1, 60):
        x, target = torch.zeros(n, 2, device=device), torch.arange(n, device=device) % 3 % 2
        _, statistics = _loss.loss(x, arguments(target, tau=n))
        threshold = thresholds_of(statistics())
        count = one_hot(target, 2).sum(0).double()  # n ties: y = k / n = -t / tau
        expected = torch.where(count == 0, INF, torch.where(count == n, -INF, -count))
        assert_close(
            threshold[expected.isfinite()], expected[expected.isfinite()], 1e-6
        ) if expected.isfinite().any() else None
        assert torch.equal(threshold.isfinite().cpu(), expected.isfinite().cpu())


def arguments(target, tau=1.0, kind=0, reduction=0):
    return Arguments(target, None, None, None, None, 0.0, TARGETS, tau, IGNORED, 0.0, kind, reduction)


# ---- what the fused route promises ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", ["index", "soft"])
def test_nothing_is_kept_per_element(device, kind, targets):
    x, target = make((500, 7), targets, device)
    x.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        value = hypersimplex_loss(x, target, kind=kind)
    known = {x.data_ptr(), target.data_ptr()}
    assert [t.numel() for t in kept if t.data_ptr() not in known] == [6 * 7 + 1]
    assert value.grad_fn is not None


@pytest.mark.parametrize("weighted", [False, True])
def test_the_graph_is_one_node(device, weighted):
    x, target = make((50, 7), "index", device)
    leaf, weight = x.requires_grad_(), torch.ones(7, device=device) if weighted else None
    for _ in range(2):  # checked, and as one that was checked before
        value = hypersimplex_loss(leaf, target, weight=weight)
        node = value.grad_fn
        assert type(node).__name__ == "_FusedLossBackward"
        assert [type(n).__name__ for n, _ in node.next_functions if n is not None] == ["AccumulateGrad"]


def test_logits_may_not_change_before_backward(device):
    x, target = make((50, 7), "soft", device)
    for changed in (0, 1):
        tensors = x.clone().requires_grad_() * 1, target.clone()
        value = hypersimplex_loss(*tensors)
        tensors[changed].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


def test_hooks_may_move_what_is_saved(device):
    """As torch.autograd.graph.save_on_cpu(pin_memory=True) does, which gives back contiguous copies."""
    x, target = make((50, 7), "index", device)
    dense, target = torch.rand(7, 50, device=device).t(), target.repeat_interleave(2)[::2]
    for t in (target, dense):
        gradients = []
        for hook in (lambda t: t, torch.clone, lambda t: t.clone(memory_format=torch.contiguous_format)):
            for layout in (x, x.t().contiguous().t()):
                leaf = layout.requires_grad_()
                with torch.autograd.graph.saved_tensors_hooks(hook, lambda t: t):
                    value = hypersimplex_loss(leaf, t)
                gradients.append(torch.autograd.grad(value, leaf)[0])
        assert all(torch.equal(gradients[0], g) for g in gradients[1:])


def test_upstream_gradients_that_are_lazily_negated(device):
    x, target = make((50, 7), "index", device)
    x.requires_grad_()
    value = hypersimplex_loss(x, target)
    negated = torch.complex(*torch.ones(2, device=device)).conj().imag
    assert negated.is_neg()
    (expected,) = torch.autograd.grad(value, x, retain_graph=True)
    assert torch.equal(torch.autograd.grad(value, x, negated)[0], -expected)


@pytest.mark.parametrize("shape", [(20_000, 10), (3000, 100), (100_000,), (90_000, 2)])
def test_results_repeat_whatever_the_number_of_threads(set_threads, shape):
    x, target = make(shape, "soft" if len(shape) == 1 else "ignored", "cpu")
    results = []
    for threads in (1, 2, 3, 2):
        set_threads(threads)
        for kind in KINDS:
            leaf = x.clone().requires_grad_()
            value = hypersimplex_loss(leaf, target, kind=kind)
            results.append((kind, value.detach(), *torch.autograd.grad(value, leaf)))
    for kind, *values in results:
        first = next(others for other, *others in results if other == kind)
        assert all(torch.equal(a, b) for a, b in zip(values, first, strict=True))


def test_upstream_gradient(device):
    x, target = make((50, 7), "index", device)
    x.requires_grad_()
    for kind in KINDS:
        (once,) = torch.autograd.grad(hypersimplex_loss(x, target, kind=kind), x)
        (thrice,) = torch.autograd.grad(3 * hypersimplex_loss(x, target, kind=kind), x)
        assert_close(thrice, 3 * once, 1e-6)
