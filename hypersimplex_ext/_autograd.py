"""Derivatives of the projection, to any order and in both modes.

The Jacobian in x is J / tau with J = diag(1_A) - 1_A 1_A^T / |A|: symmetric, and constant almost everywhere. So its
product with a vector serves backward, forward mode, and again the backward of either; with y the projection and g
upstream,

    grad x = J g / tau        grad tau = -sum (J g / tau) y        grad k = mean_A(g)
    y' = J (x' - tau' y) / tau + k' 1_A / |A|

Each operator comes as two autograd functions. The eager one has the cheapest forward, by a prepared call where there is
one. The transformable one adds what function transforms and forward mode need, at twice the cost per call, and runs
only inside them. torch.compile traces the operator of the library as such, which has the same derivative.
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


def operator(
    definition: Any,
    traced: str | None = None,
    schema: str | None = None,
    apply_eagerly: Callable[..., Any] | None = None,
) -> Operator:
    """Make a function of a subclass of Function that has these static methods.

        evaluate(*inputs)          -> output; takes a prepared call behind them where `directly` is used
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
        ctx.call = None
        ctx.save_for_backward(*definition.keep(ctx, inputs, output))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.call = None
        kept = definition.keep(ctx, inputs, output)
        if _BATCHES_OF_NONE:
            ctx.set_materialize_grads(True)
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    def forward_eagerly(ctx: Any, *arguments: Any) -> Any:
        *inputs, ctx.call = arguments
        output = definition.evaluate(*inputs) if ctx.call is None else definition.evaluate(*inputs, ctx.call)
        ctx.save_for_backward(*definition.keep(ctx, inputs, output))
        return output

    backward = definition.backward  # a plain function, as torch.compile wants it where it traces what follows

    def backward_eagerly(ctx: Any, *gradients: Any) -> Any:
        return *backward(ctx, *gradients), None

    def subclass(**attributes: Any) -> Any:
        return type(definition)(definition.__name__, (definition,), attributes)

    if traced is not None:
        _ops.register_derivative(traced, definition.backward, save)
    apply_directly = None
    if apply_eagerly is None:
        eager = subclass(forward=staticmethod(forward_eagerly), backward=staticmethod(backward_eagerly))
        apply_eagerly, apply_directly = eager.apply, untransformed(eager)
        library = library if traced is not None else lambda *arguments: eager.apply(*arguments, None)
    transformable = subclass(
        generate_vmap_rule=True,
        forward=staticmethod(lambda *inputs: definition.evaluate(*inputs)),
        setup_context=staticmethod(setup_context),
        jvp=staticmethod(definition.tangent),
    )
    return Operator(definition.evaluate, library, apply_eagerly, apply_directly, transformable)


class Operator:
    """An operator in its two autograd functions; a call takes the cheapest way that gives the derivatives asked for."""

    def __init__(self, evaluate: Any, traced: Any, apply_eagerly: Any, apply_directly: Any, transformable: Any) -> None:
        self._evaluate = evaluate
        self._traced = traced
        self._apply_eagerly = apply_eagerly  # which unwraps what transforms of the past have left
        self._apply_directly = apply_directly  # of plain tensors only
        self._transformable = transformable

    def __call__(self, *arguments: Any) -> Any:
        """The result for these inputs."""
        if tracing():
            return self._traced(*arguments)
        if transforming():
            return self._transformable.apply(*arguments)
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            return self._apply_eagerly(*arguments, None)
        return self._evaluate(*arguments)

    def directly(self, call: VectorCall, x: Tensor, *arguments: Any) -> Any:
        """By a prepared call, where nothing but autograd comes before the kernels, and only `x` may require grad."""
        if x.requires_grad and torch.is_grad_enabled():
            return self._apply_directly(x, *arguments, call)
        return self._evaluate(x, *arguments, call)


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
    evaluate = staticmethod(_ops.project)

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
            return (None,) * 7
        needs = ctx.needs_input_grad[2], ctx.needs_input_grad[4]
        problem = x, mask, k_values, ctx.k, tau_values, ctx.tau, ctx.dim
        grad_x, grad_k, grad_tau = _gradients(grad, state, *problem, *needs)
        return grad_x, None, grad_k, None, grad_tau, None, None

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
            out = out + _share(x, mask, state, tau_values, ctx.tau, ctx.dim, k_tangent.unsqueeze(ctx.dim)).to(out.dtype)
        return out, None


