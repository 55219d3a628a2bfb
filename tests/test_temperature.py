"""suggest_tau: the smallest temperature with enough active entries, against bisection on the projection itself."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hypersimplex_ext import soft_binary_argmax, suggest_tau
from hypersimplex_ext.nn import HyperSimplexLoss

from .cases import INF, NAN

SHARES = (0.01, 0.25, 0.5, 0.9, 1)


def number_active(x, k, tau):
    y = soft_binary_argmax(x, k, tau)
    return int(((y > 1e-12) & (y < 1 - 1e-12)).sum())


def by_bisection(x, k, enough):
    """The same infimum, with nothing known of it but that more entries are active at larger temperatures."""
    low, high = 1e-9, 1e9
    if number_active(x, k, low) >= enough:
        return 0.0
    for _ in range(70):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if number_active(x, k, middle) >= enough else (middle, high)
    return high


@given(st.data())
def test_it_is_the_smallest(data):
    n = data.draw(st.integers(2, 10))
    scale = data.draw(st.sampled_from([0.01, 1.0, 100.0]))
    entries = st.one_of(st.integers(-3, 3), st.floats(-3, 3).map(lambda v: round(v, 4)))
    x = torch.tensor(data.draw(st.lists(entries, min_size=n, max_size=n)), dtype=torch.float64) * scale
    k = data.draw(st.one_of(st.integers(1, n - 1), st.floats(0.05, n - 0.05)))
    enough = data.draw(st.integers(1, n))
    tau = suggest_tau(x, k, enough / n).item()
    expected = by_bisection(x, k, max(enough, 2))  # one alone has no gradient
    assert tau == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert number_active(x, k, tau * (1 + 1e-6) + 1e-300) >= enough


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("active", SHARES)
def test_the_projection_has_the_share(dtype, dim, active):
    """With gradients in the dtype of the logits; and entries that are not quite enough without it."""
    for n, scale, offset in ((2, 1, 0), (40, 0.05, 3), (40, 30, 0), (700, 5, 100)):
        x = (torch.randn(n, 12) * scale + offset).to(dtype).movedim(0, dim).requires_grad_()
        for k in (1, 0.3, n / 2, n - 1, torch.linspace(0.5, n - 0.5, 12)):
            tau = suggest_tau(x, k, active, dim)
            assert tau.dtype == torch.promote_types(dtype, torch.float32)
            assert tau.shape == (12,)
            assert not tau.requires_grad
            wide = soft_binary_argmax(x.to(tau.dtype), k, tau, dim)
            assert (((wide > 0) & (wide < 1)).sum(dim) >= active * n * (1 - 1e-12)).all()
            y = soft_binary_argmax(x, k, tau, dim)
            upstreams = (torch.randn_like(x) for _ in range(4))  # one may agree with its mean
            gradients = [torch.autograd.grad(y, x, g, retain_graph=True)[0] != 0 for g in upstreams]
            found = torch.stack(gradients).any(0).sum(dim)
            assert (found >= active * n * (1 - 1e-12)).all()
            if dtype == torch.float64 and offset == 0:
                smaller = soft_binary_argmax(x, k, (tau * (1 - 1e-9)).clamp(min=torch.finfo(dtype).tiny), dim)
                fewer = ((smaller > 0) & (smaller < 1)).sum(dim) < max(active * n * (1 - 1e-12), 2)
                assert (fewer | (tau == torch.finfo(dtype).tiny)).all()


def test_the_number_of_active_entries_grows_with_tau():
    x = torch.randn(50, 64, dtype=torch.float64)
    active = torch.zeros(50, 64, dtype=torch.bool)
    for tau in torch.logspace(-3, 3, 60).tolist():
        y = soft_binary_argmax(x, 20, tau)
        now = (y > 1e-12) & (y < 1 - 1e-12)
        assert (now | ~active).all()
        active = now


def test_known_values():
    x = torch.tensor([3.0, 1.0, 0.0, -4.0])
    for k, active, tau in ((2, 0.5, 1.0), (2, 1, 8.0), (1, 0.25, 2.0), (1, 0.75, 4.0), (3, 0.5, 4.0), (2.5, 0.1, 2.0)):
        assert suggest_tau(x, k, active).item() == pytest.approx(tau, rel=2e-5)


def test_shares_are_those_of_the_numbers_as_written():
    x = torch.arange(100.0, 0, -1, dtype=torch.float64)
    for count in range(2, 101):
        y = soft_binary_argmax(x, 50, suggest_tau(x, 50, count / 100) * (1 + 1e-9))
        assert int(((y > 0) & (y < 1)).sum()) in (count, count + 1)  # two may come at once
    assert suggest_tau(x, 50, 0.07) == suggest_tau(x, 50, 0.065)  # seven of a hundred


def test_where_no_temperature_is_enough_it_is_infinite():
    x = torch.randn(3, 5)
    assert suggest_tau(x, torch.tensor([0, 5, 2])).isinf().tolist() == [True, True, False]
    assert suggest_tau(torch.zeros(0, 3), 0, dim=0).tolist() == [INF] * 3
    assert suggest_tau(torch.zeros(3, 0), 1, dim=0).shape == (0,)
    assert suggest_tau(torch.tensor([1.0]), 1) == suggest_tau(torch.tensor([1.0]), 0.5) == INF
    assert suggest_tau(torch.tensor([3e38, -3e38]), 1) == INF
    assert suggest_tau(torch.tensor([3e38, -3e38], dtype=torch.float64), 1).isfinite()


def test_where_every_temperature_is_enough_it_is_the_smallest():
    for dtype in (torch.float32, torch.float64):
        x = torch.full((6,), 1.5, dtype=dtype)
        tau = suggest_tau(x, 2, 1)
        assert tau == torch.finfo(dtype).tiny
        assert soft_binary_argmax(x, 2, tau).tolist() == pytest.approx([1 / 3] * 6)
        assert suggest_tau(torch.tensor([9.0, 1, 1, 1, -9]), 2.5, 0.6) == torch.finfo(torch.float32).tiny


def test_infinite_entries_are_not_counted():
    x = torch.randn(9, dtype=torch.float64)
    padded = torch.cat([x[:4], torch.tensor([-INF, INF, -INF]), x[4:]])
    for active in SHARES:
        assert suggest_tau(padded, 4, active) == suggest_tau(x, 3, active)
    assert suggest_tau(torch.tensor([INF, INF, 1.0, 2.0]), 2) == INF
    assert suggest_tau(torch.tensor([-INF, -INF, 1.0, 2.0]), 2) == INF


def test_outliers_have_no_part_in_it():
    x = torch.randn(50)
    expected = suggest_tau(x, 20, 0.5)
    far = torch.cat([torch.tensor([1e30]), x, torch.tensor([-1e30, -1e30])])
    assert suggest_tau(far, 21, 25 / 53).item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_nan_stays_in_its_vector():
    x = torch.randn(4, 10)
    x[2, 3] = NAN
    tau = suggest_tau(x, 3)
    assert tau.isnan().tolist() == [False, False, True, False]
    assert torch.equal(tau[:2], suggest_tau(x[:2], 3))


def test_any_layout_and_k():
    x = torch.randn(3, 20, 4)
    k = torch.randint(1, 20, (3, 4))
    tau = suggest_tau(x, k, dim=1)
    for i in range(3):
        for j in range(4):
            assert tau[i, j].item() == pytest.approx(suggest_tau(x[i, :, j].clone(), k[i, j].item()).item(), rel=1e-4)
    torch.testing.assert_close(suggest_tau(x.transpose(0, 2), k.T, dim=1), tau.T, rtol=1e-4, atol=0)
    torch.testing.assert_close(suggest_tau(x * 8, k, dim=1), tau * 8, rtol=1e-4, atol=0)
    torch.testing.assert_close(suggest_tau(x - 2, k, dim=1), tau, rtol=1e-3, atol=0)


def test_a_temperature_for_a_loss():
    """Of the classes of a first batch; the median serves half of them."""
    x, labels = torch.randn(256, 10) * torch.linspace(1, 20, 10), torch.randint(10, (256,))
    taus = suggest_tau(x, labels.bincount(minlength=10), dim=0)
    for tau, least in ((taus, 0.5), (taus.median(), 0.25), (taus.max().item(), 0.5)):
        loss = HyperSimplexLoss(10, tau=tau)
        loss(x, labels)
        assert loss.active_fraction >= least
    loss = HyperSimplexLoss(10, tau=taus * 0.9)
    loss(x, labels)
    assert loss.active_fraction < 0.5


def test_under_autocast():
    x = torch.randn(5, 40, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(suggest_tau(x, 7), suggest_tau(x.float(), 7))


def test_it_is_a_node_of_a_symbolic_trace():
    graph, x = torch.fx.symbolic_trace(lambda x: soft_binary_argmax(x, 3, suggest_tau(x, 3))), torch.randn(4, 9)
    assert suggest_tau in {node.target for node in graph.graph.nodes}
    assert torch.equal(graph(x), soft_binary_argmax(x, 3, suggest_tau(x, 3)))


X = torch.randn(5, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], 1), TypeError, "logits must be a Tensor, got list"),
        ((torch.arange(4), 1), TypeError, "logits must be float16, bfloat16, float32 or float64, got torch.int64"),
        ((torch.tensor(1.0), 1), ValueError, "logits must have at least one dimension"),
        ((X, 5), ValueError, "k must lie in [0, 4], the number of entries, got 5"),
        ((X, "targets"), TypeError, "k must be a real number or a Tensor, got str"),
        ((X, torch.tensor([1.0, 2, 3, 4, 5.5])), ValueError, "k must lie in [0, 4], got 5.5"),
        ((X, torch.ones(4)), ValueError, "k must broadcast to [5]"),
        ((X, 1, 0.0), ValueError, "active must lie in (0, 1], got 0.0"),
        ((X, 1, 2), ValueError, "active must lie in (0, 1], got 2"),
        ((X, 1, NAN), ValueError, "active must lie in (0, 1], got nan"),
        ((X, 1, "half"), TypeError, "active must be a real number, got str"),
        ((X, 1, 0.5, 2), IndexError, "dim must lie in [-2, 1] for an input with 2 dimensions, got 2"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        suggest_tau(*arguments)
