"""Derivatives of isotonic regression and of what it projects onto the permutahedron, to any order and in both modes.

The blocks B of a regression are constant almost everywhere, so every derivative is a product with a matrix made of
blocks, as `BlockProduct` in csrc/hypersimplex.h lists them. With g upstream, S the sum over an element's block,
R u = S u / S w, M u = S (w u) / S w, and w = 1 where nothing else is said:

    regression                         v = M x             grad x = w R g         grad w = (x - v) R g
    soft rank and projection, L2       y = s - v           grad s = g - M g       grad w = M g
    soft rank, KL                      y = exp(s - v)      grad s = y (g - M g)   weighted by y
    soft sort, L2                      y = w - v           grad s = M g
    soft sort, KL: p = e^s / S e^s     y = w - v           grad s = p S g         p' = p (s' - M s'), weighted by p

As in `_autograd`, each operator comes as a plain function and as one for function transforms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _order_ops as ops
from ._autograd import _apply, transforming

_TRANSPOSE = {ops.MEAN: ops.TRANSPOSED, ops.TRANSPOSED: ops.MEAN, ops.RATIO: ops.RATIO, ops.RESIDUAL: ops.RESIDUAL}


# ---- the public operators, on validated arguments ----


def sort(x: Tensor, descending: bool, dim: int) -> tuple[Tensor, Tensor]:
    """Values, differentiable, and int64 places."""
    result: tuple[Tensor, Tensor] = _apply(*_SORT, (x, descending, dim))
    return result


def regression(x: Tensor, weight: Tensor | None, increasing: bool, dim: int) -> Tensor:
    """Isotonic regression in least squares, differentiable in x and weight."""
    v: Tensor = _apply(*_REGRESSION, (x, weight, increasing, dim))[0]
    return v


def soft_rank(x: Tensor, w: Tensor | None, scale: float, kl: bool, dim: int) -> Tensor:
    """Project scale * x onto the permutahedron of w, which descends; or of the ranks n, ..., 1. KL for ranks only."""
    y: Tensor = _apply(*_SOFT_RANK, (x, w, scale, kl, dim))[0]
    return y


def soft_sort(x: Tensor, scale: float, sign: float, kl: bool, dim: int) -> Tensor:
    """Project the ranks n, ..., 1, times scale, onto the permutahedron of sign * x, times sign."""
    y: Tensor = _apply(*_SOFT_SORT, (x, scale, sign, kl, dim))[0]
    return y


# ---- an operator is a class with evaluate, keep (which returns tensors to save), backward and tangent ----


def _forms(operator: Any) -> tuple[type[Function], type[Function]]:
    """The plain function of an operator, and the one for function transforms."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        outputs = operator.evaluate(*arguments)
        ctx.save_for_backward(*operator.keep(ctx, arguments, outputs))
        return outputs

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        kept = operator.keep(ctx, inputs, output)
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    transformable = {
        "generate_vmap_rule": True,
        "forward": staticmethod(operator.evaluate),
        "setup_context": staticmethod(setup_context),
        "jvp": staticmethod(operator.tangent),
    }
    make, name = type(operator), operator.__name__
    return make(name, (operator,), {"forward": staticmethod(forward)}), make(name, (operator,), transformable)


# ---- products with blocks ----


def product(p: ops.Product) -> Tensor:
    """`p`, differentiable in v and weight: one kernel, or several where derivatives in the weight may be asked for."""
    if torch.compiler.is_compiling() or not _derived(p.weight):
        result: Tensor = _apply(*_PRODUCT, p)
        return result
    v, weight = _in_order(p.v, p.v_ordered, p), _in_order(p.weight, p.weight_ordered, p)

    def ratio(u: Tensor) -> Tensor:
        found: Tensor = _apply(*_RATIO, (u, weight, p.blocks, p.dim))
        return found

    level = ratio(weight * v if p.product in (ops.MEAN, ops.RESIDUAL) else v)
    out = v - level if p.product == ops.RESIDUAL else level
    out = weight * out if p.product in (ops.TRANSPOSED, ops.RESIDUAL) else out
    if p.out_ordered and p.order is not None:
        out = out.new_empty(out.shape).scatter(p.dim, p.order.long(), out)
    return p.scale * out


def _derived(t: Tensor | None) -> bool:
    """Whether derivatives in t may be asked for."""
    return t is not None and (transforming() or (torch.is_grad_enabled() and t.requires_grad))


