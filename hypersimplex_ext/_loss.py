"""The HyperSimplex loss on validated arguments: fused where the kernels serve, composed of the projection elsewhere.

Fused, one operator gives the loss and one sweep its gradient in the logits; nothing is kept per element. Composed, the
same definition is written in differentiable operations, which serves what the kernels do not: a loss per element,
gradients in anything but the logits, derivatives of second order or in forward mode, devices without kernels.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from . import _loss_ops, _ops, reference
from ._autograd import product, project, symbolic, tracing, transforming
from ._backends import contiguous, has_kernels
from ._enumerations import codes
from ._torch_private import direct, untransformed

SQUARED, FENCHEL_YOUNG = codes("LossKind", "SQUARED", "FENCHEL_YOUNG")
MEAN, SUM = codes("Reduction", "MEAN", "SUM")
NONE = 1 + max(MEAN, SUM)  # composed only
VALUE, TARGETS, FRACTION = codes("MassKind", "VALUE", "TARGETS", "FRACTION")


class Arguments(NamedTuple):
    """What the loss takes beside the logits [N, C, d...] or [N], in the order of the operators."""

    target: Tensor  # class indices [N, d...] int64, or dense like the logits
    k_values: Tensor | None  # [C] float64
    tau_values: Tensor | None  # [C] float64
    weight: Tensor | None  # [C] float64
    sample_weight: Tensor | None  # [N, d...] float64
    k: float
    mass_kind: int
    tau: float
    ignore_index: int
    label_smoothing: float
    kind: int
    reduction: int


_TENSORS = 5  # the first of the arguments


def tensors(a: Arguments) -> tuple[Tensor | None, ...]:
    """The first `_TENSORS` by name, as torch.compile of PyTorch 2.6 cannot take a slice."""
    return a.target, a.k_values, a.tau_values, a.weight, a.sample_weight


# Thresholds and numbers of active entries, [C] each.
Statistics = Callable[[], tuple[Tensor, Tensor]]


def loss(x: Tensor, arguments: Arguments) -> tuple[Tensor, Statistics]:
    """The loss, and a function that tells where its projections lie."""
    traced = tracing()
    if not _fusible(x, arguments) or (transforming() and not traced):
        return _composed(x, arguments)
    call = fused_call(x, arguments)
    if call is not None:
        target, *others = tensors(arguments)
        return fused(x, call, target, *map(contiguous, others))
    value, state = _loss_ops.loss_forward(x, *arguments)
    return value, lambda: _statistics(state)


def fused_call(x: Tensor, arguments: Arguments) -> _loss_ops.LossCall | None:
    """What to give `fused` in place of `loss`, where it serves."""
    if not _fusible(x, arguments) or transforming() or x.numel() == 0:
        return None
    if not direct(x, *[t for t in tensors(arguments) if t is not None]):
        return None
    return _loss_ops.loss_call(x, arguments.target, arguments[_TENSORS:])


def _fusible(x: Tensor, arguments: Arguments) -> bool:
    if arguments.reduction == NONE or not has_kernels(x.device):
        return False
    if symbolic(arguments.k) or symbolic(arguments.label_smoothing):
        return False
    if torch.is_grad_enabled():
        return not any(t is not None and t.requires_grad for t in tensors(arguments))
    return True


def _statistics(state: Tensor) -> tuple[Tensor, Tensor]:
    classes = state.shape[0] // _loss_ops.STATE_ROWS
    return state[:classes] + state[classes : 2 * classes], state[3 * classes : 4 * classes]


def fused(x: Tensor, call: _loss_ops.LossCall, *arguments: Tensor | None) -> tuple[Tensor, Statistics]:
    """`loss` where nothing comes before the kernels, of the tensors among its arguments."""
    state = call.new_state()
    tensors = (x, state, *arguments)
    recorded = x.requires_grad and torch.is_grad_enabled()
    value = _apply_fused(x, tensors, call) if recorded else call.forward(tensors)
    return value, lambda: _statistics(state)


class _FusedLoss(Function):
    """The loss of the tensors of a call, of which the first is given twice, for autograd to see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tensors: _loss_ops.LossTensors, call: _loss_ops.LossCall) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.call = call
        return call.forward(tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        tensors, call = ctx.saved_tensors, ctx.call
        x, state, *others = tensors
        if not torch.is_grad_enabled() and direct(grad, x) and (x.stride(), others[0].stride()) == call.strides:
            try:
                return call.backward(grad, tensors), None, None
            except (TypeError, ValueError) as error:  # the gradient is as the loss: only what was saved can be wrong
                raise _ops.ChangedError(error) from error
        # To be differentiated again, batched, or with other strides than when they were saved.
        _ops.check_saved("x", x, call.loss.dtype, call.shapes[0], call.device)
        _ops.check_saved("target", others[0], call.target_dtype(), call.shapes[1], call.device)
        return _loss_ops.loss_backward(grad, state, x, *others, *call.settings), None, None


_apply_fused = untransformed(_FusedLoss)


# ---- derivatives of the operators, for torch.compile and of second order ----


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *arguments = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], *arguments[:_TENSORS])
    ctx.numbers = arguments[_TENSORS:]


