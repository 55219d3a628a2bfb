"""Gradient and diagonal of the Hessian of the summed loss, on margins that are checked.

With z = x / tau, p the projection of z, A its active set of a entries, b = 1 / tau^2 (Fenchel-Young) or 2 / tau^2
(squared):

    gradient           (p - t) / tau, and for the squared loss 2 (r - mean_A r) / tau on A, with r = p - t
    diagonal           b (1 - 1 / a) on A, 0 elsewhere
    bound              b, which no eigenvalue of the Hessian exceeds
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _loss, _loss_composed, _loss_ops
from .._arguments import FRACTION, KINDS, SQUARED, VALUE, Arguments, loss_arguments, tensors
from .._backends import contiguous
from . import _weighted_mass
from ._arrays import Array, blocks, memory


class Settings(NamedTuple):
    """What the derivatives depend on."""

    kind: str
    tau: float
    k: int | float | Literal["targets"]
    hessian: str
    floor: float


class Derivatives(NamedTuple):
    """In the shape, dtype and layout of the margins."""

    gradient: Tensor
    hessian: Tensor


def derivatives(x: Tensor, target: Tensor, weight: Tensor | None, settings: Settings) -> Derivatives:
    """Of the loss, summed over samples and classes."""
    arguments = arguments_of(x, target, weight, settings, "sum")
    if weight is not None:
        return _by_weighted_mass(x, arguments, settings)
    gradient, state = _gradient_and_state(x, arguments)
    _check(_loss_ops.thresholds_of(state), x)
    return Derivatives(gradient, _hessian(x, state, settings))


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
    """As `torch.empty_like`."""
    return torch.from_numpy(memory(x.numpy()))


def thresholds(x: Tensor, target: Tensor, weight: Tensor | None, settings: Settings) -> Tensor:
    """Of the projections: [C] in float64."""
    arguments = arguments_of(x, target, weight, settings)
    if weight is not None:
        found = torch.tensor([column.threshold for column, _ in _columns(x, arguments, settings)], dtype=torch.float64)
    else:
        with torch.no_grad():
            found = _loss_ops.thresholds_of(_loss.loss(x, arguments)[1]())
    _check(found, x)
    return found


def loss_at_own_thresholds(x: Tensor, target: Tensor, weight: Tensor | None, settings: Settings) -> float:
    """The mean over samples and classes of the loss at the thresholds of these margins.

    For k = "targets", and of the squared kind for any k, it is the loss that is minimised. For another k that one falls
    without end as margins are shifted, by the mass that the targets have more or less than k; this one does not change.
    An infinite threshold stands for all beyond the margins: the nearest of these gives the same p, and finite numbers.
    """
    nearest = thresholds(x, target, weight, settings).clamp(x.amin(0).double() - settings.tau, x.amax(0).double())
    return float(_loss_composed.loss_at(nearest, True, x, arguments_of(x, target, weight, settings)))


def arguments_of(
    x: Tensor, target: Tensor, weight: Tensor | None, settings: Settings, reduction: str = "mean"
) -> Arguments:
    """The arguments of the loss; a k that is out of range for these samples raises."""
    return loss_arguments(x, target, settings.k, settings.tau, None, weight, -100, 0.0, settings.kind, reduction)[1]


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
    floor, ceiling = t.astype(x.dtype), (t + settings.tau).astype(x.dtype)
    beside = ((np.maximum(1 - 1 / a, settings.floor) - settings.floor) * b).astype(x.dtype)
    diagonal = memory(x)
    for rows in blocks(x):
        on = x[rows] > floor
        on &= x[rows] < ceiling
        np.multiply(on, beside, out=diagonal[rows])
        diagonal[rows] += settings.floor * b
    return diagonal


def _columns(x: Tensor, arguments: Arguments, settings: Settings) -> Iterator[tuple[_weighted_mass.Column, Array]]:
    """The weighted projection of every class, and its targets, one after the other.

    Raises:
        ValueError: A margin is infinite, of which Newton's steps would make nan.
    """
    if any(np.isinf(x.numpy()[rows]).any() for rows in blocks(x.numpy())):
        raise ValueError(
            f"margins must be finite beside sample_weight, got {x[x.isinf()][0]} among {x.numel()} entries"
        )
    assert arguments.sample_weight is not None
    s, target = arguments.sample_weight.numpy(), arguments.target.numpy()
    for c in range(1 if x.ndim == 1 else x.shape[1]):
        x_c = x.numpy() if x.ndim == 1 else x[:, c].numpy()
        t = (target if x.ndim == 1 else target == c).astype(np.float64, copy=False)
        if arguments.mass_kind == VALUE:
            k = arguments.k
        elif arguments.mass_kind == FRACTION:
            k = float(_loss_composed.whole_part(arguments.k, arguments.sample_weight.sum()))
        else:
            k = _weighted_mass.weighted_sum(s, t)
        yield _weighted_mass.project(x_c, s, k, settings.tau), t


def _by_weighted_mass(x: Tensor, arguments: Arguments, settings: Settings) -> Derivatives:
    """Where a sample counts as often as its weight says: the diagonal is b s_i (1 - s_i / sum_A s) on A."""
    assert arguments.sample_weight is not None
    s, b, squared = arguments.sample_weight.numpy(), bound(settings), settings.kind == "squared"
    gradient, hessian = _memory(x), _memory(x)
    thresholds = []
    for c, (column, t) in enumerate(_columns(x, arguments, settings)):
        g, h = (part if x.ndim == 1 else part[:, c] for part in (gradient.numpy(), hessian.numpy()))
        _weighted_mass.gradient(column, t, s, settings.tau, squared, g)
        _weighted_mass.diagonal(column, s, 1 if settings.hessian == "bound" else settings.floor, b, h)
        thresholds.append(column.threshold)
    _check(torch.tensor(thresholds), x)
    return Derivatives(gradient, hessian)