def _in_order(t: Tensor | None, ordered: bool, p: ops.Product) -> Tensor:
    """The entries in sorted places."""
    assert t is not None
    return t.gather(p.dim, p.order.long()) if ordered and p.order is not None else t


class _Product(Function):
    """Linear in v; the weight is a constant."""

    @staticmethod
    def evaluate(*arguments: Any) -> Any:
        return ops.block_product(*arguments)

    @staticmethod
    def keep(ctx: Any, arguments: tuple[Any, ...], _: Tensor) -> tuple[Tensor | None, ...]:
        ctx.options = arguments[4:]
        return arguments[1:4]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        p = ops.Product(grad, *ctx.saved_tensors, *ctx.options)
        grad_v = product(p._replace(product=_TRANSPOSE[p.product], v_ordered=p.out_ordered, out_ordered=p.v_ordered))
        return grad_v, *(None,) * 9

    @staticmethod
    def tangent(ctx: Any, v: Tensor, *_: Any) -> Any:
        return product(ops.Product(v, *ctx.saved_tensors, *ctx.options))


class _Ratio(Function):
    """R u = S u / S w, from which the other products are made: R' u = R u' - R u R w'."""

    @staticmethod
    def evaluate(u: Tensor, weight: Tensor, blocks: Tensor, dim: int) -> Any:
        return ops.block_product(*ops.Product(u, weight, None, blocks, ops.RATIO, dim))

    @staticmethod
    def keep(ctx: Any, arguments: tuple[Any, ...], output: Tensor) -> tuple[Tensor | None, ...]:
        _, weight, blocks, ctx.dim = arguments
        return weight, blocks, output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        weight, blocks, r = ctx.saved_tensors
        grad_u = product(ops.Product(grad, weight, None, blocks, ops.RATIO, ctx.dim))
        return grad_u, -r * grad_u if ctx.needs_input_grad[1] else None, None, None

    @staticmethod
    def tangent(ctx: Any, u: Tensor, w: Tensor | None, *_: Any) -> Any:
        weight, blocks, r = ctx.saved_tensors
        return product(ops.Product(u if w is None else u - r * w, weight, None, blocks, ops.RATIO, ctx.dim))


# ---- sort ----


