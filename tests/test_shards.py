"""The loss and the projection over several processes: the same as one process computes of everything."""

import math

import pytest
import torch
from torch import distributed

from hypersimplex_ext import hypersimplex_loss, soft_binary_argmax
from hypersimplex_ext.functional import loss_and_statistics
from tests.cases import numbers
from tests.tolerances import TOLERANCES

from .conftest import emulated

SETTINGS = {
    "k": "targets",
    "tau": 1.0,
    "kind": "squared",
    "weight": None,
    "sample_weight": None,
    "ignore_index": -100,
    "label_smoothing": 0.0,
    "reduction": "mean",
}


def loss_of(group, x, target, settings, upstream=1.0, kernels="cpu"):
    """Value, gradient in this shard, and state."""
    with emulated(kernels):
        x = x.detach().requires_grad_()
        value, statistics = loss_and_statistics(x, target, **{**SETTINGS, **settings}, group=group, gradient_divisor=1)
        value.backward(torch.full_like(value, upstream))
        return value.detach(), x.grad, statistics()


def one_process(x, target, settings):
    x = x.detach().requires_grad_()
    value, statistics = loss_and_statistics(x, target, **{**SETTINGS, **settings})
    value.sum().backward()
    return value.detach(), x.grad, statistics()


def shards(sizes, x, target, settings, *others):
    """The arguments of each process."""
    weights = settings.get("sample_weight")
    parts = [None] * len(sizes) if weights is None else weights.split(sizes)
    return [
        (a, b, {**settings, "sample_weight": w}, *others)
        for a, b, w in zip(x.split(sizes), target.split(sizes), parts, strict=True)
    ]


def assert_same(results, x, target, settings):
    value, grad, state = one_process(x, target, settings)
    tolerance = TOLERANCES[x.dtype]
    wide = 1e-12 if x.dtype == torch.float64 else 4 * tolerance.y
    scale = max(float(grad.abs().max()), 1e-30)
    assert float((torch.cat([r[1] for r in results]) - grad).double().abs().max()) <= wide * scale
    for r in results:
        torch.testing.assert_close(r[0], value, rtol=wide, atol=wide)
        assert torch.equal(r[2], results[0][2])
        assert_same_state(r[2], state, x.dtype)


def assert_same_state(actual, expected, dtype):
    """The same thresholds, up to rounding, and numbers of entries; the other rows may round to other sides."""
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    (p, d, _, active, k, taking_part), due = actual[:-1].view(6, -1), expected[:-1].view(6, -1)
    torch.testing.assert_close(p + d, due[0] + due[1], rtol=tolerance, atol=tolerance, equal_nan=True)
    torch.testing.assert_close(torch.stack((k, taking_part)), due[4:], rtol=1e-12, atol=0)
    assert (active - due[3]).abs().max() <= 1
    torch.testing.assert_close(actual[-1], expected[-1], rtol=1e-12, atol=0)


def batch(n=60, classes=5, dtype=torch.float64):
    return torch.randn(n, classes, dtype=dtype), torch.randint(0, classes, (n,))


