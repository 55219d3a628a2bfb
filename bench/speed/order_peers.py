"""Who sorts, ranks and regresses: the contenders of the operations that rest on isotonic regression."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.speed.cases import Case
from bench.speed.contender import COPY, OURS, Contender, Prepare, differentiable, never
from hypersimplex_ext import isotonic_regression, soft_rank, soft_sort, sort

# ---- isotonic regression, one row after the other ----


class _RowByRow(torch.autograd.Function):
    """A compiled regression of one row, with the gradient that its blocks give."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, regression: Callable[[Any], Any]) -> Tensor:
        v = torch.from_numpy(np.stack([regression(row) for row in x.detach().numpy()])).to(x.dtype)
        ctx.save_for_backward(v)
        return v

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        block = torch.zeros(v.shape, dtype=torch.long)
        block[:, 1:] = (v.diff(dim=1) != 0).cumsum(1)
        zeros, ones = torch.zeros_like(grad), torch.ones_like(grad)
        mean = zeros.scatter_add(1, block, grad) / zeros.scatter_add(1, block, ones).clamp(min=1)
        return mean.gather(1, block), None


def _row_by_row(x: Tensor, regression: Callable[[Any], Any]) -> Tensor:
    result: Tensor = _RowByRow.apply(x, regression)  # type: ignore[no-untyped-call]
    return result


def _scipy(case: Case, x: Tensor) -> Tensor:
    from scipy.optimize import isotonic_regression as regression  # type: ignore[import-untyped]

    return _row_by_row(x, lambda row: regression(row).x)


def _sklearn(case: Case, x: Tensor) -> Tensor:
    from sklearn.isotonic import isotonic_regression as regression  # type: ignore[import-untyped]

    return _row_by_row(x, regression)


class _TorchsortSolver(torch.autograd.Function):
    """The solver inside torchsort, which has no function of its own for users."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        from torchsort import ops  # type: ignore[import-not-found, import-untyped, unused-ignore]

        v: Tensor = -ops.isotonic_l2["cpu"](-x)
        ctx.save_for_backward(x, v)
        return v

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        from torchsort import ops

        result: Tensor = ops.isotonic_l2_backward["cpu"](*ctx.saved_tensors, grad)
        return result


def _torchsort_solver(case: Case, x: Tensor) -> Tensor:
    result: Tensor = _TorchsortSolver.apply(x)  # type: ignore[no-untyped-call]
    return result


# ---- soft ranks and sorts ----


def _theirs(module: str, name: str, regularization: str) -> Prepare:
    def function(case: Case, x: Tensor) -> Tensor:
        soft = getattr(importlib.import_module(module), name)
        return soft(x, regularization=regularization)  # type: ignore[no-any-return]

    return differentiable(function)


def _soft(function: Callable[..., Tensor], regularization: str) -> dict[str, Contender]:
    name = function.__name__
    theirs = _theirs("torchsort", name, regularization)
    original = _theirs("fast_soft_sort.pytorch_ops", name, regularization)
    return {
        OURS: Contender(differentiable(lambda case, x: function(x, regularization, dim=case.dim))),
        "torchsort": Contender(theirs, "torchsort", "torchsort", applies=_on_cpu),
        "fast-soft-sort": Contender(original, "fast-soft-sort", "fast_soft_sort", applies=_on_cpu),
        "torch.sort": Contender(differentiable(lambda case, x: x.sort(case.dim).values), same=never),
        COPY: Contender(differentiable(lambda case, x: x.clone()), same=never),
    }


def _on_cpu(case: Case) -> bool:
    return case.device == "cpu"


# operation -> contenders
FIELDS: dict[str, dict[str, Contender]] = {
    "sort": {
        OURS: Contender(differentiable(lambda case, x: sort(x, case.dim)[0])),
        "torch.sort": Contender(differentiable(lambda case, x: x.sort(dim=case.dim, stable=True).values)),
        COPY: Contender(differentiable(lambda case, x: x.clone()), same=never),
    },
    "regression": {
        OURS: Contender(differentiable(lambda case, x: isotonic_regression(x, dim=case.dim))),
        "scipy": Contender(differentiable(_scipy), "scipy", "scipy", applies=_on_cpu),
        "scikit-learn": Contender(differentiable(_sklearn), "scikit-learn", "sklearn", applies=_on_cpu),
        "torchsort": Contender(differentiable(_torchsort_solver), "torchsort", "torchsort", applies=_on_cpu),
        COPY: Contender(differentiable(lambda case, x: x.clone()), same=never),
    },
    "soft rank, l2": _soft(soft_rank, "l2"),
    "soft rank, kl": _soft(soft_rank, "kl"),
    "soft sort, l2": _soft(soft_sort, "l2"),
    "soft sort, kl": _soft(soft_sort, "kl"),
}