class _Sort(Function):
    @staticmethod
    def evaluate(x: Tensor, descending: bool, dim: int) -> Any:
        return ops.sort(x, descending, True, dim)

    @staticmethod
    def keep(ctx: Any, arguments: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> tuple[Tensor | None, ...]:
        ctx.dim = arguments[2]
        ctx.mark_non_differentiable(outputs[1])
        return (outputs[1],)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        (order,) = ctx.saved_tensors
        return torch.zeros_like(grad).scatter(ctx.dim, order, grad), None, None

    @staticmethod
    def tangent(ctx: Any, x: Tensor, *_: Any) -> Any:
        return x.gather(ctx.dim, *ctx.saved_tensors), None


# ---- isotonic regression ----


class _Regression(Function):
    @staticmethod
    def evaluate(x: Tensor, weight: Tensor | None, increasing: bool, dim: int) -> Any:
        v, _, blocks = ops.isotonic(*ops.Regression(dim, x, b_scale=0.0, weight=weight, increasing=increasing))
        return v, blocks

    @staticmethod
    def keep(ctx: Any, arguments: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> tuple[Tensor | None, ...]:
        x, weight, _, ctx.dim = arguments
        v, blocks = outputs
        ctx.mark_non_differentiable(blocks)
        return blocks, *((x, weight, v) if weight is not None else (None, None, None))

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        blocks, x, weight, v = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return product(ops.Product(grad, weight, None, blocks, ops.TRANSPOSED, ctx.dim)), None, None, None
        ratio = product(ops.Product(grad, weight, None, blocks, ops.RATIO, ctx.dim))
        return weight * ratio if ctx.needs_input_grad[0] else None, (x - v) * ratio, None, None

    @staticmethod
    def tangent(ctx: Any, x_tangent: Tensor, weight_tangent: Tensor | None, *_: Any) -> Any:
        blocks, x, weight, v = ctx.saved_tensors
        if weight_tangent is None:
            return product(ops.Product(x_tangent, weight, None, blocks, ops.MEAN, ctx.dim)), None
        amount = weight * x_tangent + (x - v) * weight_tangent
        return product(ops.Product(amount, weight, None, blocks, ops.RATIO, ctx.dim)), None


# ---- soft rank, and the projection onto any permutahedron ----


class _SoftRank(Function):
    @staticmethod
    def evaluate(x: Tensor, w: Tensor | None, scale: float, kl: bool, dim: int) -> Any:
        s, order = ops.sort(x, scale > 0, False, dim)
        r = ops.Regression(dim, s, scale, w, order=order, result=ops.PRIMAL)
        if kl:
            r = r._replace(divergence=ops.KL, b_logarithm=True, result=ops.EXP_PRIMAL)
        y, _, blocks = ops.isotonic(*r)
        return y, order, blocks

    @staticmethod
    def keep(ctx: Any, arguments: tuple[Any, ...], outputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor | None, ...]:
        _, _, ctx.scale, kl, ctx.dim = arguments
        y, order, blocks = outputs
        ctx.mark_non_differentiable(order, blocks)
        return y if kl else None, order, blocks

    @staticmethod
    def residual(ctx: Any, v: Tensor) -> Tensor:
        """The Jacobian in x, which is symmetric, times v."""
        weight, order, blocks = ctx.saved_tensors
        return product(ops.Product(v, weight, order, blocks, ops.RESIDUAL, ctx.dim, True, True, True, ctx.scale))

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        _, order, blocks = ctx.saved_tensors
        grad_x = grad_w = None
        if ctx.needs_input_grad[0]:
            grad_x = _SoftRank.residual(ctx, grad)
        if ctx.needs_input_grad[1]:
            grad_w = product(ops.Product(grad, None, order, blocks, ops.MEAN, ctx.dim, v_ordered=True))
        return grad_x, grad_w, None, None, None

    @staticmethod
    def tangent(ctx: Any, x: Tensor, w: Tensor | None, *_: Any) -> Any:
        out = _SoftRank.residual(ctx, x)
        if w is not None:
            _, order, blocks = ctx.saved_tensors
            out = out + product(ops.Product(w, None, order, blocks, ops.MEAN, ctx.dim, out_ordered=True))
        return out, None, None


# ---- soft sort ----


class _SoftSort(Function):
    @staticmethod
    def evaluate(x: Tensor, scale: float, sign: float, kl: bool, dim: int) -> Any:
        s, order = ops.sort(x, sign > 0, False, dim)
        r = ops.Regression(dim, None, scale, s, sign, result=ops.PRIMAL, scale=sign)
        if kl:
            r = r._replace(divergence=ops.KL, wants_share=True)
        y, share, blocks = ops.isotonic(*r)
        return y, share, order, blocks

    @staticmethod
    def keep(
        ctx: Any, arguments: tuple[Any, ...], outputs: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> tuple[Tensor | None, ...]:
        _, _, ctx.sign, kl, ctx.dim = arguments
        _, share, order, blocks = outputs
        ctx.mark_non_differentiable(order, blocks, *(() if kl else (share,)))
        ctx.set_materialize_grads(False)
        return share if kl else None, order, blocks

    # Twice sign, once inside and once outside, is 1 in y; it remains in the share.
    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, share_grad: Tensor | None, *_: Any) -> Any:
        share, order, blocks = ctx.saved_tensors
        grad_x = None
        if grad is not None:
            grad_x = product(ops.Product(grad, share, order, blocks, ops.TRANSPOSED, ctx.dim, out_ordered=True))
        if share is not None and share_grad is not None:
            p = ops.Product(share_grad, share, order, blocks, ops.RESIDUAL, ctx.dim, out_ordered=True, scale=ctx.sign)
            grad_x = product(p) if grad_x is None else grad_x + product(p)
        return grad_x, None, None, None, None

    @staticmethod
    def tangent(ctx: Any, x: Tensor, *_: Any) -> Any:
        share, order, blocks = ctx.saved_tensors
        p = ops.Product(x, share, order, blocks, ops.MEAN, ctx.dim, v_ordered=True)
        share_tangent = None if share is None else product(p._replace(product=ops.RESIDUAL, scale=ctx.sign))
        return product(p), share_tangent, None, None


_PRODUCT = _forms(_Product)
_RATIO = _forms(_Ratio)
_SORT = _forms(_Sort)
_REGRESSION = _forms(_Regression)
_SOFT_RANK = _forms(_SoftRank)
_SOFT_SORT = _forms(_SoftSort)