CASES = {
    "plain": {},
    "fenchel_young": {"kind": "fenchel_young", "tau": 0.5},
    "int k": {"k": 7},
    "fraction": {"k": 0.3, "kind": "fenchel_young"},
    "tensors": {"k": torch.tensor([1.0, 2.5, 0.0, 30.0, 60.0]), "tau": torch.tensor([0.1, 1.0, 3.0, 0.5, 2.0])},
    "weights": {"weight": torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0]), "sample_weight": torch.linspace(0, 2, 60)},
    "weights, fenchel_young": {"sample_weight": torch.linspace(0, 2, 60), "kind": "fenchel_young", "tau": 0.7},
    "smoothing": {"label_smoothing": 0.1, "reduction": "sum"},
    "sum": {"reduction": "sum", "tau": 0.2},
    "nothing active": {"tau": 1e-6},
    "huge tau": {"tau": 1e37},
    "huge tau, fenchel_young": {"tau": 1e37, "kind": "fenchel_young"},
    "tiny tau": {"tau": 1e-35, "kind": "fenchel_young"},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_the_loss_of_all_samples(processes, kernels, dtype, name):
    x, target = batch(dtype=dtype)
    settings = CASES[name]
    for sizes in ([30, 30], [40, 0, 20], [1, 7, 50, 2]):
        results = processes.run(loss_of, shards(sizes, x, target, settings, 1.0, kernels))
        assert_same(results, x, target, settings)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_order_of_shards_does_not_matter(processes, reverse):
    x, target = batch(1000, 10, torch.float32)
    x = 100 + 3 * x
    parts = shards([10, 300, 690], x, target, {})
    order = [2, 1, 0] if reverse else [1, 2, 0]
    first, other = processes.run(loss_of, parts), processes.run(loss_of, [parts[i] for i in order])
    torch.testing.assert_close(first[0][2], other[0][2], rtol=1e-12, atol=1e-12)
    for i, result in zip(order, other, strict=True):
        torch.testing.assert_close(result[1], first[i][1], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(processes, kernels, dtype):
    x, target = batch(dtype=dtype)
    assert_same(processes.run(loss_of, shards([15, 45], x, target, {}, 1.0, kernels)), x, target, {})


def test_strides(processes):
    x, target = batch(90, 4)
    for logits in (x.T.contiguous().T, torch.stack((x, x), 1)[:, 0], x.repeat_interleave(2, 1)[:, ::2]):
        parts = [
            (p.as_strided(p.shape, p.stride(), p.storage_offset()), t, {})
            for p, t in zip(logits.split([50, 40]), target.split([50, 40]), strict=True)
        ]
        assert_same(processes.run(loss_of, parts), x, target, {})


@pytest.mark.parametrize("settings", [{}, {"kind": "fenchel_young"}, {"k": 0.4, "label_smoothing": 0.2}])
def test_ignored_samples(processes, kernels, settings):
    x, target = batch()
    target[:25] = -100  # of the first process all but a few
    target[40] = -100
    assert_same(processes.run(loss_of, shards([28, 32], x, target, settings, 1.0, kernels)), x, target, settings)
    assert_same(processes.run(loss_of, shards([20, 20, 20], x, target, settings, 1.0, kernels)), x, target, settings)


@pytest.mark.parametrize("settings", [{}, {"kind": "fenchel_young", "tau": 2.0}, {"sample_weight": torch.rand(60)}])
def test_dense_targets(processes, kernels, settings):
    x, _ = batch()
    target = torch.rand_like(x)
    target[target < 0.2] = -100
    assert_same(processes.run(loss_of, shards([10, 50], x, target, settings, 1.0, kernels)), x, target, settings)


def test_binary(processes, kernels):
    x, target = torch.randn(70, dtype=torch.float64), torch.randint(0, 2, (70,))
    assert_same(processes.run(loss_of, shards([10, 60], x, target, {}, 1.0, kernels)), x, target, {})
    x = x.unsqueeze(1)
    assert_same(processes.run(loss_of, shards([10, 60], x, target, {}, 1.0, kernels)), x, target, {})


def test_images(processes, kernels):
    x, target = torch.randn(6, 3, 4, 5, dtype=torch.float64), torch.randint(0, 3, (6, 4, 5))
    for logits in (x, x.to(memory_format=torch.channels_last)):
        assert_same(processes.run(loss_of, shards([2, 4], logits, target, {}, 1.0, kernels)), x, target, {})


def test_classes_of_one_process(processes):
    x, target = batch(80, 4)
    target[:30] = 3  # the first process has one class alone, which the second has not
    target[30:] = target[30:] % 3
    assert_same(processes.run(loss_of, shards([30, 50], x, target, {})), x, target, {})


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_samples_at_all(processes, kernels, reduction):
    settings = {"reduction": reduction}
    for value, grad, _ in processes.run(loss_of, shards([0, 0], *batch(0), settings, 1.0, kernels)):
        assert value.isnan() if reduction == "mean" else value == 0
        assert grad.shape == (0, 5)


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_special_values(processes, kernels, special):
    x, target = batch(classes=3)
    x[45, 1] = special  # in the second process
    results = processes.run(loss_of, shards([30, 30], x, target, {}, 1.0, kernels))
    value, grad, state = one_process(x, target, {})
    for i, r in enumerate(results):
        torch.testing.assert_close(r[0], value, rtol=1e-12, atol=0, equal_nan=True)
        torch.testing.assert_close(r[1], grad.split(30)[i], rtol=1e-10, atol=1e-14, equal_nan=True)
        assert_same_state(r[2], state, x.dtype)


def test_other_groups(processes):
    x, target = batch()
    for ranks in ((1, 3), (0, 2, 3)):
        sizes = [60 // len(ranks)] * len(ranks)
        assert_same(processes.run(loss_of, shards(sizes, x, target, {}), ranks), x, target, {})


def losses_in_turn(group, others, x, target):
    """The same loss over disjoint groups, made by all processes."""
    mine = [distributed.new_group(ranks) for ranks in others]
    own = next(g for g, ranks in zip(mine, others, strict=True) if distributed.get_rank() in ranks)
    return loss_of(own, x, target, {})


def test_disjoint_groups(processes):
    x, target = batch()
    y, other = batch(40)
    parts = [*zip(x.split(30), target.split(30), strict=True), *zip(y.split(20), other.split(20), strict=True)]
    results = processes.run(losses_in_turn, [([(0, 1), (2, 3)], *p) for p in parts])
    assert_same(results[:2], x, target, {})
    assert_same(results[2:], y, other, {})


def with_divisor(group, x, target, divisor, upstream):
    x = x.detach().requires_grad_()
    (upstream * hypersimplex_loss(x, target, group=group, gradient_divisor=divisor)).backward()
    return x.grad


def test_divisor(processes):
    x, target = batch()
    grad = one_process(x, target, {})[1]
    for divisor, factor in ((None, 3), (1, 1), (8, 8), (0.5, 0.5)):
        arguments = [(a, b, divisor, 1.0) for a, b in zip(x.split(20), target.split(20), strict=True)]
        torch.testing.assert_close(torch.cat(processes.run(with_divisor, arguments)), factor * grad)
    arguments = [(a, b, 1, s) for a, b, s in zip(x.split(20), target.split(20), (1.0, 2.0, 3.0), strict=True)]
    scaled = processes.run(with_divisor, arguments)  # a process's own upstream gradient scales its own
    for s, mine, due in zip((1.0, 2.0, 3.0), scaled, grad.split(20), strict=True):
        torch.testing.assert_close(mine, s * due)
    for wrong in (0, -1.0, math.inf):
        for error in processes.run(with_divisor, [(*batch(), wrong, 1.0)] * 2, errors=True):
            assert error.kind == "ValueError"
            assert "gradient_divisor must lie in (0, inf)" in error.message


# ---- composed ----


def without_reduction(group, x, target, settings, upstream):
    x = x.detach().requires_grad_()
    terms = hypersimplex_loss(x, target, reduction="none", group=group, **settings)
    (terms * upstream).sum().backward()
    return terms.detach(), x.grad


@pytest.mark.parametrize("settings", [{}, {"kind": "fenchel_young", "tau": 0.5}, {"k": 0.3, "label_smoothing": 0.1}])
def test_no_reduction(processes, kernels, settings):
    x, target = batch()
    target[3::7] = -100
    upstream = torch.rand_like(x)
    whole = x.clone().requires_grad_()
    terms = hypersimplex_loss(whole, target, reduction="none", **settings)
    (terms * upstream).sum().backward()
    parts = zip(x.split(20), target.split(20), [settings] * 3, upstream.split(20), strict=True)
    results = processes.run(without_reduction, list(parts))
    torch.testing.assert_close(torch.cat([r[0] for r in results]), terms.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(torch.cat([r[1] for r in results]), whole.grad, rtol=1e-11, atol=1e-13)


def learned(group, x, target, k, tau, kind):
    x, k, tau = (t.detach().requires_grad_() for t in (x, k, tau))
    value = hypersimplex_loss(x, target, k, tau, kind=kind, group=group, gradient_divisor=1)
    value.backward()
    return value.detach(), x.grad, k.grad, tau.grad


@pytest.mark.parametrize("kind", ["squared", "fenchel_young"])
def test_learned_settings(processes, kind):
    x, target = batch(classes=3)
    k, tau = torch.tensor([5.0, 10.5, 30.0]), torch.tensor([0.5, 1.0, 2.0])
    value, *grads = learned(None, x, target, k, tau, kind)
    parts = zip(x.split(20), target.split(20), [k] * 3, [tau] * 3, [kind] * 3, strict=True)
    results = processes.run(learned, list(parts))
    for r in results:
        torch.testing.assert_close(r[0], value)
    torch.testing.assert_close(torch.cat([r[1] for r in results]), grads[0])
    for i in (1, 2):  # each process has its share
        torch.testing.assert_close(sum(r[1 + i] for r in results), grads[i], rtol=1e-5, atol=1e-7)


# ---- the projection ----


def project(group, x, k, tau, dim, upstream, mask, kernels):
    with emulated(kernels):
        x = x.detach().requires_grad_()
        k, tau = (v.clone().requires_grad_() if isinstance(v, torch.Tensor) else v for v in (k, tau))
        y, t = soft_binary_argmax(x, k, tau, dim, mask=mask, return_threshold=True, group=group)
        (y * upstream).sum().backward()
        return y.detach(), x.grad, t, *(v.grad if isinstance(v, torch.Tensor) else None for v in (k, tau))


@pytest.mark.parametrize(
    ("shape", "dim", "k", "tau"),
    [
        ((50,), 0, 3, 1.0),
        ((50,), -1, 49.5, 0.01),
        ((4, 50), 1, numbers(1.0, 2.0, 25.5, 50.0), numbers(0.1, 1.0, 2.0, 3.0)),
        ((50, 4), 0, 10, 5.0),
        ((2, 50, 3), 1, 0.5, 0.3),
        ((50, 2), 0, 7, 1e-9),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_projection(processes, kernels, shape, dim, k, tau, masked):
    x = torch.randn(shape, dtype=torch.float64)
    upstream, mask = torch.randn_like(x), torch.rand_like(x) < 0.8 if masked else None
    whole = project(None, x, k, tau, dim, upstream, mask, "cpu")
    sizes = [5, 0, 45]
    masks = [None] * 3 if mask is None else mask.split(sizes, dim)
    parts = zip(x.split(sizes, dim), upstream.split(sizes, dim), masks, strict=True)
    results = processes.run(project, [(a, k, tau, dim, u, m, kernels) for a, u, m in parts])
    for i in (0, 1):
        torch.testing.assert_close(torch.cat([r[i] for r in results], dim), whole[i], rtol=1e-11, atol=1e-12)
    for r in results:
        assert torch.equal(r[2], results[0][2])
        torch.testing.assert_close(r[2], whole[2], rtol=1e-10, atol=1e-10)
    for i in (3, 4):
        if whole[i] is not None:
            torch.testing.assert_close(sum(r[i] for r in results), whole[i], rtol=1e-10, atol=1e-11)
