"""The projection where numbers end, against rational arithmetic.

Masses within rounding of whole ones, the least and the greatest temperatures, entries of both signs near the greatest
number.
"""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from hypersimplex_ext import _ops, hypersimplex_loss, reference, soft_binary_argmax, soft_rank

from .cases import all_types
from .tolerances import TOLERANCES

SOLVERS = ["threshold", "pav", "reference"]
LEAST = 2.0**-1022  # the smallest normal number, and so the least temperature
MOST = 1.797e308


def project(x: torch.Tensor, k: float, tau: float, solver: str, dim: int = -1) -> torch.Tensor:
    """The projection in float64, on the CPU."""
    if solver == "reference":
        return reference.project_bisection(x.cpu(), k, tau, dim).double()
    return soft_binary_argmax(x, k, tau, dim, solver=solver).double().cpu()


def exact_projection(x: list[float], k: float, tau: float) -> list[float]:
    """In rational arithmetic: the linear piece between two breakpoints that holds the root, and the root on it."""
    entries, mass, temperature = [Fraction(v) for v in x], Fraction(k), Fraction(tau)

    def clipped(t: Fraction) -> list[Fraction]:
        return [min(max((v - t) / temperature, Fraction(0)), Fraction(1)) for v in entries]

    breakpoints = sorted({v - shift for v in entries for shift in (0, temperature)})
    low, high = 0, len(breakpoints) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if sum(clipped(breakpoints[middle])) >= mass:
            low = middle
        else:
            high = middle
    left, right = breakpoints[low], breakpoints[high]
    excess, lack = sum(clipped(left)) - mass, mass - sum(clipped(right))
    return [float(v) for v in clipped(left + (right - left) * excess / (excess + lack))]


def exact_rows(x: torch.Tensor, k: float, tau: float) -> torch.Tensor:
    return torch.tensor([exact_projection(row, k, tau) for row in x.tolist()], dtype=torch.float64)


def assert_exact(x: torch.Tensor, k: float, tau: float, solver: str) -> None:
    """Each row of x, on its own and as a column, and the sums."""
    tolerance = {torch.float64: 1e-12}.get(x.dtype, TOLERANCES[x.dtype].y)
    expected = exact_rows(x, k, tau)
    for y in (project(x, k, tau, solver), project(x.t().contiguous(), k, tau, solver, 0).t()):
        assert (y - expected).abs().max() <= tolerance, (x.dtype, k, tau)
        if x.dtype.itemsize > 2:
            assert (y.sum(1) - k).abs().max() <= tolerance * max(1, k)


def near_whole(n: int) -> list[float]:
    """Masses close to whole numbers, on either side."""
    whole = [float(k) for k in range(n + 1)]
    near = [math.nextafter(k, to) for k in whole for to in (-1, n + 1)]
    near += [k + off for k in whole for off in (1e-300, 1e-46, 1e-30, 1e-16, 1e-12, 3e-9, 1e-7)]
    near += [k - off for k in whole for off in (1e-16, 1e-12, 1e-8, 3e-8, 1e-7)]
    return sorted({k for k in near if 0 <= k <= n})


@pytest.mark.parametrize("solver", SOLVERS)
@all_types
def test_masses_within_rounding_of_whole_ones(device, dtype, solver):
    for rows in ([[0.0, 1.0], [0.5, -0.25], [3.0, 3.0]], [[0.3, 0.3, -0.7, 1.3, 40.0], [3e4, 1.0, 0.5, -1.0, -3e4]]):
        x = torch.tensor(rows, dtype=torch.float64).to(dtype).to(device)
        for k in near_whole(x.shape[1]):
            assert_exact(x, k, 1.0, solver)


