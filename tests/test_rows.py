"""Rows side by side on the CPU: batches of them are solved together, and what one holds is nothing to the others."""

from __future__ import annotations

import pytest
import torch

from hypersimplex_ext import _ops, reference, soft_binary_argmax

from .cases import DISTRIBUTIONS, INF, NAN, assert_close, assert_projection, draw
from .test_jvp import assert_gradients

plain_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
LENGTHS = (1, 2, 3, 4, 5, 7, 10, 16, 31, 64, 65, 127, 128, 129, 255, 256, 257, 300, 1000, 2048, 8191)
ROWS = 70  # more than a batch of 64, and no multiple of 16
SOLVERS = ("short_vectors", "row_candidates", "single_row", "general", "sorted")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def mixed(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A row of every distribution, and as many normal ones as make ROWS, with their temperatures."""
    rows = [draw(name, n) for name in DISTRIBUTIONS]
    rows += [(torch.randn(n), 1.0)] * (ROWS - len(rows))
    order = torch.randperm(ROWS)
    temperatures = torch.tensor([tau for _, tau in rows], dtype=torch.float64)
    return torch.stack([x for x, _ in rows])[order], temperatures[order]


def serves(solver: str, n: int) -> bool:
    """Whether it finds thresholds of several rows of n entries."""
    return n <= 256 if solver == "short_vectors" else n > 256 if solver in ("row_candidates", "single_row") else True


def largest_mass(solver: str, n: int) -> float:
    return 21 if solver == "row_candidates" else n


by_every_solver = pytest.mark.parametrize(
    ("solver", "n"), [(solver, n) for solver in SOLVERS for n in LENGTHS if serves(solver, n)]
)


@plain_types
@by_every_solver
def test_rows(force, used, solver: str, n: int, dtype: torch.dtype) -> None:
    most = largest_mass(solver, n)
    for rows in (2, 16, 17, 33, ROWS):
        x = torch.randn(rows, n).to(dtype)
        k = torch.rand(rows).double() * most
        force(solver)
        used()
        y = soft_binary_argmax(x, k)
        assert solver in used()
        assert_projection(y, x, k)
        for mass in (0.5, most / 2, max(most - 1, 0.25)):
            assert_projection(soft_binary_argmax(x, mass), x, mass)
        force("")
        apart = torch.cat([soft_binary_argmax(row[None], mass[None]) for row, mass in zip(x, k, strict=True)])
        assert_close(y, apart, 1e-6)


@pytest.mark.parametrize(
    ("solver", "n"), [(solver, n) for solver in SOLVERS for n in (10, 100, 200, 300, 1000) if serves(solver, n)]
)
def test_rows_of_every_distribution(force, used, solver: str, n: int) -> None:
    x, tau = mixed(n)
    most = largest_mass(solver, n)
    for k in (0.5, 1, min(n / 2, most), min(n - 1, most)):
        expected = reference.project_bisection(x.double(), k, tau)
        force(solver)
        used()
        y = soft_binary_argmax(x, k, tau)
        assert solver in used()
        assert (y.double() - expected).abs().max() <= 1e-6


@plain_types
@pytest.mark.parametrize("n", [257, 1000, 1023, 4096, 8192])
def test_rows_of_small_mass(used, n: int, dtype: torch.dtype) -> None:
    x = torch.randn(ROWS, n).to(dtype)
    k = torch.rand(ROWS).double() * n / 40  # small for most of them
    assert_projection(soft_binary_argmax(x, k), x, k)
    for mass in (0.25, 1, min(5, n / 64), min(21, n / 64)):
        used()
        assert_projection(soft_binary_argmax(x, mass), x, mass)
        assert used()[0] == "row_candidates"
    assert_gradients(x, k, 0.3 + torch.rand(ROWS).double())


@pytest.mark.parametrize("n", [400, 1000])
@pytest.mark.parametrize("k", [0.5, 1, 5])
def test_small_mass_of_every_distribution(used, n: int, k: float) -> None:
    x, tau = mixed(n)
    y = soft_binary_argmax(x, k, tau)
    assert used()[0] == "row_candidates"
    expected = reference.project_bisection(x.double(), k, tau)
    assert (y.double() - expected).abs().max() <= 1e-6
    assert_gradients(x, torch.full((ROWS,), k, dtype=torch.float64), tau)


def test_thresholds_in_a_gap_are_its_middle() -> None:
    """With the k ones far above the rest, whether the tops of a row show the rest or not."""
    x = torch.randn(ROWS, 1000)
    x[:, ::200] += 40
    x[1::2, 7] = x[1::2, ::200].amin(1) - 9
    _, t = soft_binary_argmax(x, 5, return_threshold=True)
    top = x.double().topk(6).values
    assert_close(t, ((top[:, 4] - 1) + top[:, 5]) / 2, 1e-6)


@plain_types
def test_special_rows_do_not_spoil_a_batch(used, dtype: torch.dtype) -> None:
    x = torch.randn(ROWS, 500).to(dtype)
    x[3, 17] = NAN
    x[5, 499] = NAN
    x[7, 60] = INF
    x[9, :6] = INF
    x[11] = -INF
    x[13, :498] = -INF
    x[15, 100:] = -INF
    x.requires_grad_()
    y = soft_binary_argmax(x, 4)
    (grad,) = torch.autograd.grad(y, x, torch.randn_like(x))
    special = [3, 5, 7, 9, 11, 13, 15]
    assert y[[3, 5]].isnan().all()
    assert grad[[3, 5]].isnan().all()
    assert y[7, 60] == 1
    assert_close(y[9, :6], torch.full((6,), 4 / 6), 1e-6)
    assert (y[11] == 0).all()
    assert (y[13] == (x[13] > -INF)).all()
    assert_projection(y[15, :100].detach(), x[15, :100].detach(), 4)
    others = [i for i in range(ROWS) if i not in special]
    for mass, solver in ((4, "row_candidates"), (200, "single_row")):
        used()
        y = soft_binary_argmax(x.detach(), mass)
        assert used()[0] == solver
        assert_projection(y[others], x[others].detach(), mass)
        assert torch.equal(y[others], soft_binary_argmax(torch.cat([x[others], x[:7]]).detach(), mass)[: len(others)])
    assert (grad[[9, 11, 13]] == 0).all()


@pytest.mark.parametrize("share", [1 / 64, 1 / 16, 1 / 2])
def test_gradients_of_rows_with_few_active_entries_and_many(share: float) -> None:
    """Up to one entry in sixteen, each row by itself."""
    for n in (256, 1000, 8192):
        x = torch.randn(ROWS, n)
        k = share * n * (0.5 + torch.rand(ROWS).double())
        tau = torch.where(torch.arange(ROWS) % 2 == 0, 1.0, 0.05).double()
        assert assert_gradients(x, k, tau).any()


@plain_types
@pytest.mark.parametrize("n", [10, 15, 16, 17, 31, 32, 100, 128, 129, 200, 255, 271, 1000, 8192, 8193])
def test_gradients_of_rows(n: int, dtype: torch.dtype) -> None:
    """Whole groups of lanes and ends of any length, batches that are full and not, special rows among the others."""
    for rows in (1, 2, 17, ROWS):
        x = torch.randn(rows, n).to(dtype)
        k, tau = torch.rand(rows).double() * n, 0.5 + torch.rand(rows).double()
        assert assert_gradients(x, k, tau).any()
    v = torch.randn_like(x)
    x[3, n // 2] = NAN
    x[5] = INF
    k[7] = 0
    tau[9] = 1e200  # more than the type can express
    _, state = _ops.project(x, None, k, 0.0, tau, 0.0, 1)
    assert state[0, 3].isnan()
    grad, sums = _ops.vjp(x, None, v, state, tau, 0.0, 1)
    assert not sums[:, 7].any()
    for i in range(ROWS):
        row = slice(i, i + 1)
        apart = _ops.vjp(x[row], None, v[row], state[:, row], tau[row], 0.0, 1)
        for part, whole in zip(apart, (grad[row], sums[:, row]), strict=True):
            torch.testing.assert_close(part, whole, rtol=0, atol=1e-4 if n < 16 else 0, equal_nan=True)


def test_rows_apart_and_results_apart() -> None:
    """Strides between rows, and gradients that are expanded, transposed, or strided."""
    wide = torch.randn(ROWS, 1500)
    for x in (wide[:, 3:1000], wide[::2, :999], wide.t().contiguous().t()[:, :700], wide[:, ::2]):
        y = soft_binary_argmax(x, 5)
        assert_projection(y, x, 5)
        state = reference.threshold(x.double(), torch.full((len(x),), 5.0), 1.0, -1)
        leaf = x.detach().requires_grad_()
        result = soft_binary_argmax(leaf, 5)
        for v in (torch.randn(x.shape), torch.randn(x.shape[1]).expand(x.shape), torch.randn(x.t().shape).t()):
            (grad,) = torch.autograd.grad(result, leaf, v, retain_graph=True)
            expected, _ = reference.jvp(x.double(), v.double(), state, 1.0, -1)
            assert_close(grad, expected, 1e-5)
