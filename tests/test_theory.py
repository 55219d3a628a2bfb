"""The theorems of docs/theory.md, as properties of the public functions in float64."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar

from hypersimplex_ext import binary_argmax, hypersimplex_loss, soft_binary_argmax

KINDS = ("squared", "fenchel_young")


@st.composite
def cases(draw, most=20, soft=True):
    """Logits with ties and gaps, targets in {0, 1} or in [0, 1], and a temperature."""
    n = draw(st.integers(2, most))
    scale = draw(st.sampled_from([0.1, 1.0, 5.0, 30.0]))
    entries = st.one_of(st.integers(-2, 2), st.floats(-2, 2).map(lambda v: round(v, 6)))
    labels = st.floats(0, 1).map(lambda v: round(v, 6)) if soft and draw(st.booleans()) else st.integers(0, 1)
    x, t = (torch.tensor(draw(st.lists(e, min_size=n, max_size=n)), dtype=torch.float64) for e in (entries, labels))
    return x * scale, t, draw(st.sampled_from([0.5, 1.0, 3.0]))


def squared(x, t, tau=1.0, k="targets"):
    return hypersimplex_loss(x, t, k, tau, reduction="sum")


def fenchel_young(x, t, tau=1.0, k="targets"):
    return hypersimplex_loss(x, t, k, tau, kind="fenchel_young", reduction="sum")


def projection(x, t, tau=1.0):
    """p, and the threshold in units of z = x / tau."""
    p, threshold = soft_binary_argmax(x, t.sum(), tau, return_threshold=True)
    return p, threshold / tau


def assert_equal(a, b, scale=1.0):
    assert abs(float(a) - float(b)) <= 1e-11 * (1 + float(scale))


def gradient(f, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(f(leaf), leaf)[0]


# ---- 1: the gap ----


@given(cases())
def test_gap_identity(case):
    x, t, tau = case
    _, threshold = projection(x, t, tau)
    if not threshold.isfinite():  # no positives, or only positives
        assert squared(x, t, tau) == fenchel_young(x, t, tau) == 0
        return
    u = x / tau - threshold
    hinges = (1 - t) * (u - 1).clamp(min=0) + t * (-u).clamp(min=0)
    half, convex = squared(x, t, tau) / 2, fenchel_young(x, t, tau)
    assert_equal(convex, half + hinges.sum(), convex)
    assert half <= convex * (1 + 1e-12) + 1e-12


# ---- 2: the profile ----


def huber(m):
    """The modified Huber loss of a margin."""
    return torch.where(m < -1, -4 * m, (1 - m).clamp(min=0) ** 2)


@given(cases(soft=False), st.floats(-3, 3))
def test_profile_form(case, other):
    x, t, tau = case
    convex = fenchel_young(x, t, tau)
    _, threshold = projection(x, t, tau)
    total = lambda shift: huber((2 * t - 1) * (2 * (x / tau - shift) - 1)).sum() / 8  # noqa: E731
    if threshold.isfinite():
        assert_equal(convex, total(threshold), convex)
        assert total(threshold + other) >= convex * (1 - 1e-12) - 1e-12
    bounds = (float(x.min() / tau) - 2, float(x.max() / tau) + 1)
    found = minimize_scalar(lambda shift: float(total(shift)), bounds=bounds, method="bounded", options={"xatol": 1e-9})
    assert found.fun == pytest.approx(float(convex), rel=1e-6, abs=1e-6)


@given(cases(), st.floats(-3, 3))
def test_profile_form_of_soft_targets(case, other):
    x, t, tau = case
    _, threshold = projection(x, t, tau)
    if not threshold.isfinite():
        return
    h = lambda u: torch.where(u > 1, u - 0.5, u.clamp(min=0) ** 2 / 2) - t * u + t**2 / 2  # noqa: E731
    convex = fenchel_young(x, t, tau)
    assert_equal(convex, h(x / tau - threshold).sum(), convex)
    assert h(x / tau - threshold - other).sum() >= convex * (1 - 1e-12) - 1e-12


@given(cases(), st.floats(0, 1), st.integers(0, 2**31))
def test_fenchel_young_is_convex(case, share, seed):
    x, t, tau = case
    other = torch.randn(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 5
    between = fenchel_young(share * x + (1 - share) * other, t, tau)
    chord = share * fenchel_young(x, t, tau) + (1 - share) * fenchel_young(other, t, tau)
    assert between <= chord * (1 + 1e-12) + 1e-11


# ---- 3: the zero-one loss ----


@given(cases(soft=False))
def test_zero_one_bound(case):
    x, t, tau = case
    p = projection(x, t, tau)[0]
    for decision in (binary_argmax(x, int(t.sum())), (p > 0.5).double()):
        wrong = decision != t
        assert wrong.sum() <= 4 * ((p - t)[wrong] ** 2).sum() + 1e-9
        assert wrong.sum() <= 4 * squared(x, t, tau) + 1e-9
        assert wrong.sum() <= 8 * fenchel_young(x, t, tau) + 1e-9


@pytest.mark.parametrize("pairs", [1, 5])
def test_zero_one_bound_is_sharp(pairs):
    """Two errors per pair that is ordered the wrong way by a hair: no constant below 4, or 8, will do."""
    x = torch.tensor([1e-4, 0.0], dtype=torch.float64).repeat(pairs)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(pairs)
    errors = (binary_argmax(x, pairs) != t).sum()
    assert errors == 2 * pairs
    assert errors > 3.999 * squared(x, t)
    assert errors > 7.998 * fenchel_young(x, t)
    assert_equal(errors, 4 * squared(0 * x, t))  # ties, broken against the labels, attain it


# ---- 4 and 5: minimisers of the expected loss ----


def expected_loss(scores, places, labels, probability):
    """Of the scores of points: batches are columns, `places` says which point stands in which row."""
    return hypersimplex_loss(scores[places], labels, kind="fenchel_young", weight=probability, reduction="sum")


def minimiser(points, places, labels, probability):
    """By an optimiser that knows nothing of projections, from scores in the wrong order."""

    def function(s):
        s = torch.tensor(s, requires_grad=True)
        value = expected_loss(s, places, labels, probability)
        return value.item(), torch.autograd.grad(value, s)[0].numpy()

    found = minimize(function, np.linspace(0.3, -0.3, points), jac=True, method="BFGS", options={"gtol": 1e-10})
    assert np.abs(found.jac).max() < 1e-7
    return torch.tensor(found.x - found.x.mean())


def patterns(n):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)), dtype=torch.float64).T


def drawn(eta, n, weights):
    """All batches of n samples drawn from points of these weights and probabilities of a positive."""
    places = torch.tensor(list(itertools.product(range(len(eta)), repeat=n))).T
    labels = patterns(n)
    batches, of = places.shape[1], labels.shape[1]
    places, labels = places.repeat_interleave(of, 1), labels.repeat(1, batches)
    probability = (weights[places] * torch.where(labels == 1, eta[places], 1 - eta[places])).prod(0)
    return places, labels, probability


def random_probabilities(n):
    eta = torch.rand(n, dtype=torch.float64) * 0.9 + 0.05
    return eta.sort().values


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("independent", [True, False])
def test_ranking_is_consistent_on_a_fixed_batch(n, independent):
    """Whatever the joint distribution of the labels; the scores are in order and at least as far apart."""
    labels = patterns(n)
    places = torch.arange(n)[:, None].expand_as(labels)
    for _ in range(6):
        eta = random_probabilities(n)
        probability = torch.where(labels == 1, eta[:, None], 1 - eta[:, None]).prod(0)
        if not independent:
            probability = torch.rand(2**n, dtype=torch.float64) + 0.02
            probability /= probability.sum()
            eta = labels @ probability
        s = minimiser(n, places, labels, probability)
        p = soft_binary_argmax(s[places], labels.sum(0), dim=0)
        torch.testing.assert_close(p @ probability, eta, rtol=0, atol=1e-6)
        further = s[:, None] - s - (eta[:, None] - eta)
        assert (further[eta[:, None] > eta] > 1e-6).all()


@pytest.mark.parametrize("n", [2, 3, 4])
def test_ranking_is_consistent_on_drawn_batches(n):
    """Points of any weights. The scores are in order, and spread at least as far as the probabilities."""
    for _ in range(4):
        eta, weights = random_probabilities(3), torch.rand(3, dtype=torch.float64) + 0.1
        weights /= weights.sum()
        s = minimiser(3, *drawn(eta, n, weights))
        assert (s.diff()[eta.diff() > 0] > 0).all()
        s, eta = s - s @ weights, eta - eta @ weights
        assert weights @ (eta * eta) < weights @ (s * eta) < weights @ (s * s)


def test_a_batch_of_two_in_closed_form():
    labels = patterns(2)
    places = torch.arange(2)[:, None].expand_as(labels)
    for _ in range(10):
        eta = random_probabilities(2)
        probability = torch.where(labels == 1, eta[:, None], 1 - eta[:, None]).prod(0)
        s = minimiser(2, places, labels, probability)
        expected = (eta[1] - eta[0]) / (eta.sum() - 2 * eta.prod())
        assert float(s[1] - s[0]) == pytest.approx(float(expected), abs=1e-6)


def test_small_batches_inflate_the_scores():
    eta, weights = torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=torch.float64), torch.full((4,), 0.25, dtype=torch.float64)
    scores = [minimiser(4, *drawn(eta, n, weights)) for n in (2, 3, 4)]
    assert scores[0].tolist() == pytest.approx([-0.8082, -0.1832, 0.2011, 0.7903], abs=1e-3)
    spreads = [float(s.std() / eta.std()) for s in scores]
    assert spreads == pytest.approx([1.8227, 1.6842, 1.5134], abs=2e-3)


@pytest.mark.parametrize("tau", [0.3, 1.0, 4.0])
def test_in_a_large_batch_logits_are_tau_times_probabilities(tau):
    """Of points that stand in the batch many times the frequencies of positives are the scores."""
    places = torch.randint(4, (2000,))
    t = (torch.rand(2000) < torch.tensor([0.1, 0.3, 0.6, 0.9])[places]).double()
    frequency = torch.stack([t[places == c].mean() for c in range(4)])
    loss = lambda s: fenchel_young(s[places], t, tau)  # noqa: E731
    torch.testing.assert_close(gradient(loss, tau * frequency + 7), torch.zeros(4).double(), rtol=0, atol=1e-9)
    assert gradient(loss, tau * frequency * 1.1).abs().max() > 0.1 / tau


@given(cases(), st.sampled_from(KINDS))
def test_tau_sets_the_scale_of_the_logits(case, kind):
    x, t, tau = case
    loss = lambda x, tau: hypersimplex_loss(x, t, tau=tau, kind=kind, reduction="sum")  # noqa: E731
    value = loss(x, tau)
    assert_equal(value, loss(x / tau, 1.0), value)
    scaled, plain = gradient(lambda x: loss(x, tau), x), gradient(lambda x: loss(x, 1.0), x / tau)
    torch.testing.assert_close(scaled * tau, plain, rtol=0, atol=1e-9)


# ---- 6: a fixed mass ----


@pytest.mark.parametrize("n", [2, 3, 5])
def test_with_the_mass_fixed_the_squared_loss_is_a_brier_score(n):
    labels = patterns(n)
    for _ in range(10):
        eta, x = random_probabilities(n), torch.randn(n, dtype=torch.float64)
        probability = torch.where(labels == 1, eta[:, None], 1 - eta[:, None]).prod(0)
        k = eta.sum()
        noise = (eta * (1 - eta)).sum()
        for logits in (x, 5 * x, eta + 3):
            p = soft_binary_argmax(logits, k)
            columns = logits[:, None].expand_as(labels)
            settings = {"weight": probability, "reduction": "sum"}
            assert_equal(hypersimplex_loss(columns, labels, k, **settings), ((p - eta) ** 2).sum() + noise)
        torch.testing.assert_close(p, eta, rtol=0, atol=1e-12)  # at logits eta + 3, which is the least


def test_the_squared_loss_is_not_convex():
    t = torch.tensor([1.0, 0.0], dtype=torch.float64)
    low, middle, high = (float(squared(torch.tensor([d, 0.0], dtype=torch.float64), t, k=1)) for d in (-3, -1, 1))
    assert (low, middle, high) == (2, 2, 0)
    assert middle > (low + high) / 2


# ---- the dead zone ----


@given(cases(soft=False))
def test_dead_zone(case):
    """No gradient where p is 0 or 1, and none at all from a gap of tau on; Fenchel-Young has one wherever p != t."""
    x, t, tau = case
    p, k = projection(x, t, tau)[0], int(t.sum())
    ours, convex = gradient(lambda x: squared(x, t, tau), x), gradient(lambda x: fenchel_young(x, t, tau), x)
    torch.testing.assert_close(convex, (p - t) / tau, rtol=0, atol=1e-12)
    assert not ours[(p == 0) | (p == 1)].any()
    if 0 < k < len(x):
        ordered = x.sort(descending=True).values
        gap = float(ordered[k - 1] - ordered[k])
        if abs(gap - tau) > 1e-9:
            assert (gap > tau) == (not bool(((p > 1e-12) & (p < 1 - 1e-12)).any()))


def test_a_class_that_is_wrong_by_a_gap_of_tau_has_no_gradient():
    x, t = torch.tensor([4.0, 0.0, -1.0], dtype=torch.float64), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    assert not gradient(lambda x: squared(x, t), x).any()
    assert gradient(lambda x: fenchel_young(x, t), x).tolist() == [1, -1, 0]
    assert gradient(lambda x: squared(x, t, 8.0), x).abs().min() > 0.01


# ---- Fitzpatrick losses ----


def fitzpatrick(x, t, tau=1.0, k="targets"):
    """The line of the documents."""
    return 2 * hypersimplex_loss(x + tau * t, t, k, tau=2 * tau, kind="fenchel_young", reduction="sum")


@given(cases(), st.integers(0, 2**31))
def test_fitzpatrick_loss(case, seed):
    x, t, tau = case
    z, k = x / tau, t.sum()
    middle = (z + t) / 2
    y = soft_binary_argmax(middle, k)
    value = fitzpatrick(x, t, tau)
    scale = (z - t).square().sum()
    assert_equal(value, (z - t).square().sum() / 4 - (y - middle).square().sum(), scale)
    assert_equal(value, (z - y) @ (y - t), scale)  # where the supremum of the definition is attained
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        other = soft_binary_argmax(torch.randn(len(t), dtype=torch.float64, generator=generator) * 2, k)
        other = y + torch.rand((), generator=generator) ** 4 * (other - y)
        assert (z - other) @ (other - t) <= value + 1e-11 * (1 + scale)
    torch.testing.assert_close(gradient(lambda x: fitzpatrick(x, t, tau), x), (y - t) / tau, rtol=0, atol=1e-11)


@given(cases())
def test_fitzpatrick_bounds(case):
    x, t, tau = case
    value, convex, half = fitzpatrick(x, t, tau), fenchel_young(x, t, tau), squared(x, t, tau) / 2
    rounding = 1e-11 * (1 + convex)
    assert half / 2 <= convex / 2 + rounding
    assert convex / 2 <= value + rounding
    assert value <= convex + rounding


def test_fitzpatrick_bounds_are_sharp():
    t = torch.tensor([1.0, 0.0], dtype=torch.float64)
    near, far = (torch.tensor([-d, 0.0], dtype=torch.float64) for d in (0.5, 1e6))
    assert_equal(fitzpatrick(near, t), fenchel_young(near, t) / 2)
    assert float(fitzpatrick(far, t) / fenchel_young(far, t)) > 0.99999
    right = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert fitzpatrick(right, t) == fenchel_young(right, t) == 0
    assert fitzpatrick(right * 0.9, t) > 0


def test_fitzpatrick_loss_of_class_indices():
    x, labels = torch.randn(30, 4, dtype=torch.float64), torch.randint(4, (30,))
    t = torch.nn.functional.one_hot(labels, 4).double()
    columns = [fitzpatrick(x[:, c], t[:, c], 1.5) for c in range(4)]
    assert_equal(fitzpatrick(x, t, 1.5), sum(columns), sum(columns))
    convex = hypersimplex_loss(x, labels, tau=1.5, kind="fenchel_young", reduction="sum")
    assert convex / 2 <= fitzpatrick(x, t, 1.5) <= convex
