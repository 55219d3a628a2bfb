"""Gradient and diagonal of the Hessian of the summed loss, on margins that are checked.

With z = x / tau, p the projection of z, A its active set of a entries, b = 1 / tau^2 (Fenchel-Young) or 2 / tau^2
(squared):

    gradient           (p - t) / tau, and for the squared loss 2 (r - mean_A r) / tau on A, with r = p - t
    diagonal           b (1 - 1 / a) on A, 0 elsewhere
    bound              b, which no eigenvalue of the Hessian exceeds
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _loss, _loss_ops
from .._arguments import FRACTION, KINDS, SQUARED, VALUE, Arguments, loss_arguments, tensors
from .._backends import contiguous
from .._loss_composed import whole_part
from . import _weighted_mass
from ._arrays import Array


class Settings(NamedTuple):
    """What the derivatives depend on."""

    kind: str
    tau: float
    k: float | str
    hessian: str
    floor: float


class Derivatives(NamedTuple):
    """In the shape, dtype and layout of the margins; thresholds [C] in float64."""

    gradient: Tensor
    hessian: Tensor
    thresholds: Tensor


def derivatives(x: Tensor, target: Tensor, weight: Tensor | None, settings: Settings) -> Derivatives:
    """Of the loss, summed over samples and classes."""
    arguments = arguments_of(x, target, weight, settings, "sum")
    if weight is not None:
        return _by_weighted_mass(x, arguments, settings)
    gradient, state = _gradient_and_state(x, arguments)
    thresholds = _loss_ops.thresholds_of(state)
    _check(thresholds, x)
    return Derivatives(gradient, _hessian(x, state, settings), thresholds)


@torch.no_grad()
def _gradient_and_state(x: Tensor, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """By the kernels themselves where there are some."""
    call = _loss.fused_call(x, arguments)
    if call is None:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            total, statistics = _loss.loss(x, arguments)
        return torch.autograd.grad(total, x)[0], statistics()
    state, others = call.new_state(), map(contiguous, tensors(arguments))
    given = (x, state, *others)
    value = call.forward(given)
    return call.backward(torch.ones_like(value), given, _memory(x)), state


def _memory(x: Tensor) -> Tensor:
    """As `torch.empty_like`, but NumPy's: in large pages, which a fresh array of a training set's size pays for."""
    return torch.from_numpy(np.empty_like(x.numpy()))


def value_and_thresholds(
    x: Tensor, target: Tensor, weight: Tensor | None, settings: Settings, reduction: str = "mean"
) -> tuple[float, Tensor]:
    """The loss, and the thresholds [C] of its projections in float64."""
    arguments = arguments_of(x, target, weight, settings, reduction)
    if weight is not None:
        columns = list(_columns(x, arguments, settings))
        squared, s = settings.kind == "squared", weight.numpy()
        total = sum(_weighted_mass.value(column, x_c, t, s, settings.tau, squared) for column, x_c, t in columns)
        thresholds = torch.tensor([column.threshold for column, *_ in columns], dtype=torch.float64)
        _check(thresholds, x)
        return total / (float(weight.sum()) * len(columns) if reduction == "mean" else 1), thresholds
    with torch.no_grad():
        value, statistics = _loss.loss(x, arguments)
        thresholds = _loss_ops.thresholds_of(statistics())
    _check(thresholds, x)
    return float(value), thresholds


def arguments_of(
    x: Tensor, target: Tensor, weight: Tensor | None, settings: Settings, reduction: str = "mean"
) -> Arguments:
    """The arguments of the loss; a k that is out of range for these samples raises."""
    loss = settings.k, settings.tau, None, weight, -100, 0.0, settings.kind, reduction
    return loss_arguments(x, target, *loss)[1]  # type: ignore[arg-type]


def _check(thresholds: Tensor, x: Tensor) -> None:
    if thresholds.isnan().any():
        wrong = x.flatten()[x.flatten().isnan()]
        raise ValueError(f"margins must be numbers, got nan in {len(wrong)} of {x.numel()} entries")


def bound(settings: Settings) -> float:
    """b, the largest curvature."""
    return (2 if KINDS[settings.kind] == SQUARED else 1) / settings.tau / settings.tau


def _hessian(x: Tensor, state: Tensor, settings: Settings) -> Tensor:
    """As `settings.hessian` says, without weights."""
    b = bound(settings)
    if settings.hessian == "bound":
        return _memory(x).fill_(b)
    thresholds = _loss_ops.thresholds_of(state).numpy()
    active_entries = np.maximum(_loss_ops.numbers_of_entries(state)[0].numpy(), 1)
    if x.ndim > 1 and x.stride(0) != 1:  # in C order rows are short, and columns go one by one
        hessian = torch.empty_like(x)
        for c, (t, a) in enumerate(zip(thresholds, active_entries, strict=True)):
            hessian[:, c] = torch.from_numpy(_diagonal(x[:, c].numpy(), t, a, settings, b))
        return hessian
    return torch.from_numpy(_diagonal(x.numpy(), thresholds, active_entries, settings, b))


def _diagonal(x: Array, t: Any, a: Any, settings: Settings, b: float) -> Array:
    """The diagonal for thresholds t and numbers of active entries a: [n] with numbers, or [n, C] with [C] of them."""
    on = x > t.astype(x.dtype)
    on &= x < (t + settings.tau).astype(x.dtype)
    active: Array = on.astype(x.dtype)  # in the layout of x
    active *= (np.maximum(1 - 1 / a, settings.floor) - settings.floor) * b
    active += settings.floor * b
    return active


def _columns(x: Tensor, arguments: Arguments, settings: Settings) -> list[tuple[_weighted_mass.Column, Array, Array]]:
    """The weighted projection of every class, with its margins and targets."""
    assert arguments.sample_weight is not None
    s, target = arguments.sample_weight.numpy(), arguments.target.numpy()
    columns = []
    for c in range(1 if x.ndim == 1 else x.shape[1]):
        x_c = x.numpy() if x.ndim == 1 else x[:, c].numpy()
        t = (target if x.ndim == 1 else target == c).astype(np.float64)
        if arguments.mass_kind == VALUE:
            k = arguments.k
        elif arguments.mass_kind == FRACTION:
            k = float(whole_part(arguments.k, arguments.sample_weight.sum()))
        else:
            k = float((s * t).sum())
        columns.append((_weighted_mass.project(x_c, s, k, settings.tau), x_c, t))
    return columns


def _by_weighted_mass(x: Tensor, arguments: Arguments, settings: Settings) -> Derivatives:
    """Where a sample counts as often as its weight says: the diagonal is b s_i (1 - s_i / sum_A s) on A."""
    assert arguments.sample_weight is not None
    s, b, squared = arguments.sample_weight.numpy(), bound(settings), settings.kind == "squared"
    gradient, hessian = _memory(x), _memory(x)
    thresholds = []
    for c, (column, _, t) in enumerate(_columns(x, arguments, settings)):
        g, h = (part if x.ndim == 1 else part[:, c] for part in (gradient.numpy(), hessian.numpy()))
        g[...] = _weighted_mass.gradient(column, t, s, settings.tau, squared)
        h[...] = b * s
        if settings.hessian == "diagonal":
            least = 1 - settings.floor  # of the share of a sample in the active weight, above which the floor holds
            h *= settings.floor + (least - np.minimum(s / (column.among or 1.0), least)) * column.active
        thresholds.append(column.threshold)
    found = torch.tensor(thresholds, dtype=torch.float64)
    _check(found, x)
    return Derivatives(gradient, hessian, found)
