"""Vectors that solvers find easy or hard: one table, of which the tests check all and the benchmark measures most."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Distribution(NamedTuple):
    """A way to draw a vector.

    Attributes:
        draw: n -> entries [n] in float32.
        label: what the benchmark's results call it; empty where it is not measured.
        tau: temperature, in the units of the entries.
        finite: whether all entries are.
    """

    draw: Callable[[int], Tensor]
    label: str = ""
    tau: float = 1.0
    finite: bool = True


# In the order in which the benchmark measures them.
DISTRIBUTIONS = {
    "normal": Distribution(torch.randn, "normal"),
    "narrow": Distribution(lambda n: 1e-3 * torch.randn(n), "narrow (sd 0.001)"),
    "wide": Distribution(lambda n: 100 * torch.randn(n), "wide (sd 100)"),
    "uniform": Distribution(torch.rand, "uniform"),
    "constant": Distribution(lambda n: torch.full((n,), 0.3), "all equal"),
    "two_point": Distribution(lambda n: (torch.rand(n) < 0.5).float(), "two values"),
    "two_point_far": Distribution(lambda n: 50 * (torch.rand(n) < 0.5).float(), "two far values"),
    "lattice": Distribution(lambda n: torch.randn(n).mul(4).round().div(4), "multiples of 1/4"),
    "thirds": Distribution(lambda n: torch.randn(n).mul(3).round().div(3), tau=1 / 3),
    "bfloat16_rounded": Distribution(lambda n: torch.randn(n).bfloat16().float()),
    "cauchy": Distribution(lambda n: torch.empty(n).cauchy_(), "Cauchy"),
    "lognormal": Distribution(lambda n: torch.empty(n).log_normal_(0, 3), "log-normal (sigma 3)"),
    "geometric": Distribution(lambda n: torch.logspace(-20, 20, n), "geometric"),
    "alternating_geometric": Distribution(lambda n: torch.logspace(-20, 20, n) * (-1.0) ** torch.arange(n)),
    "huge": Distribution(lambda n: 1e30 * torch.randn(n), "1e30 normal"),
    "huge_ties": Distribution(lambda n: 1e30 * torch.randn(n).round()),
    "tiny": Distribution(lambda n: 1e-40 * torch.randn(n)),
    "outlier": Distribution(lambda n: torch.cat([torch.tensor([1e8]), torch.randn(n)])[:n], "outlier 1e8"),
    "negative_outlier": Distribution(lambda n: torch.cat([torch.tensor([-1e8]), torch.randn(n)])[:n], "outlier -1e8"),
    "offset": Distribution(lambda n: 1e6 + torch.randn(n), "offset 1e6"),
    "masked": Distribution(lambda n: torch.where(torch.rand(n) < 0.5, -1e9, torch.randn(n)), "half at -1e9"),
    "masked_by_inf": Distribution(
        lambda n: torch.where(torch.rand(n) < 0.5, -torch.inf, torch.randn(n)), "half at -inf", finite=False
    ),
    "two_scales": Distribution(
        lambda n: torch.cat([torch.randn(n - n // 2) * 1e-3, torch.randn(n // 2) * 1e3]), "two scales"
    ),
    "clustered": Distribution(
        lambda n: torch.cat([torch.randn(n - n // 2) * 1e-6, 1 + torch.randn(n // 2) * 1e-6]), "two clusters"
    ),
    "sorted": Distribution(lambda n: torch.randn(n).sort().values, "sorted"),
    "reversed": Distribution(lambda n: torch.randn(n).sort(descending=True).values, "reversed"),
    "steps": Distribution(lambda n: torch.arange(n) % 7 / 2.0),
    "sawtooth": Distribution(lambda n: torch.arange(n) % 1000 / 1000.0, "sawtooth"),
    "tiny_tau": Distribution(torch.randn, "tau 1e-6", tau=1e-6),
    "large_tau": Distribution(torch.randn, "tau 1e4", tau=1e4),
}