def _gradients(
    grad: Tensor,
    state: Tensor,
    x: Tensor,
    mask: Tensor | None,
    k_values: Tensor | None,
    k: float,
    tau_values: Tensor | None,
    tau: float,
    dim: int,
    needs_k: bool,
    needs_tau: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of the projection in x, k and tau."""
    _ops.check_saved("x", x, grad.dtype, grad.shape, grad.device)  # as y, and so as its gradient
    grad_k = grad_tau = None
    if torch.is_grad_enabled():  # to be differentiated again
        grad_x = product(grad, x, mask, state, tau_values, tau, dim)
        if needs_k:
            grad_k = _share(x, mask, state, tau_values, tau, dim, grad).sum(dim)
        if needs_tau:
            y, _ = project(x, mask, k_values, k, tau_values, tau, dim)
            grad_tau = -(grad_x.to(state.dtype) * y.to(state.dtype)).sum(dim)
    elif needs_k or needs_tau:
        grad_x, (grad_k, grad_tau) = _ops.vjp(x, mask, grad, state, tau_values, tau, dim)
    else:
        grad_x = _ops.jvp(x, mask, grad, state, tau_values, tau, dim)
    return grad_x, grad_k if needs_k else None, grad_tau if needs_tau else None


class _ProjectEagerly(Function):
    """The state is an argument, to be filled: one output less is a twentieth of a small call."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mask: Tensor | None,
        k_values: Tensor | None,
        tau_values: Tensor | None,
        state: Tensor,
        problem: tuple[Any, ...],
    ) -> Tensor:
        ctx.save_for_backward(x, mask, k_values, tau_values, state)
        ctx.problem = k, tau, dim, solve, call = problem
        if call is not None:
            y: Tensor = call.project(x, k_values, k, tau_values, tau, state)
            return y
        y, found = solve(x, mask, k_values, k, tau_values, tau, dim)
        state.copy_(found)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, mask, k_values, tau_values, state = ctx.saved_tensors
        k, tau, dim, _, call = ctx.problem
        _, _, needs_k, needs_tau, _, _ = ctx.needs_input_grad
        among_plain = (
            call is not None and not torch.is_grad_enabled() and direct(grad, x) and x.stride() == call.strides
        )
        if among_plain and not needs_k and not needs_tau:
            try:
                grad_x = call.jvp(x, grad, state, tau_values, tau)
            except (TypeError, ValueError) as error:  # the gradient is as y was: only what was saved can be wrong
                raise _ops.ChangedError(error) from error
            return grad_x, None, None, None, None, None
        # To be differentiated again, batched, or with other strides than when it was saved.
        problem = x, mask, k_values, k, tau_values, tau, dim
        grad_x, grad_k, grad_tau = _gradients(grad, state, *problem, needs_k, needs_tau)
        return grad_x, None, grad_k, grad_tau, None, None


_project_plain = untransformed(_ProjectEagerly)


def _eagerly(solve: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The projection by an operator, in the eager autograd function."""

    def apply(
        x: Tensor,
        mask: Tensor | None,
        k_values: Tensor | None,
        k: float,
        tau_values: Tensor | None,
        tau: float,
        dim: int,
        _: None,
    ) -> tuple[Tensor, Tensor]:
        state = _ops.state_like(x, dim)
        problem = k, tau, dim, solve, None
        y: Tensor = _ProjectEagerly.apply(x, mask, k_values, tau_values, state, problem)  # type: ignore[no-untyped-call]
        return y, state

    return apply


def project_directly(
    x: Tensor, k: float, tau: float, call: VectorCall, with_state: bool
) -> tuple[Tensor, Tensor | None]:
    """The projection for one k and one tau, and its state, where nothing but autograd comes before the kernels."""
    if x.requires_grad and torch.is_grad_enabled():
        state = call.new_state()
        problem = k, tau, call.layout.dim, None, call
        return _project_plain(x, None, None, None, state, problem), state
    kept = call.new_state() if with_state or not call.backend.on_cpu else None
    return call.project(x, None, k, None, tau, kept), kept


class _ProjectPav(_Project):
    evaluate = staticmethod(_order_ops.project_pav)


def _share(
    x: Tensor, mask: Tensor | None, state: Tensor, tau_values: Tensor | None, tau: float, dim: int, v: Tensor
) -> Tensor:
    """1_A v / |A|."""
    filled = x if mask is None else x.masked_fill(~mask, -math.inf)
    active = reference.active(filled, state, tau if tau_values is None else tau_values, dim)
    return torch.where(active, v.to(state.dtype), 0.0) / active.sum(dim, keepdim=True).clamp(min=1)


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


_PROJECT = operator(_Project, "project", apply_eagerly=_eagerly(_ops.project))
_PROJECT_PAV = operator(_ProjectPav, "project_pav", apply_eagerly=_eagerly(_order_ops.project_pav))
_PRODUCT = operator(_Product)


def _refuse(ctx: Any, *_gradients: Any) -> Any:
    raise NotImplementedError(
        "the inner operators hypersimplex_ext::jvp and vjp have no derivative when called as such: "
        "differentiate soft_binary_argmax twice instead"
    )


for _name in ("jvp", "vjp"):
    _ops.register_derivative(_name, _refuse, lambda ctx, inputs, output: None)
