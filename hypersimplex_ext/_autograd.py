"""Derivatives of the projection, to any order and in both modes.

The Jacobian in x is J / tau with J = diag(1_A) - 1_A 1_A^T / |A|: symmetric, and constant almost everywhere. So its
product with a vector serves backward, forward mode, and again the backward of either; with y the projection and g
upstream,

    grad x = J g / tau        grad tau = -sum (J g / tau) y        grad k = mean_A(g)
    y' = J (x' - tau' y) / tau + k' 1_A / |A|

Each operator comes as two autograd functions. The plain one has the cheapest forward; its derivative may also be that
of the library's operator as such, for torch.compile to trace. The other adds what function transforms and forward mode
need, at twice the cost per call, and runs only inside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _ops, _order_ops, reference
from ._calls import VectorCall
from ._torch_private import direct, in_forward_mode, inside_derivative, may_change, transforms_active, untransformed


def transforming() -> bool:
    """Whether a function transform (torch.func) or forward-mode differentiation is at work."""
    return transforms_active() or in_forward_mode()


def tracing() -> bool:
    """Whether torch.compile is tracing. Raise inside its torch.func derivatives, which would silently lack ours."""
    if not torch.compiler.is_compiling():
        return False
    if _inside_derivative():
        raise NotImplementedError(
            "torch.compile would miss the derivatives of hypersimplex_ext inside torch.func.grad, vjp, jvp and what is "
            "built on them (PyTorch issue 192985): compile what is inside the transform, or leave it uncompiled"
        )
    return True


# Evaluated while tracing, where dynamo keeps the stack of transforms.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _inside_derivative() -> bool:
    return inside_derivative()


def symbolic(value: Any) -> bool:
    """Whether torch.compile is tracing, and this float may be another one in the next call."""
    return torch.compiler.is_compiling() and isinstance(value, float) and may_change(value)


def steady(value: Any, like: Tensor) -> Any:
    """A symbolic float as a tensor on the device of `like`; anything else as it is.

    As an argument of an operator such a float can stay what it was in an earlier call (PyTorch issue 197889).
    """
    return like.new_zeros((), dtype=reference.wide_dtype(like.device)).add(value) if symbolic(value) else value


# PyTorch 2.6 makes a batch of whatever comes in the place of a gradient.
_BATCHES_OF_NONE = torch.__version__.startswith("2.6.")


def operator(definition: Any, traced: str | None = None, schema: str | None = None) -> Callable[..., Any]:
    """Make a function of a subclass of Function that has these static methods.

        evaluate(*inputs)          -> output
        keep(ctx, inputs, output)  -> the tensors to save, in either mode
        backward(ctx, *gradients)  -> a gradient or None per input
        tangent(ctx, *tangents)    -> the tangent of the output

    `traced` names the operator of the library that `evaluate` is, if it is one; with a `schema`, whose last argument is
    `dim`, one is made of it.
    """
    library = definition.evaluate
    if schema is not None:
        traced = schema.partition("(")[0]
        library = _ops._operator(schema, library)(library)
        _ops.register_batching_in_front(library, traced, -1)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*definition.keep(ctx, inputs, output))

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = definition.evaluate(*inputs)
        save(ctx, inputs, output)
        return output

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        kept = definition.keep(ctx, inputs, output)
        if _BATCHES_OF_NONE:
            ctx.set_materialize_grads(True)
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    def subclass(**attributes: Any) -> Any:
        return type(definition)(definition.__name__, (definition,), attributes)

    if traced is not None:
        _ops.register_derivative(traced, definition.backward, save)
    plain = subclass(forward=staticmethod(forward))
    transformable = subclass(
        generate_vmap_rule=True,
        forward=staticmethod(definition.evaluate),
        setup_context=staticmethod(setup_context),
        jvp=staticmethod(definition.tangent),
    )

    def call(*arguments: Any) -> Any:
        """Take the cheapest way that gives the derivatives which may be asked for."""
        if tracing():
            return plain.apply(*arguments) if traced is None else library(*arguments)
        if transforming():
            return transformable.apply(*arguments)
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            return plain.apply(*arguments)
        return definition.evaluate(*arguments)

    return call


def project(
    x: Tensor,
    mask: Tensor | None,
    k_values: Tensor | None,
    k: float,
    tau_values: Tensor | None,
    tau: float,
    dim: int,
    pav: bool = False,
) -> tuple[Tensor, Tensor]:
    """The projection of `x` along `dim`, differentiable in x, k_values and tau_values, and its state.

    Solved for the threshold or, with `pav`, by sorting and pooling adjacent violators; the state is the same, and so
    are the derivatives that follow from it.
    """
    solve = _PROJECT_PAV if pav else _PROJECT
    result: tuple[Tensor, Tensor] = solve(x, mask, k_values, k, tau_values, tau, dim)
    return result


def product(
    v: Tensor, x: Tensor, mask: Tensor | None, state: Tensor, tau_values: Tensor | None, tau: float, dim: int
) -> Tensor:
    """J v / tau where the projection of `x` left `state`, differentiable in v and tau_values; in x it is constant."""
    result: Tensor = _PRODUCT(v, x, mask, state, tau_values, tau, dim)
    return result


class _Project(Function):
    evaluate = staticmethod(_ops.threshold)

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor | None, ...]:
        x, mask, k_values, ctx.k, tau_values, ctx.tau, ctx.dim = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # no zeros for the state
        return x, mask, k_values, tau_values, output[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> Any:
        x, mask, k_values, tau_values, state = ctx.saved_tensors
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        _ops.check_saved("x", x, grad.dtype, grad.shape, grad.device)  # as y, and so as its gradient
        _, _, needs_k, _, needs_tau, _, _ = ctx.needs_input_grad
        grad_k = grad_tau = None
        if torch.is_grad_enabled():  # to be differentiated again
            grad_x = product(grad, x, mask, state, tau_values, ctx.tau, ctx.dim)
            if needs_k:
                grad_k = _share(x, mask, state, tau_values, ctx, grad).sum(ctx.dim)
            if needs_tau:
                y, _ = project(x, mask, k_values, ctx.k, tau_values, ctx.tau, ctx.dim)
                grad_tau = -(grad_x.to(state.dtype) * y.to(state.dtype)).sum(ctx.dim)
        elif needs_k or needs_tau:
            grad_x, (grad_k, grad_tau) = _ops.vjp(x, mask, grad, state, tau_values, ctx.tau, ctx.dim)
        else:
            grad_x = _ops.jvp(x, mask, grad, state, tau_values, ctx.tau, ctx.dim)
        return grad_x, None, grad_k if needs_k else None, None, grad_tau if needs_tau else None, None, None

    @staticmethod
    def tangent(ctx: Any, *tangents: Any) -> Any:
        v, _, k_tangent, _, tau_tangent, _, _ = tangents
        x, mask, k_values, tau_values, state = ctx.saved_tensors
        v = torch.zeros_like(x) if v is None else v
        if tau_tangent is not None:
            y, _ = project(x, mask, k_values, ctx.k, tau_values, ctx.tau, ctx.dim)
            v = v - (tau_tangent.unsqueeze(ctx.dim) * y).to(v.dtype)
        out = product(v, x, mask, state, tau_values, ctx.tau, ctx.dim)
        if k_tangent is not None:
            out = out + _share(x, mask, state, tau_values, ctx, k_tangent.unsqueeze(ctx.dim)).to(out.dtype)
        return out, None


def project_directly(
    x: Tensor, k: float, tau: float, call: VectorCall, with_state: bool
) -> tuple[Tensor, Tensor | None]:
    """The projection for one k and one tau, and its state, where nothing but autograd comes before the kernels."""
    if x.requires_grad and torch.is_grad_enabled():
        state = call.new_state()
        return _apply_directly(x, state, k, tau, call), state
    kept = call.new_state() if with_state or not call.backend.on_cpu else None
    return call.threshold(x, None, k, None, tau, kept), kept


class _ProjectDirectly(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, state: Tensor, k: float, tau: float, call: VectorCall) -> Tensor:
        ctx.save_for_backward(x, state)
        ctx.tau, ctx.call = tau, call
        return call.threshold(x, None, k, None, tau, state)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, state = ctx.saved_tensors
        tau, call = ctx.tau, ctx.call
        if not torch.is_grad_enabled() and direct(grad, x) and x.stride() == call.strides:
            try:
                grad_x = call.jvp(x, grad, state, None, tau)
            except (TypeError, ValueError) as error:  # the gradient is as y was: only what was saved can be wrong
                raise _ops.ChangedError(error) from error
            return grad_x, None, None, None, None
        _ops.check_saved("x", x, grad.dtype, grad.shape, grad.device)
        if torch.is_grad_enabled():  # to be differentiated again
            grad_x = product(grad, x, None, state, None, tau, call.layout.dim)
        else:  # batched, or with other strides than when it was saved
            grad_x = _ops.jvp(x, None, grad, state, None, tau, call.layout.dim)
        return grad_x, None, None, None, None


_apply_directly = untransformed(_ProjectDirectly)


class _ProjectPav(_Project):
    evaluate = staticmethod(_order_ops.threshold_pav)


def _share(x: Tensor, mask: Tensor | None, state: Tensor, tau_values: Tensor | None, ctx: Any, v: Tensor) -> Tensor:
    """1_A v / |A|."""
    filled = x if mask is None else x.masked_fill(~mask, -math.inf)
    active = reference.active(filled, state, ctx.tau if tau_values is None else tau_values, ctx.dim)
    return torch.where(active, v.to(state.dtype), 0.0) / active.sum(ctx.dim, keepdim=True).clamp(min=1)


class _Product(Function):
    @staticmethod
    def evaluate(v: Tensor, x: Tensor, mask: Tensor | None, *arguments: Any) -> Any:
        return _ops.jvp(x, mask, v, *arguments)

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor | None, ...]:
        v, x, mask, state, tau_values, ctx.tau, ctx.dim = inputs
        return None if tau_values is None else v, x, mask, state, tau_values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        v, x, mask, state, tau_values = ctx.saved_tensors
        _ops.check_saved("x", x, grad.dtype, grad.shape, grad.device)
        grad_v = product(grad, x, mask, state, tau_values, ctx.tau, ctx.dim)
        grad_x = grad_tau = None
        if ctx.needs_input_grad[1]:
            grad_x = torch.zeros((), dtype=x.dtype, device=x.device).expand_as(x)
        if ctx.needs_input_grad[4]:
            grad_tau = -(v.to(state.dtype) * grad_v.to(state.dtype)).sum(ctx.dim) / tau_values
        return grad_v, grad_x, None, None, grad_tau, None, None

    @staticmethod
    def tangent(ctx: Any, *tangents: Any) -> Any:
        v_tangent, _, _, _, tau_tangent, _, _ = tangents
        v, x, mask, state, tau_values = ctx.saved_tensors
        if tau_tangent is not None:
            v_tangent = v_tangent - (v * (tau_tangent / tau_values).unsqueeze(ctx.dim)).to(v_tangent.dtype)
        return product(v_tangent, x, mask, state, tau_values, ctx.tau, ctx.dim)


_PROJECT = operator(_Project, "threshold")
_PROJECT_PAV = operator(_ProjectPav, "threshold_pav")
_PRODUCT = operator(_Product)


def _refuse(ctx: Any, *_gradients: Any) -> Any:
    raise NotImplementedError(
        "the inner operators hypersimplex_ext::jvp and vjp have no derivative when called as such: "
        "differentiate soft_binary_argmax twice instead"
    )


for _name in ("jvp", "vjp"):
    _ops.register_derivative(_name, _refuse, lambda ctx, inputs, output: None)
