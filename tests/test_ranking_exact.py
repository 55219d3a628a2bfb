"""Soft ranks, soft sorts and permutahedra against exact arithmetic: how far logits may lie from each other, from zero
and beside the strength."""

import math
import random
import sys
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
import torch

from hypersimplex_ext import project_permutahedron, reference, soft_rank, soft_sort

from .cases import NAN

KINDS = {
    "normal": torch.randn,
    "ties": lambda n: (2 * torch.randn(n)).round(),
    "shifted": lambda n: torch.randn(n, dtype=torch.float64) + random.choice([1e6, -1e9, 1.7e18]),
    "far": lambda n: torch.where(torch.rand(n) < 0.3, random.choice([-1e30, -1e9, 1e20]), torch.randn(n)),
    "of all sizes": lambda n: (20 * torch.randn(n)).exp(),
    "far pairs": lambda n: (2 * torch.randn(n)).round() * 1e5 + (torch.rand(n) < 0.5) * 1e-3,
}
STRENGTHS = (2.3e-308, 1e-100, 1e-16, 1e-6, 1e-2, 1.0, 30.0, 1e20)


def pooled(a, b):
    """a - v with v the non-increasing regression of a - b, in fractions."""
    blocks = []
    for first, second in zip(a, b, strict=True):
        blocks.append((first - second, 1))
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] < blocks[-1][0] * blocks[-2][1]:
            total, size = blocks.pop()
            blocks[-1] = blocks[-1][0] + total, blocks[-1][1] + size
    v = [total / size for total, size in blocks for _ in range(size)]
    return [first - level for first, level in zip(a, v, strict=True)]


def pooled_kl(a, b):
    """The same with v = log sum exp(a) - log sum exp(b), in decimals; sums are relative to a block's first entries."""

    def level(block):
        return block[0] - block[2] + (block[1] / block[3]).ln()

    def shifted(by):
        return by.exp() if by > -2000 else Decimal(0)

    blocks = []
    for first, second in zip(a, b, strict=True):
        blocks.append((first, Decimal(1), second, Decimal(1), 1))
        while len(blocks) > 1 and level(blocks[-2]) < level(blocks[-1]):
            right, left = blocks.pop(), blocks.pop()
            sum_a = left[1] + right[1] * shifted(right[0] - left[0])
            sum_b = left[3] + right[3] * shifted(right[2] - left[2])
            blocks.append((left[0], sum_a, left[2], sum_b, left[4] + right[4]))
    v = [level(block) for block in blocks for _ in range(block[4])]
    return [first - level for first, level in zip(a, v, strict=True)]


def exact_rank(x, w, strength, regularization):
    """Of entries x; w descends, ranks for "kl"."""
    order = sorted(range(len(x)), key=lambda i: -x[i])
    if regularization == "kl":
        s, b = [Decimal(x[i]) / Decimal(strength) for i in order], [Decimal(v).ln() for v in w]
        y = [v.exp() for v in pooled_kl(s, b)]
    else:
        y = pooled([Fraction(x[i]) / Fraction(strength) for i in order], [Fraction(v) for v in w])
    ranks = [0.0] * len(x)
    for i, v in zip(order, y, strict=True):
        ranks[i] = float(v)
    return torch.tensor(ranks, dtype=torch.float64)


def exact_sort(x, strength, regularization):
    kind, pool = (Decimal, pooled_kl) if regularization == "kl" else (Fraction, pooled)
    ramp = [kind(len(x) - j) / kind(strength) for j in range(len(x))]
    y = pool(ramp, [kind(v) for v in sorted((-v for v in x), reverse=True)])
    return torch.tensor([-float(v) for v in y], dtype=torch.float64)


