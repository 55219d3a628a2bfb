"""Derivatives of isotonic regression and of what it projects onto the permutahedron, to any order and in both modes.

The blocks B of a regression are constant almost everywhere, so every derivative is a product with a matrix made of
blocks, as `BlockProduct` in csrc/hypersimplex.h lists them. With g upstream, S the sum over an element's block,
R u = S u / S w, M u = S (w u) / S w, and w = 1 where nothing else is said:

    regression                         v = M x             grad x = w R g         grad w = (x - v) R g
    soft rank and projection, L2       y = s - v           grad s = g - M g       grad w = M g
    soft rank, KL                      y = exp(s - v)      grad s = y (g - M g)   weighted by y
    soft sort, L2                      y = w - v           grad s = M g
    soft sort, KL: p = e^s / S e^s     y = w - v           grad s = p S g         p' = p (s' - M s'), weighted by p

Operators are made as in `_autograd`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _order_ops as ops
from ._autograd import operator
from ._calls import VectorCall
from ._torch_private import direct

_TRANSPOSE = {ops.MEAN: ops.TRANSPOSED, ops.TRANSPOSED: ops.MEAN, ops.RATIO: ops.RATIO, ops.RESIDUAL: ops.RESIDUAL}


# ---- the public operators, on validated arguments ----


def sort(x: Tensor, descending: bool, dim: int) -> tuple[Tensor, Tensor]:
    """Values, differentiable, and int64 places."""
    result: tuple[Tensor, Tensor] = SORT(x, descending, dim)
    return result


def regression(x: Tensor, weight: Tensor | None, increasing: bool, dim: int) -> Tensor:
    """Isotonic regression in least squares, differentiable in x and weight."""
    v: Tensor = REGRESSION(x, weight, increasing, dim)[0]
    return v


def soft_rank(x: Tensor, w: Tensor | None, scale: float, kl: bool, dim: int) -> Tensor:
    """Project scale * x onto the permutahedron of w, which descends; or of the ranks n, ..., 1. KL for ranks only."""
    y: Tensor = SOFT_RANK(x, w, scale, kl, dim)[0]
    return y


def soft_sort(x: Tensor, z: Tensor | None, scale: float, sign: float, kl: bool, dim: int) -> Tensor:
    """Project scale * z, which descends, or the ranks n, ..., 1 onto the permutahedron of sign * x, times sign."""
    y: Tensor = SOFT_SORT(x, z, scale, sign, kl, dim)[0]
    return y


# ---- products with blocks ----


def product(p: ops.Product, call: VectorCall | None = None) -> Tensor:
    """`p`, differentiable in v and weight; by a prepared call where that serves."""
    if call is not None and not torch.is_grad_enabled() and direct(p.v, p.blocks):
        return call.block_product(*p)
    result: Tensor = _PRODUCT(*p)
    return result


class _Product(Function):
    evaluate = staticmethod(ops.block_product)

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor | None, ...]:
        v, weight, order, blocks, *ctx.options = inputs
        return v if weight is not None else None, weight, order, blocks

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        p = ops.Product(*ctx.saved_tensors, *ctx.options)
        transposed = p._replace(v=grad, product=_TRANSPOSE[p.product], v_ordered=p.out_ordered, out_ordered=p.v_ordered)
        grad_weight = _in_weight(p, grad) if ctx.needs_input_grad[1] else None
        return product(transposed), grad_weight, *(None,) * 8

    @staticmethod
    def tangent(ctx: Any, v_tangent: Tensor, weight_tangent: Tensor | None, *_: Any) -> Any:
        p = ops.Product(*ctx.saved_tensors, *ctx.options)
        out = product(p._replace(v=v_tangent))
        return out if weight_tangent is None else out + _along_weight(p, weight_tangent)


def _in_weight(p: ops.Product, grad: Tensor) -> Tensor:
    """The gradient in the weight, with g upstream and R and M as above, in sorted places.

    mean: (v - M v) R g.  ratio: -R v R g.  transposed: R v (g - M g).  residual: (v - M v) (g - M g).
    """
    s = _Sorted(p)
    v, g = s.of(p.v, p.v_ordered), s.of(grad, p.out_ordered)
    by_v = s.ratio(v) if p.product in (ops.RATIO, ops.TRANSPOSED) else v - s.mean(v)
    by_g = s.ratio(g) if p.product in (ops.RATIO, ops.MEAN) else g - s.mean(g)
    return p.scale * s.placed(-by_v * by_g if p.product == ops.RATIO else by_v * by_g, p.weight_ordered)


def _along_weight(p: ops.Product, tangent: Tensor) -> Tensor:
    """The tangent along a tangent t of the weight w, in sorted places.

    mean: R (t (v - M v)).  ratio: -R v R t.  transposed: R v (t - w R t).  residual: t (v - M v) - w R (t (v - M v)).
    """
    s = _Sorted(p)
    v, t = s.of(p.v, p.v_ordered), s.of(tangent, p.weight_ordered)
    by_v = s.ratio(v) if p.product in (ops.RATIO, ops.TRANSPOSED) else v - s.mean(v)
    if p.product == ops.MEAN:
        out = s.ratio(t * by_v)
    elif p.product == ops.RATIO:
        out = -by_v * s.ratio(t)
    elif p.product == ops.TRANSPOSED:
        out = by_v * (t - s.weight * s.ratio(t))
    else:
        out = t * by_v - s.weight * s.ratio(t * by_v)
    return p.scale * s.placed(out, p.out_ordered)


class _Sorted:
    """The blocks and the weight of a product, everything in sorted places."""

    def __init__(self, p: ops.Product) -> None:
        self._p = p
        self.weight = self.of(p.weight, p.weight_ordered)

    def of(self, t: Tensor | None, ordered: bool) -> Tensor:
        """The entries of `t` in sorted places."""
        assert t is not None
        p = self._p
        return t.gather(p.dim, p.order.long()) if ordered and p.order is not None else t

    def placed(self, t: Tensor, ordered: bool) -> Tensor:
        """The inverse of `of`."""
        p = self._p
        return place(t, p.order.long(), p.dim) if ordered and p.order is not None else t

    def ratio(self, u: Tensor) -> Tensor:
        """R u = S u / S w."""
        return product(ops.Product(u, self.weight, None, self._p.blocks, ops.RATIO, self._p.dim))

    def mean(self, u: Tensor) -> Tensor:
        """M u = S (w u) / S w."""
        return product(ops.Product(u, self.weight, None, self._p.blocks, ops.MEAN, self._p.dim))


# ---- sort ----


def place(v: Tensor, order: Tensor, dim: int) -> Tensor:
    """Put element j of `v` at order[j], differentiable in v."""
    placed: Tensor = _PLACE(v, order, dim)
    return placed


class _Place(Function):
    evaluate = staticmethod(ops.place)

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor | None, ...]:
        _, order, ctx.dim = inputs
        return (order,)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.gather(ctx.dim, *ctx.saved_tensors), None, None

    @staticmethod
    def tangent(ctx: Any, v: Tensor, *_: Any) -> Any:
        (order,) = ctx.saved_tensors
        return place(v, order, ctx.dim)


class _Sort(Function):
    @staticmethod
    def evaluate(x: Tensor, descending: bool, dim: int, call: Any = ops) -> Any:
        return call.sort(x, descending, True, dim)

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor | None, ...]:
        ctx.dim = inputs[2]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # no zeros as long as the order
        return (output[1],)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> Any:
        (order,) = ctx.saved_tensors
        if grad is None:
            return None, None, None
        return place(grad, order, ctx.dim), None, None

    @staticmethod
    def tangent(ctx: Any, x: Tensor, *_: Any) -> Any:
        return x.gather(ctx.dim, *ctx.saved_tensors), None


# ---- isotonic regression ----


class _Regression(Function):
    @staticmethod
    def evaluate(x: Tensor, weight: Tensor | None, increasing: bool, dim: int, call: Any = ops) -> Any:
        v, _, blocks = call.isotonic(*ops.Regression(dim, x, b_scale=0.0, weight=weight, increasing=increasing))
        return v, blocks

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor | None, ...]:
        x, weight, _, ctx.dim = inputs
        v, blocks = output
        ctx.mark_non_differentiable(blocks)
        return blocks, *((x, weight, v) if weight is not None else (None, None, None))

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        blocks, x, weight, v = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            by_x = ops.Product(grad, weight, None, blocks, ops.TRANSPOSED, ctx.dim)
            return product(by_x, ctx.call), None, None, None
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
    def evaluate(x: Tensor, w: Tensor | None, scale: float, kl: bool, dim: int, call: Any = ops) -> Any:
        s, order = call.sort(x, scale > 0, False, dim)
        r = ops.Regression(dim, s, scale, w, order=order, result=ops.PRIMAL)
        if kl:
            r = r._replace(divergence=ops.KL, b_logarithm=True, result=ops.EXP_PRIMAL)
        y, _, blocks = call.isotonic(*r)
        return y, order, blocks

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor | None, ...]:
        _, _, ctx.scale, kl, ctx.dim = inputs
        y, order, blocks = output
        ctx.mark_non_differentiable(order, blocks)
        ctx.set_materialize_grads(False)  # no zeros as long as the order
        return y if kl else None, order, blocks

    # The Jacobian in x is symmetric. Saved tensors are unpacked once, as checkpointing allows no more.
    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        if grad is None:
            return (None,) * 5
        weight, order, blocks = ctx.saved_tensors
        in_x = ops.Product(grad, weight, order, blocks, ops.RESIDUAL, ctx.dim, True, True, True, ctx.scale)
        in_w = ops.Product(grad, None, order, blocks, ops.MEAN, ctx.dim, v_ordered=True)
        needs_x, needs_w, *_others = ctx.needs_input_grad
        return product(in_x, ctx.call) if needs_x else None, product(in_w) if needs_w else None, None, None, None

    @staticmethod
    def tangent(ctx: Any, x: Tensor | None, w: Tensor | None, *_: Any) -> Any:
        weight, order, blocks = ctx.saved_tensors
        out = None
        if x is not None:
            out = product(ops.Product(x, weight, order, blocks, ops.RESIDUAL, ctx.dim, True, True, True, ctx.scale))
        if w is not None:
            by_w = product(ops.Product(w, None, order, blocks, ops.MEAN, ctx.dim, out_ordered=True))
            out = by_w if out is None else out + by_w
        return out, None, None


# ---- soft sort ----


class _SoftSort(Function):
    @staticmethod
    def evaluate(x: Tensor, z: Tensor | None, scale: float, sign: float, kl: bool, dim: int, call: Any = ops) -> Any:
        s, order = call.sort(x, sign > 0, False, dim)
        r = ops.Regression(dim, z, scale, s, sign, result=ops.PRIMAL, scale=sign)
        if kl:
            r = r._replace(divergence=ops.KL, wants_share=True)
        y, share, blocks = call.isotonic(*r)
        return y, share, order, blocks

    @staticmethod
    def keep(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> tuple[Tensor | None, ...]:
        _, _, _, ctx.sign, kl, ctx.dim = inputs
        _, share, order, blocks = output
        ctx.mark_non_differentiable(order, blocks, *(() if kl or share is None else (share,)))
        ctx.set_materialize_grads(False)
        return share if kl else None, order, blocks

    # Twice sign, once inside and once outside, is 1 in y; it remains in the share.
    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, share_grad: Tensor | None, *_: Any) -> Any:
        share, order, blocks = ctx.saved_tensors
        grad_x = None
        if grad is not None:
            p = ops.Product(grad, share, order, blocks, ops.TRANSPOSED, ctx.dim, out_ordered=True)
            grad_x = product(p, ctx.call)
        if share is not None and share_grad is not None:
            p = ops.Product(share_grad, share, order, blocks, ops.RESIDUAL, ctx.dim, out_ordered=True, scale=ctx.sign)
            along = product(p, ctx.call)
            grad_x = along if grad_x is None else grad_x + along
        return grad_x, *(None,) * 5

    @staticmethod
    def tangent(ctx: Any, x: Tensor, *_: Any) -> Any:
        share, order, blocks = ctx.saved_tensors
        p = ops.Product(x, share, order, blocks, ops.MEAN, ctx.dim, v_ordered=True)
        share_tangent = None if share is None else product(p._replace(product=ops.RESIDUAL, scale=ctx.sign))
        return product(p), share_tangent, None, None


_PRODUCT = operator(_Product, "block_product")
_PLACE = operator(_Place, "place")
SORT = operator(_Sort, schema="sorted(Tensor x, bool descending, int dim) -> (Tensor, Tensor)")
REGRESSION = operator(
    _Regression, schema="regression(Tensor x, Tensor? weight, bool increasing, int dim) -> (Tensor, Tensor)"
)
SOFT_RANK = operator(
    _SoftRank, schema="soft_rank(Tensor x, Tensor? w, float scale, bool kl, int dim) -> (Tensor, Tensor, Tensor)"
)
SOFT_SORT = operator(
    _SoftSort,
    schema="soft_sort(Tensor x, Tensor? z, float scale, float sign, bool kl, int dim)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