def _differentiate_loss(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    x, state, *tensors = ctx.saved_tensors
    return _loss_ops.loss_backward(grad, state, x, *tensors, *ctx.numbers), *(None,) * len(Arguments._fields)


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, state, x, *arguments = inputs
    ctx.save_for_backward(grad, state, x, *arguments[:_TENSORS])
    ctx.numbers = arguments[_TENSORS:]


def _differentiate_gradient(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    grad, state, x, *tensors = ctx.saved_tensors
    arguments = Arguments(*tensors, *ctx.numbers)
    grad_grad = along = None
    if ctx.needs_input_grad[0]:
        grad_grad = (_loss_ops.loss_backward(torch.ones_like(grad), state, x, *arguments) * v).sum()
    if ctx.needs_input_grad[2]:
        along = _times_hessian(v, grad, state, x, arguments)
    return grad_grad, None, along, *(None,) * len(Arguments._fields)


def _times_hessian(v: Tensor, grad: Tensor, state: Tensor, x: Tensor, arguments: Arguments) -> Tensor:
    """H v in closed form, as J is a projection: with sample weights s, class weight w and grad upstream.

    Squared: 2 w / tau^2 J s J v. Fenchel-Young: w / tau^2 1_A (s v - mean_A(s) mean_A(v)).
    """
    batch, along = _batch(x, arguments), _rows(v)
    samples, classes = batch.x.shape
    mask = batch.valid.expand(samples, classes)
    placed = mask, state[: 2 * classes].view(2, classes), arguments.tau_values, arguments.tau, 0
    tau = arguments.tau if arguments.tau_values is None else arguments.tau_values
    factor = grad.to(state.dtype) * state[-1] / tau
    if arguments.weight is not None:
        factor = factor * arguments.weight
    out = product(along, batch.x, *placed)  # J v / tau
    if arguments.sample_weight is not None:
        s = torch.where(batch.valid, arguments.sample_weight.reshape(-1, 1).to(out.dtype), 0.0)
        if arguments.kind == SQUARED:
            out = product(s * out, batch.x, *placed) * tau
        else:  # s J v + mean_A(v) J s
            active = reference.active(batch.x.masked_fill(~mask, -math.inf), placed[1], tau, 0)
            mean = torch.where(active, along, 0.0).sum(0) / active.sum(0).clamp(min=1)
            out = s * out + mean * product(s.expand_as(out), batch.x, *placed)
    out = out * (factor * (2 if arguments.kind == SQUARED else 1))
    return _unflattened(out, x).to(x.dtype)


_ops.register_derivative("loss_forward", _differentiate_loss, _save_loss)
_ops.register_derivative("loss_backward", _differentiate_gradient, _save_gradient)


# ---- composed ----


class _Batch(NamedTuple):
    """Logits as [n, C] and the targets that go with them."""

    x: Tensor  # [n, C], computed in float32 at least
    dense: Tensor | None  # [n, C], 0 where ignored
    labels: Tensor | None  # [n], 0 where ignored
    valid: Tensor  # bool [n, C] beside dense targets, [n, 1] beside class indices
    keep: float  # target = keep * label + off
    off: float


def _rows(t: Tensor) -> Tensor:
    """[N, C, d...] or [N] as [n, C], in float32 at least."""
    t = t.unsqueeze(1) if t.ndim == 1 else t.movedim(1, -1)
    t = t.reshape(math.prod(t.shape[:-1]), t.shape[-1])  # flatten has no batching rule for batched gradients
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _unflattened(t: Tensor, x: Tensor) -> Tensor:
    """Back from [n, C] to the shape of `x`."""
    return t.squeeze(1) if x.ndim == 1 else t.reshape(x.shape[0], *x.shape[2:], t.shape[1]).movedim(-1, 1)


def _batch(x: Tensor, arguments: Arguments) -> _Batch:
    target, smoothing = arguments.target, arguments.label_smoothing
    logits = _rows(x)
    keep, off = 1 - smoothing, smoothing / max(logits.shape[1], 2)
    if target.shape == x.shape:
        valid = _rows(target) != arguments.ignore_index
        dense = torch.where(valid, _rows(target), 0.0)
        label = _first(dense, (dense < 0) | (dense > 1))
        if label is not None:
            raise ValueError(f"target must lie in [0, 1], got {label:g}")
        return _Batch(logits, dense, None, valid, keep, off)
    index = target.flatten()
    valid = index != arguments.ignore_index
    outside = _first(index, valid & ((index < 0) | (index >= logits.shape[1])))
    if outside is not None:
        raise IndexError(f"Target {outside} is out of bounds.")
    return _Batch(logits, None, torch.where(valid, index, 0), valid.unsqueeze(1), keep, off)


def _first(values: Tensor, chosen: Tensor) -> Any:
    """The first of the chosen numbers, if any, on the CPU; elsewhere, and in a batch of vmap, nobody can tell."""
    if values.device.type != "cpu" or tracing():
        return None
    try:
        found = values.detach()[chosen]
        return found[0].item() if found.numel() else None
    except RuntimeError:  # of vmap, where a number of entries may depend on no data
        return None


def _masses(batch: _Batch, arguments: Arguments, wide: torch.dtype) -> tuple[Tensor | None, float]:
    """Masses of the classes, as numbers [C] or one number."""
    samples, classes = batch.x.shape
    if arguments.mass_kind == VALUE:
        return arguments.k_values, arguments.k
    taking_part = batch.valid.sum(0, dtype=wide)
    if arguments.mass_kind == FRACTION:
        return whole_part(arguments.k, taking_part).expand(classes), 0.0
    if batch.dense is not None:
        positives = batch.dense.sum(0, dtype=wide)
    else:
        assert batch.labels is not None
        positives = torch.zeros(classes, dtype=wide, device=batch.x.device)
        positives = positives.scatter_add(0, batch.labels, batch.valid.squeeze(1).to(wide))
    return (batch.keep * positives + batch.off * taking_part).clamp(0, samples), 0.0


def whole_part(fraction: float, numbers: Tensor) -> Tensor:
    """The whole part of a fraction as it is written: .29 of 100 is 29, though .29 * 100 = 28.999999999999996."""
    return (fraction * numbers * (1 + 2 * sys.float_info.epsilon)).floor()


def _residual(p: Tensor, batch: _Batch) -> Tensor:
    """The residual p - target, 0 where ignored."""
    valid = batch.valid.to(p.dtype)
    if batch.dense is not None:
        return p - (batch.keep * batch.dense + batch.off * valid)
    assert batch.labels is not None
    return (p - batch.off * valid).scatter_add(1, batch.labels.unsqueeze(1), -batch.keep * valid)


def _composed(x: Tensor, arguments: Arguments) -> tuple[Tensor, Statistics]:
    batch = _batch(x, arguments)
    logits = torch.where(batch.valid, batch.x, -math.inf)
    wide = torch.float64 if arguments.tau_values is None else arguments.tau_values.dtype
    k_values, k = _masses(batch, arguments, wide)
    if arguments.mass_kind == TARGETS and batch.dense is not None:
        assert k_values is not None
        unknown = torch.where(k_values.isnan(), math.nan, 0.0).to(logits.dtype)
        logits, k_values = logits + unknown, k_values.nan_to_num()
    p, state = project(logits, None, k_values, k, arguments.tau_values, arguments.tau, 0)
    r = _residual(p, batch)
    terms = r * r if arguments.kind == SQUARED else _fenchel_young(logits, p, r, state, arguments)
    importance = batch.valid.to(terms.dtype)
    if arguments.sample_weight is not None:
        s = arguments.sample_weight.to(terms.dtype).reshape(-1, 1)
        importance = torch.where(batch.valid, s, 0.0)
        terms = terms * importance
    if arguments.weight is not None:
        terms = terms * arguments.weight.to(terms.dtype)
    value = _reduce(terms, importance, x, arguments)

    def statistics() -> tuple[Tensor, Tensor]:
        return state[0] + state[1], ((p > 0) & (p < 1)).sum(0)

    return value, statistics


def _fenchel_young(x: Tensor, p: Tensor, r: Tensor, state: Tensor, arguments: Arguments) -> Tensor:
    """(z - t)^2 / 2 - (z - p)^2 / 2 = r (u - (p + t) / 2) + lambda r,  u = z - lambda: no cancellation at large z.

    Any lambda does. Where an entry is active it is the threshold, as then u = p there and the gradient through p is
    exactly 0. Elsewhere it is 0: the middle of a wide gap would be far from all logits.
    """
    tau = arguments.tau if arguments.tau_values is None else arguments.tau_values.to(x.dtype)
    level = torch.where(((p > 0) & (p < 1)).any(0), state, 0.0).to(x.dtype)  # p and d of the state
    x = torch.where(x.isinf(), x.detach(), x)  # no gradient on infinite logits
    u = ((x - level[0]) - level[1]) / tau
    u = torch.where((r == 0) & u.isinf(), 0.0, u)
    return r * (u - p + r / 2) + level.sum(0) / tau * r


def _reduce(terms: Tensor, importance: Tensor, x: Tensor, arguments: Arguments) -> Tensor:
    """`importance`, [n, C] or [n, 1]: the sample weight of what takes part, 0 elsewhere."""
    if arguments.reduction == NONE:
        return _unflattened(terms, x).to(x.dtype)
    total = terms.sum(dtype=terms.dtype)
    if arguments.reduction == SUM:
        return total.to(x.dtype)
    shares = importance.sum(0).expand(terms.shape[1])
    if arguments.weight is not None:
        shares = shares * arguments.weight.to(terms.dtype)
    return (total / shares.sum()).to(x.dtype)
