"""The HyperSimplex loss on validated arguments: fused where the kernels serve, composed of the projection elsewhere.

Fused, one operator gives the loss and one sweep its gradient in the logits; nothing is kept per element. Composed, the
same definition is written in differentiable operations, which serves what the kernels do not: a loss per element,
gradients in anything but the logits, derivatives of second order or in forward mode, devices without kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from . import _ops
from ._autograd import project, tracing, transforming
from ._backends import has_kernels

# The enumerations of csrc/hypersimplex.h.
SQUARED: int = 0
FENCHEL_YOUNG: int = 1
MEAN: int = 0
SUM: int = 1
NONE: int = 2  # composed only
VALUE: int = 0
TARGETS: int = 1
FRACTION: int = 2


class Arguments(NamedTuple):
    """What the loss takes beside the logits [N, C, d...] or [N], in the order of the operators."""

    target: Tensor  # class indices [N, d...] int64, or dense like the logits
    k_values: Tensor | None  # [C] float64
    k: float
    mass_kind: int
    tau_values: Tensor | None  # [C] float64
    tau: float
    weight: Tensor | None  # [C] float64
    sample_weight: Tensor | None  # [N, d...] float64
    ignore_index: int
    label_smoothing: float
    kind: int
    reduction: int


# Thresholds and numbers of active entries, [C] each.
Statistics = Callable[[], tuple[Tensor, Tensor]]


def loss(x: Tensor, arguments: Arguments) -> tuple[Tensor, Statistics]:
    """The loss, and a function that tells where its projections lie."""
    if not _fusible(x, arguments):
        return _composed(x, arguments)
    if tracing() or (torch.is_grad_enabled() and x.requires_grad):
        value, state = _FusedLoss.apply(x, arguments)  # type: ignore[no-untyped-call]
    else:
        value, state = _ops.loss_forward(x, *arguments)
    classes = state.shape[0] // _ops.LOSS_STATE_ROWS
    return value, lambda: (state[:classes] + state[classes : 2 * classes], state[3 * classes : 4 * classes])


def _fusible(x: Tensor, arguments: Arguments) -> bool:
    if arguments.reduction == NONE or not has_kernels(x.device):
        return False
    beside = (arguments.target, arguments.k_values, arguments.tau_values, arguments.weight, arguments.sample_weight)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in beside):
        return False
    return tracing() or not transforming()


class _FusedLoss(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, arguments: Arguments) -> Any:
        value, state = _ops.loss_forward(x, *arguments)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(state)
        target, k_values, ctx.k, ctx.mass_kind, tau_values, ctx.tau, weight, sample_weight, *ctx.options = arguments
        ctx.save_for_backward(x, state, target, k_values, tau_values, weight, sample_weight)
        return value, state

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> Any:
        if grad is None:
            return None, None
        x, state, target, k_values, tau_values, weight, sample_weight = ctx.saved_tensors
        arguments = Arguments(
            *(target, k_values, ctx.k, ctx.mass_kind, tau_values, ctx.tau, weight, sample_weight), *ctx.options
        )
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # to be differentiated again
            (grad_x,) = torch.autograd.grad(_composed(x, arguments)[0], x, grad, create_graph=True)
        else:
            grad_x = _ops.loss_backward(grad, state, x, *arguments)
        return grad_x, None


# ---- composed ----


class _Batch(NamedTuple):
    """Logits as [n, C] and the targets that go with them."""

    x: Tensor  # [n, C], computed in float32 at least
    dense: Tensor | None  # [n, C]
    labels: Tensor | None  # [n], 0 where ignored
    valid: Tensor | None  # [n] bool beside class indices
    keep: float  # target = keep * label + off
    off: float


def _batch(x: Tensor, arguments: Arguments) -> _Batch:
    target, smoothing = arguments.target, arguments.label_smoothing

    def flat(t: Tensor) -> Tensor:
        t = t.unsqueeze(1) if t.ndim == 1 else t.movedim(1, -1).flatten(0, -2)
        return t.to(torch.promote_types(t.dtype, torch.float32))

    logits = flat(x)
    keep, off = 1 - smoothing, smoothing / max(logits.shape[1], 2)
    if target.shape == x.shape:
        return _Batch(logits, flat(target), None, None, keep, off)
    index = target.flatten()
    valid = index != arguments.ignore_index
    if index.device.type == "cpu" and not tracing() and not transforming():
        outside = index[valid & ((index < 0) | (index >= logits.shape[1]))]
        if outside.numel():
            raise IndexError(f"Target {outside[0].item()} is out of bounds.")
    return _Batch(logits, None, torch.where(valid, index, 0), valid, keep, off)


def _masses(batch: _Batch, arguments: Arguments, wide: torch.dtype) -> tuple[Tensor | None, float]:
    """Masses of the classes, as numbers [C] or one number."""
    samples, classes = batch.x.shape
    if arguments.mass_kind == VALUE:
        return arguments.k_values, arguments.k
    taking_part = samples if batch.valid is None else batch.valid.sum(dtype=wide)
    if arguments.mass_kind == FRACTION:
        if isinstance(taking_part, Tensor):
            return (arguments.k * taking_part).floor().expand(classes), 0.0
        return None, math.floor(arguments.k * taking_part)
    if batch.dense is not None:
        positives = batch.dense.sum(0, dtype=wide)
    else:
        assert batch.labels is not None
        assert batch.valid is not None
        positives = torch.zeros(classes, dtype=wide, device=batch.x.device)
        positives = positives.scatter_add(0, batch.labels, batch.valid.to(wide))
    return (batch.keep * positives + batch.off * taking_part).clamp(0, samples), 0.0


def _residual(p: Tensor, batch: _Batch) -> Tensor:
    """The residual p - target, 0 for ignored samples."""
    if batch.dense is not None:
        return p - (batch.keep * batch.dense + batch.off)
    assert batch.labels is not None
    assert batch.valid is not None
    valid = batch.valid.to(p.dtype).unsqueeze(1)
    return (p - batch.off * valid).scatter_add(1, batch.labels.unsqueeze(1), -batch.keep * valid)


def _composed(x: Tensor, arguments: Arguments) -> tuple[Tensor, Statistics]:
    batch = _batch(x, arguments)
    samples, classes = batch.x.shape
    wide = torch.float64 if arguments.tau_values is None else arguments.tau_values.dtype
    k_values, k = _masses(batch, arguments, wide)
    mask = None if batch.valid is None else batch.valid.unsqueeze(1).expand(samples, classes)
    p, state = project(batch.x, mask, k_values, k, arguments.tau_values, arguments.tau, 0)
    r = _residual(p, batch)
    terms = r * r if arguments.kind == SQUARED else _fenchel_young(batch.x, p, r, state, arguments)
    if arguments.weight is not None:
        terms = terms * arguments.weight.to(terms.dtype)
    if arguments.sample_weight is not None:
        terms = terms * arguments.sample_weight.to(terms.dtype).reshape(-1, 1)
    value = _reduce(terms, x, batch, arguments)

    def statistics() -> tuple[Tensor, Tensor]:
        return state[0] + state[1], ((p > 0) & (p < 1)).sum(0)

    return value, statistics


def _fenchel_young(x: Tensor, p: Tensor, r: Tensor, state: Tensor, arguments: Arguments) -> Tensor:
    """(z - t)^2 / 2 - (z - p)^2 / 2 = r (u - (p + t) / 2) + lambda r,  u = z - lambda: no cancellation at large z."""
    tau = arguments.tau if arguments.tau_values is None else arguments.tau_values.to(x.dtype)
    level = torch.where(state[0].isfinite(), state, 0.0).to(x.dtype)  # p and d of the state
    x = torch.where(x.isinf(), x.detach(), x)  # no gradient on infinite logits
    u = torch.where(r != 0, ((x - level[0]) - level[1]) / tau, 0.0)
    return r * (u - p + r / 2) + level.sum(0) / tau * r


def _reduce(terms: Tensor, x: Tensor, batch: _Batch, arguments: Arguments) -> Tensor:
    if arguments.reduction == NONE:
        shape = (x.shape[0], *x.shape[2:], batch.x.shape[1])
        return (terms.squeeze(1) if x.ndim == 1 else terms.reshape(shape).movedim(-1, 1)).to(x.dtype)
    total = terms.sum(dtype=terms.dtype)
    if arguments.reduction == SUM:
        return total.to(x.dtype)
    classes = batch.x.shape[1] if arguments.weight is None else arguments.weight.sum()
    weights = terms.new_ones(len(batch.x)) if arguments.sample_weight is None else arguments.sample_weight.flatten()
    samples = weights.sum() if batch.valid is None else torch.where(batch.valid, weights, 0.0).sum()
    return (total / (classes * samples)).to(x.dtype)