@pytest.mark.parametrize("n", [9, 130, 300, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_masses_near_whole_ones_in_vectors_of_any_length(backend, device, dtype, n):
    x = torch.randn(18, n, dtype=torch.float64).to(dtype)
    for k in (1e-30, 1e-9, 1 + 1e-12, 2 - 1e-9, n / 2 + 1e-11, n - 1e-8, math.nextafter(n, 0)):
        expected = reference.project_bisection(x.double(), k)
        for dim, entries in ((1, x), (0, x.t().contiguous())):
            y = project(entries.to(device), k, 1.0, "threshold", dim)
            y = y if dim == 1 else y.t()
            assert (y - expected).abs().max() <= (1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_masses_near_whole_ones_in_long_vectors(dtype):
    x = torch.randn(150_000, dtype=torch.float64).to(dtype)
    for k in (1 + 1e-12, 75_000 + 1e-9, 150_000 - 1e-6):
        y = soft_binary_argmax(x, k).double()
        expected = reference.project_bisection(x.double(), k)
        assert (y - expected).abs().max() <= (1e-12 if dtype == torch.float64 else 1e-6)


@all_types
def test_losses_with_masses_within_rounding_of_whole_ones(device, dtype):
    x = torch.tensor([[0.0, 1.0], [0.5, -0.25]], dtype=dtype, device=device).requires_grad_()
    target = torch.ones_like(x)
    for k in (2 - 1e-8, math.nextafter(2, 0), 1e-30, 1 + 1e-12):
        loss = hypersimplex_loss(x, target, k=torch.tensor(k, dtype=torch.float64))
        expected, _ = reference.loss(x.detach().cpu(), target.cpu(), k)
        tolerance = TOLERANCES[dtype].loss
        torch.testing.assert_close(loss.double().cpu(), expected.mean(), rtol=tolerance, atol=tolerance)
        assert torch.autograd.grad(loss, x)[0].isfinite().all()


@pytest.mark.parametrize("solver", SOLVERS)
@all_types
def test_temperatures_up_to_the_greatest_number(device, dtype, solver):
    """Sums of them overflow, in float32 they do themselves, and so do the thresholds."""
    for tau in (1e30, 1e37, 3.4e39, 1e100, 1e287, 1e300, 1e306, MOST):
        for n in (2, 40, 500):
            for k in (1, n / 2, n - 0.25):
                flat = project(torch.zeros(3, n, dtype=dtype, device=device), k, tau, solver)
                assert (flat - k / n).abs().max() <= TOLERANCES[dtype].y, (tau, n, k)
        spread = torch.tensor([[0.25, -0.5, 1.0, 0.0], [-1.0, 1.0, 1.0, -1.0]], dtype=torch.float64)
        x = (spread * min(tau, float(torch.finfo(dtype).max))).to(dtype)
        for k in (0.5, 1, 2, 3.5):
            assert_exact(x.to(device), k, tau, solver)


@pytest.mark.parametrize(
    ("entries", "k", "tau"),
    [
        ((6.05831156466145e27, 6.314202700074702e-31, 1.683968801904617e25), 2, 1e37),
        ((6.851331038930828e20, -1.6042961403783806e-09, 2.476702056263313e25, -0.004155210684984922), 1, 2.1e34),
        ((1.0, 1.0, 1.0, -1e35, 1e35), 3, 1e35),
        ((0.0, 1e36, 2e36, 3e36), 2, 1e36),
    ],
)
def test_entries_that_are_one_up_to_rounding(device, entries, k, tau):
    """The sorted list of huge temperatures must not take the slope of the next piece."""
    for dtype in (torch.float32, torch.float64):
        assert_exact(torch.tensor([entries], dtype=dtype, device=device), k, tau, "threshold")


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("tau", [1e-300, 1.0, 1e290, 1e307, MOST])
def test_entries_of_both_signs_near_the_greatest_number(device, solver, tau):
    m = MOST
    for row in ((m, -m), (m, -m, 0.5 * m), (-m, -m, m, m, 1.0), (0.9 * m, 0.8 * m, -0.7 * m, -0.95 * m)):
        x = torch.tensor([row], dtype=torch.float64, device=device)
        for k in (0.5, 1, 1.5, len(row) - 1, len(row) - 0.25):
            assert_exact(x, k, tau, solver)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
def test_sums_at_the_least_temperatures(device, dtype, solver):
    """A threshold that is a subnormal float32 would be off by as much for all entries."""
    for tau in (LEAST, 1e-300, 1e-45, 1e-38, 5e-38, 1e-37, 1e-35, 1e-30) if dtype == torch.float32 else (LEAST, 1e-307):
        for n in (41, 300):
            step = max(tau, 2e-45 if dtype == torch.float32 else 5e-324)
            x = (torch.randint(-30, 30, (2, n)) * step * 0.1).to(dtype)
            for k in (2, 0.3 * n):
                y = project(x.to(device), k, tau, solver)
                tolerance = TOLERANCES[dtype]
                assert (y - exact_rows(x, k, tau)).abs().max() <= tolerance.y * 10
                assert (y.sum(1) - k).abs().max() <= 1e-6 * max(1, k) if dtype == torch.float32 else 1e-12 * n


def test_subnormal_temperatures_are_refused(backend, device):
    x = torch.zeros(2, 5, dtype=torch.float64, device=device)
    message = "must be a normal number, at least 2.225e-308, got"
    for tau in (5e-324, 1e-310, math.nextafter(LEAST, 0)):
        with pytest.raises(ValueError, match=f"tau {message} {tau}"):
            soft_binary_argmax(x, 2, tau)
        ranks = soft_rank(torch.tensor([2.0, 1.0, 1.0], device=device), regularization_strength=tau)  # has no threshold
        assert ranks.tolist() == [3.0, 1.5, 1.5]
    if backend != "cuda":  # there it would have to be waited for
        for solver in ("threshold", "pav"):
            with pytest.raises(ValueError, match=f"tau {message} 1e-310"):
                soft_binary_argmax(x, 2, torch.tensor([1.0, 1e-310], dtype=x.dtype, device=device), solver=solver)
        with pytest.raises(ValueError, match=f"tau {message} 1e-310"):
            hypersimplex_loss(x, x + 0.5, tau=torch.tensor([1.0] * 4 + [1e-310], dtype=x.dtype))
    assert soft_binary_argmax(x, 2, LEAST).sum().isclose(torch.tensor(4.0, dtype=torch.float64, device=device))


def test_vectors_whose_temperature_is_subnormal_are_nan_where_nobody_waits_to_tell(device, monkeypatch):
    monkeypatch.setattr(_ops, "check_temperatures", lambda values: None)
    x, taus = torch.zeros(2, 5, device=device), torch.tensor([1.0, 1e-310], dtype=torch.float64, device=device)
    for y in (soft_binary_argmax(x, 2, taus), reference.project_bisection(x.cpu(), 2, taus.cpu())):
        assert y[0].isfinite().all()
        assert y[1].isnan().all()


@pytest.mark.parametrize("tau", [1.0, 1e-100, 1e-300])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_magnitudes_over_the_whole_range_of_float64(tau: float, share: float) -> None:
    """So spread out that the search runs out of steps and the sorted list decides."""
    generator = torch.Generator().manual_seed(0)
    for ties in (1, 3):
        exponents = torch.rand(60, generator=generator, dtype=torch.float64) * 2000 - 1000
        x = torch.exp2(exponents) * (torch.randint(2, (60,), generator=generator) * 2 - 1)
        x = x.repeat(ties)
        k = int(share * len(x)) + 0.5
        y = soft_binary_argmax(x, k, tau)
        torch.testing.assert_close(y, torch.tensor(exact_projection(x.tolist(), k, tau), dtype=torch.float64))
