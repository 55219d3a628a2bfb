"""The HyperSimplex loss on validated arguments: fused where the kernels serve, composed of the projection elsewhere.

Fused, one operator gives the loss and one sweep its gradient in the logits; nothing is kept per element.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _loss_ops, _ops, _shards, reference
from ._arguments import FENCHEL_YOUNG, NONE, SQUARED, TARGETS, TENSORS, VALUE, Arguments, Statistics, tensors
from ._autograd import product, symbolic, tracing, transforming
from ._backends import contiguous, has_kernels
from ._calls import DTYPES
from ._loss_composed import batch_of, composed, rows, unflattened
from ._shards import Shards
from ._torch_private import direct, untransformed


def loss(x: Tensor, arguments: Arguments) -> tuple[Tensor, Statistics]:
    """The loss, and a function that tells where its projections lie."""
    traced = tracing()
    if not _fusible(x, arguments) or (transforming() and not traced):
        return composed(batch_of(x, arguments), x, arguments)
    call = fused_call(x, arguments)
    if call is not None:
        target, *others = tensors(arguments)
        return fused(x, call, target, *map(contiguous, others))
    value, state = _loss_ops.loss_forward(x, *arguments)
    return value, lambda: state


def loss_over(shards: Shards, x: Tensor, arguments: Arguments) -> tuple[Tensor, Statistics]:
    """`loss` over the samples of all processes, each with its own."""
    a, classes = arguments, x.shape[1] if x.ndim > 1 else 1
    k, tau = (number if values is None else values for number, values in ((a.k, a.k_values), (a.tau, a.tau_values)))
    dense, weighted = a.target.shape == x.shape, a.sample_weight is not None
    settings = a.mass_kind, a.ignore_index, a.label_smoothing, a.kind, a.reduction, dense, weighted
    facts = classes, DTYPES[x.dtype], k, tau, a.weight, settings
    fusible = _fusible(x, a)
    with shards.told(x):
        batch = None if fusible else batch_of(x, a)
        search = _shards.begin_loss(shards, x.detach(), *a) if fusible else None
    shards.agree(x, a.target.numel() // (classes if dense else 1), *facts)
    if a.mass_kind == VALUE:
        shards.check_mass(x, k)
    if search is None:
        assert batch is not None
        return composed(batch, x, a, shards)
    may_cancel = a.kind == FENCHEL_YOUNG and (a.mass_kind != TARGETS or weighted)
    return _shards.loss(search, shards, may_cancel, x, *a), lambda: search.state


def fused_call(x: Tensor, arguments: Arguments) -> _loss_ops.LossCall | None:
    """What to give `fused` in place of `loss`, where it serves."""
    if not _fusible(x, arguments) or transforming() or x.numel() == 0:
        return None
    if not direct(x, *[t for t in tensors(arguments) if t is not None]):
        return None
    return _loss_ops.loss_call(x, arguments.target, arguments[TENSORS:])


def _fusible(x: Tensor, arguments: Arguments) -> bool:
    if arguments.reduction == NONE or not has_kernels(x.device):
        return False
    if symbolic(arguments.k) or symbolic(arguments.label_smoothing):
        return False
    if torch.is_grad_enabled():
        return not any(t is not None and t.requires_grad for t in tensors(arguments))
    return True


def fused(x: Tensor, call: _loss_ops.LossCall, *arguments: Tensor | None) -> tuple[Tensor, Statistics]:
    """`loss` where nothing comes before the kernels, of the tensors among its arguments."""
    state = call.new_state()
    tensors = (x, state, *arguments)
    recorded = x.requires_grad and torch.is_grad_enabled()
    value = _apply_fused(x, tensors, call) if recorded else call.forward(tensors)
    return value, lambda: state


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
        _ops.check_saved("target", others[0], call.target_dtype, call.shapes[1], call.device)
        return _loss_ops.loss_backward(grad, state, x, *others, *call.settings), None, None


_apply_fused = untransformed(_FusedLoss)


# ---- derivatives of the operators, for torch.compile and of second order ----


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *arguments = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], *arguments[:TENSORS])
    ctx.numbers = arguments[TENSORS:]


def _differentiate_loss(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    x, state, *tensors = ctx.saved_tensors
    return _loss_ops.loss_backward(grad, state, x, *tensors, *ctx.numbers), *(None,) * len(Arguments._fields)


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, state, x, *arguments = inputs
    ctx.save_for_backward(grad, state, x, *arguments[:TENSORS])
    ctx.numbers = arguments[TENSORS:]


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
    batch, along = batch_of(x, arguments), rows(v)
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
    return unflattened(out, x).to(x.dtype)


_ops.register_derivative("loss_forward", _differentiate_loss, _save_loss)
_ops.register_derivative("loss_backward", _differentiate_gradient, _save_gradient)