def assert_exact(actual, expected, scale):
    """To a few units in the last place of what the result is made of."""
    largest = max(float(expected.abs().max()), scale)
    tolerance = 8 if actual.dtype == torch.float64 else 0.51
    assert (actual.double() - expected).abs().max() <= tolerance * torch.finfo(actual.dtype).eps * largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_results_are_exact_for_all_logits_and_strengths(device, kind, dtype):
    random.seed(0)
    for strength in STRENGTHS:
        for n in (1, 2, 7, 24):
            x = KINDS[kind](n).to(dtype)
            entries, on_device, ranks = x.tolist(), x.to(device), [float(n - j) for j in range(n)]
            w = torch.randn(n).to(dtype)
            y = project_permutahedron(on_device, w.to(device), strength)
            expected = exact_rank(entries, w.sort(descending=True).values.tolist(), strength, "l2")
            assert_exact(y.cpu(), expected, float(w.abs().max()))
            for regularization in ("l2", "kl"):
                if regularization == "kl" and strength < 1e-20:
                    continue  # hundreds of decimals
                with localcontext(prec=80):
                    expected = exact_rank(entries, ranks, strength, regularization)
                    ordered = exact_sort(entries, strength, regularization)
                assert_exact(soft_rank(on_device, regularization, strength).cpu(), expected, 1.0)
                scale = max(float(x.abs().max()), math.log(n + 1))
                assert_exact(soft_sort(on_device, regularization, strength).cpu(), ordered, scale)
                for function, exact in ((reference.soft_rank, expected), (reference.soft_sort, ordered)):
                    assert_exact(function(x, regularization, strength).to(dtype), exact, scale)


def test_a_temperature_in_a_tensor_keeps_the_digits_that_a_number_keeps(device):
    steps, w = 256 * torch.randn(5, 24, dtype=torch.float64).round(), torch.randn(24)
    ordered, weights = w.double().sort(descending=True).values.tolist(), w.to(device)
    for shift, dtype in ((0.0, torch.float32), (2.0**40, torch.float64), (-(2.0**60), torch.float64)):
        x = (shift + steps).to(dtype)
        x[0, ::3] = torch.finfo(torch.float32).min
        for taus in ([3.0, 0.1, 700.0, 1e-3, 1e5], [2.3e-308, 1e-300, 1e-160, 1e160, 1.7e308]):
            y = project_permutahedron(x.to(device), weights, torch.tensor(taus, dtype=torch.float64, device=device))
            for row, result, one in zip(x.tolist(), y.cpu(), taus, strict=True):
                assert_exact(result, exact_rank(row, ordered, one, "l2"), float(w.abs().max()))


def test_gradients_do_not_move_with_a_shift(device):
    """Neither those in the temperature nor the shares of a block, where entries are large beside their differences."""
    steps, w = torch.randn(4, 40, dtype=torch.float64).mul(16).round().div(8), torch.randn(40, dtype=torch.float64)
    operators = (
        lambda x, tau: project_permutahedron(x, w.to(device), tau),
        lambda x, tau: soft_sort(x, "kl", 0.7) - x.detach().amax(-1, keepdim=True),
        lambda x, tau: soft_rank(x, "kl", 3.0),
    )
    for operator in operators:
        found = []
        for shift in (0.0, 2.0**30, -(2.0**40)):
            x = (steps + shift).to(device).requires_grad_()
            tau = torch.tensor([0.3, 1.0, 3.0, 10.0], dtype=torch.float64, device=device).requires_grad_()
            weights = torch.linspace(-1, 2, 40, dtype=torch.float64, device=device)
            found.append(torch.autograd.grad((weights * operator(x, tau)).sum(), (x, tau), materialize_grads=True))
        for gradients in found[1:]:
            for gradient, expected in zip(gradients, found[0], strict=True):
                assert (gradient - expected).abs().max() <= 1e-11 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("kernels", [True, False])
def test_entries_apart_from_all_others_have_no_gradient(request, device, kernels):
    """w v / w is not always v, and what rounding leaves would be divided by the strength."""
    if not kernels:
        request.getfixturevalue("without_kernels")
    x, v = (1e6 * torch.randperm(500)).double().to(device), torch.randn(500, dtype=torch.float64, device=device)
    x[7], x[8], v[7] = x[9], x[9], 0.5
    for regularization in ("l2", "kl"):
        leaf = x.clone().requires_grad_()
        y = soft_rank(leaf, regularization, 1e-9)
        (grad,) = torch.autograd.grad(y, leaf, v)
        tangent = torch.func.jvp(lambda x: soft_rank(x, regularization, 1e-9), (x,), (v,))[1]  # noqa: B023
        for product in (grad, tangent):
            assert product.nonzero().flatten().tolist() == [7, 8, 9]
        v[100] = NAN
        (grad,) = torch.autograd.grad(soft_rank(leaf, regularization, 1e-9), leaf, v)
        assert grad.isnan().nonzero().flatten().tolist() == [100]
        v[100] = 1.0


def test_vectors_of_far_entries_do_not_depend_on_threads(backend):
    if backend != "cpu":
        pytest.skip("the CPU's threads")
    kinds = {
        "apart": (1e-9 * torch.randperm(30_000), 1e-30),
        "pairs": (torch.arange(30_000) // 2 * 1e9, 1.0),
        "long blocks": (torch.arange(30_000) // 10_000 * 1e9 + torch.rand(30_000, dtype=torch.float64), 1e-3),
    }
    for x, strength in kinds.values():
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for regularization in ("l2", "kl"):
                results.append(soft_rank(x.double(), regularization, strength))
                results.append(soft_sort(x.double(), regularization, strength))
        torch.set_num_threads(1)
        for i, result in enumerate(results):
            assert torch.equal(result, results[i % 4])


@pytest.mark.parametrize("regularization", ["l2", "kl"])
def test_long_vectors_of_far_entries_are_exact(device, regularization):
    """Many blocks of two, across chunks and words."""
    n = 5000
    x = torch.arange(n, dtype=torch.float64, device=device) // 2 * 1e9
    y = soft_rank(x, regularization, 1.0)
    expected = (torch.arange(n, dtype=torch.float64, device=device) // 2) * 2 + 1.5
    assert (y - expected).abs().max() <= 1e-12 * n
    leaf = x.requires_grad_()
    (grad,) = torch.autograd.grad(soft_rank(leaf, regularization, 1.0)[2 * 700], leaf)
    assert grad.nonzero().flatten().tolist() == [1400, 1401]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("regularization", ["l2", "kl"])
@pytest.mark.parametrize("descending", [False, True])
def test_masked_entries_take_no_rank(device, dtype, regularization, descending):
    settings = {"regularization": regularization, "descending": descending}
    tolerance = {torch.float16: 4e-3, torch.float32: 1e-6, torch.float64: 1e-13}[dtype]
    mask = torch.rand(6, 9, device=device) < 0.6
    mask[0], mask[1] = False, True
    for strength in (2.3e-308, 1e-3, 0.5, 30.0, 1e300, sys.float_info.max):
        settings["regularization_strength"] = strength
        x, g = torch.randn(6, 9, device=device).to(dtype), torch.randn(6, 9, device=device).to(dtype)
        x[2, :2] = max(torch.finfo(dtype).min, -1e300)  # as masks of the other kind leave them
        leaf = torch.where(mask, x, NAN).requires_grad_()
        ranks, ordered = soft_rank(leaf, mask=mask, **settings), soft_sort(leaf, mask=mask, **settings)
        assert ranks.dtype == ordered.dtype == dtype
        gradients = [torch.autograd.grad(y, leaf, g)[0] for y in (ranks, ordered)]
        assert (ranks[~mask] == 0).all()
        assert all((gradient[~mask] == 0).all() for gradient in gradients)
        for i, row in enumerate(mask):
            m = int(row.sum())
            assert (ordered[i, m:] == 0).all()
            alone = x[i, row].requires_grad_()
            if m == 0:
                continue
            pairs = [
                (ranks[i, row], gradients[0][i, row], soft_rank(alone, **settings), g[i, row]),
                (ordered[i, :m], gradients[1][i, row], soft_sort(alone, **settings), g[i, :m]),
            ]
            for y, gradient, expected, upstream in pairs:
                size = max(1.0, float(expected.detach().abs().max()))
                assert (y - expected).abs().max() <= tolerance * size
                (expected,) = torch.autograd.grad(expected, alone, upstream)
                if strength < 1e-300:
                    continue  # of ties, beyond the range
                assert (gradient - expected).abs().max() <= 4 * tolerance * max(1.0, float(expected.abs().max()))


def test_masks_in_transforms_and_columns(device):
    x, mask = torch.randn(3, 5, 4, device=device), torch.rand(3, 5, 4, device=device) < 0.7
    for function in (soft_rank, soft_sort):
        columns = function(x, dim=1, mask=mask)
        assert torch.equal(columns, function(x.movedim(1, -1), mask=mask.movedim(1, -1)).movedim(-1, 1))
        mapped = torch.func.vmap(lambda x, m: function(x, dim=0, mask=m))(x, mask)  # noqa: B023
        assert torch.equal(mapped, columns)
        tangent = torch.func.jvp(lambda x: function(x, dim=1, mask=mask), (x,), (torch.ones_like(x),))[1]  # noqa: B023
        assert (tangent[columns == 0] == 0).all()
        assert function(x[:0], mask=mask[:0]).shape == (0, 5, 4)
        compiled = torch.compile(lambda x, m: function(x, dim=1, mask=m), backend="aot_eager")  # noqa: B023
        assert torch.equal(compiled(x, mask), columns)
