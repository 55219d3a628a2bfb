"""Soft sorting and ranking, and the projection onto any permutahedron, by sort and isotonic regression.

M. Blondel, O. Teboul, Q. Berthet, J. Djolonga, "Fast Differentiable Sorting and Ranking", ICML 2020, arXiv 2002.08871.
The projection onto the hypersimplex is the case w = (1, ..., 1, 0, ..., 0) of `project_permutahedron`.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from . import _checks, _layout, _order_autograd, reference
from ._autograd import steady
from ._calls import recall
from ._eager import autocast, prepare, signature_of
from .functional import Proxy

__all__ = ["project_permutahedron", "soft_rank", "soft_sort"]

REGULARIZATIONS = {"l2": 0, "kl": 1}


def project_permutahedron(input: Tensor, w: Tensor, tau: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    r"""Project `input / tau` onto the permutahedron of w, the convex hull of all permutations of w, along a dimension.

    .. math:: y = \arg\min \lVert y - x / \tau \rVert^2 \;\text{ over }\; \operatorname{conv}\{ w_\sigma \}

    With s the entries of x / tau in descending order and w likewise, y is s - v put back in place, v the non-increasing
    isotonic regression of s - w (Prop. 3 of the paper). As tau goes to 0, y goes to w in the order of x; as tau grows,
    to the mean of w everywhere. Gradients flow to `input`, `w` and `tau`.

    Args:
        input: x, of any shape with at least one dimension and any strides; float16, bfloat16, float32 or float64. Under
            autocast, halves are taken as float32.
        w: Real numbers [n], or a tensor that broadcasts to the shape of `input` with n entries along `dim`; in any
            order.
        tau: Temperature in the units of `input`: a number in [2^-1022, inf), or a tensor that broadcasts to the shape
            of `input` without dimension `dim`, where a number out of range makes its vector nan. So do, in a float64
            vector, entries above 2^500 beside such a tau below 2^-512, and a tau w beyond the range.
        dim: The dimension to project along.

    Returns:
        y with the shape and dtype of `input`; its sum is that of w. A nan or an infinity makes its vector nan.

    Raises:
        TypeError: `input` is not of a floating-point dtype above, `w` is no real tensor, `tau` is a bool or no number.
        ValueError: `tau` is out of range, or a shape does not fit.
        IndexError: `dim` is out of range.

    Equivalent to (one vector)::

        s, order = torch.sort(input / tau, descending=True)
        v = isotonic_regression(s - w.sort(descending=True).values, increasing=False)
        y = torch.empty_like(s).scatter(0, order, s - v)

    Example:
        >>> project_permutahedron(torch.tensor([0.1, 1.6, 1.0]), torch.tensor([1.0, 0.0, 0.0]))
        tensor([0.0000, 0.8000, 0.2000])
    """
    if isinstance(input, Proxy):
        return handle_torch_function(project_permutahedron, (input,), **locals())
    _checks.logits(input)
    dim = _checks.dimension(dim, input.ndim)
    input = autocast(input)
    tau = steady(tau, input)
    if isinstance(tau, Tensor):
        shape = _layout.rest(input.shape, dim)
        tau = _checks.per_vector("tau", tau, input, shape, f"the shape of input without dimension {dim}")
        tau = torch.where((tau >= reference.LEAST_TEMPERATURE) & (tau < math.inf), tau, math.nan).unsqueeze(dim)
        x, tau = _balanced(input.to(tau.dtype), tau)
        return _scaled(x, _descending(w, input, dim).to(tau.dtype), tau, dim).to(input.dtype)
    return _order_autograd.soft_rank(input, _descending(w, input, dim), _inverse(_checks.temperature(tau)), False, dim)


def _balanced(x: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """`x` and `tau` over what brings tau into [2^-512, 2^512], which is 1 for most."""
    beyond = (tau / tau.clamp(2.0**-512, 2.0**512)).detach()
    return x / beyond, tau / beyond


def _scaled(x: Tensor, w: Tensor, tau: Tensor, dim: int) -> Tensor:
    """Project x / tau onto the permutahedron of w, which descends: as x onto that of tau w, over tau.

    So no digit of x is lost: differences between entries come before the quotient, as they do for a number.
    """
    return _order_autograd.soft_rank(x, w * tau, 1.0, False, dim) / tau


def _inverse(strength: float) -> float:
    """1 / strength, finite."""
    return min(1 / strength, sys.float_info.max)


def _descending(w: Tensor, input: Tensor, dim: int) -> Tensor:
    """`w` in descending order along `dim`, in the shape of `input`; sorted before it is expanded."""
    if not isinstance(w, Tensor):
        raise TypeError(f"w must be a Tensor, got {type(w).__name__}")
    if w.ndim == 1:
        w = w.reshape(-1, *(1,) * (input.ndim - 1 - dim))
    if w.ndim < input.ndim - dim or w.shape[dim - input.ndim] != input.shape[dim]:
        raise ValueError(f"w must have {input.shape[dim]} entries along dimension {dim}, got shape {list(w.shape)}")
    w = _checks.broadcast("w", w, input)
    return _order_autograd.sort(w, True, dim - input.ndim + w.ndim)[0].expand(input.shape)


def soft_rank(
    values: Tensor,
    regularization: str = "l2",
    regularization_strength: float = 1.0,
    dim: int = -1,
    *,
    descending: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Differentiable ranks along a dimension, from 1 for the smallest entry to n for the largest.

    The vector x / epsilon is projected onto the permutahedron of (n, ..., 1): with s its entries in descending order
    and w = (n, ..., 1),

    .. math:: \text{l2:}\; y = s - v, \quad v_B = \operatorname{mean}_B(s - w)
              \qquad \text{kl:}\; y = e^{s - v}, \quad v_B = \log \textstyle\sum_B e^s - \log \sum_B w

    put back in place, where v does not increase from one block B of the isotonic regression to the next (Eq. 6 of the
    paper). As epsilon goes to 0, y goes to the ranks; as it grows, ranks draw together. Ties share their ranks.

    Args:
        values: x, of any shape with at least one dimension and any strides; float16, bfloat16, float32 or float64.
            Under autocast, halves are taken as float32.
        regularization: "l2" (Euclidean, piecewise linear) or "kl" (entropic, smooth within a block).
        regularization_strength: epsilon, a number in (0, inf), in the units of `values`; below 2^-1024 as that.
        dim: The dimension to rank along.
        descending: Rank 1 for the largest entry instead: the ranks of -x.
        mask: Bool tensor that broadcasts to the shape of `values`; entries where it is False take no part: of m that
            do, the ranks are 1 to m, those of the others 0 without gradient. Computed in float64.

    Returns:
        Ranks with the shape and dtype of `values`; their sum is that of 1 to n. A nan or an infinity that takes part
        makes its vector nan.

    Raises:
        TypeError: `values` is not of a floating-point dtype above, the strength is no number, or `mask` is not bool.
        ValueError: The strength or the regularization is not among those allowed, or a shape does not broadcast.
        IndexError: `dim` is out of range.

    Equivalent to (l2)::

        n = values.shape[dim]
        project_permutahedron(values, torch.arange(1.0, n + 1), regularization_strength, dim)

    Example:
        >>> soft_rank(torch.tensor([5.0, 1.0, 2.0]))
        tensor([3., 1., 2.])
        >>> soft_rank(torch.tensor([5.0, 1.0, 2.0]), regularization_strength=4.0)
        tensor([2.5833, 1.5833, 1.8333])
    """
    if isinstance(values, Proxy):
        return handle_torch_function(soft_rank, (values,), **locals())
    signature = _soft_signature(soft_rank, values, regularization, regularization_strength, dim, descending, mask)
    call = recall(signature)
    if call is not None:
        y: Tensor = call.directly(_order_autograd.SOFT_RANK, values)[0]
        return y
    values, strength, kl, dim = _soft(values, regularization, regularization_strength, dim)
    if mask is None and not isinstance(strength, Tensor):
        arguments = None, -_inverse(strength) if descending else _inverse(strength), kl, dim
        prepare(signature, values, *arguments)
        return _order_autograd.soft_rank(values, *arguments)
    x = values.to(reference.wide_dtype(values.device))
    x = -x if descending else x
    present = None if mask is None else _checks.mask(mask, values)
    number, place = _numbered(present, x, dim)
    w = (number - place).clamp(min=1).expand(x.shape)
    by_w = isinstance(strength, Tensor) and not kl
    if by_w:
        x, strength = _balanced(x, strength)
    elif isinstance(strength, Tensor):
        x, strength = x / strength.clamp(min=_LEAST_DIVISOR), 1.0
    elif strength > 1:  # in another unit, beside which the largest number is far
        fraction, exponent = math.frexp(strength)
        x, strength = x * math.ldexp(1.0, -exponent), fraction
    if present is not None:
        last = torch.finfo(x.dtype).min  # behind everything else, and never pooled with it
        x = torch.where(present, torch.where(x == last, last * (1 - torch.finfo(x.dtype).eps), x), last)
    ranks = _scaled(x, w, strength, dim) if by_w else _order_autograd.soft_rank(x, w, _inverse(strength), kl, dim)
    return (ranks if present is None else torch.where(present, ranks, 0.0)).to(values.dtype)


def soft_sort(
    values: Tensor,
    regularization: str = "l2",
    regularization_strength: float = 1.0,
    dim: int = -1,
    *,
    descending: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Differentiable sort along a dimension, in ascending order.

    The vector w = (n, ..., 1) / epsilon is projected onto the permutahedron of -x: with s the entries of -x in
    descending order, the result is v - w, where

    .. math:: \text{l2:}\; v_B = \operatorname{mean}_B(w - s)
              \qquad \text{kl:}\; v_B = \log \textstyle\sum_B e^w - \log \sum_B e^s

    and v does not increase from one block B of the isotonic regression to the next (Eq. 5 of the paper). As epsilon
    goes to 0, the result goes to the sorted entries; as it grows, they draw together.

    Args:
        values: x, of any shape with at least one dimension and any strides; float16, bfloat16, float32 or float64.
            Under autocast, halves are taken as float32.
        regularization: "l2" (Euclidean, piecewise linear) or "kl" (entropic, smooth within a block).
        regularization_strength: epsilon, a number in (0, inf), in one over the units of `values`; below
            2^-1024 as that.
        dim: The dimension to sort along.
        descending: In descending order instead, from the permutahedron of x.
        mask: Bool tensor that broadcasts to the shape of `values`; entries where it is False take no part: the first m
            results are those of the m entries that do, the others 0 without gradient. Computed in float64.

    Returns:
        Values with the shape and dtype of `values`; their sum is the same. A nan or an infinity that takes part makes
        its vector nan.

    Raises:
        TypeError: `values` is not of a floating-point dtype above, the strength is no number, or `mask` is not bool.
        ValueError: The strength or the regularization is not among those allowed, or a shape does not broadcast.
        IndexError: `dim` is out of range.

    Equivalent to (one vector, l2)::

        w = torch.arange(n, 0.0, -1)
        -project_permutahedron(w, -values, tau=regularization_strength)

    Example:
        >>> soft_sort(torch.tensor([5.0, 1.0, 2.0]), regularization_strength=0.1)
        tensor([1., 2., 5.])
        >>> soft_sort(torch.tensor([5.0, 1.0, 2.0]), regularization_strength=1.0)
        tensor([1.6667, 2.6667, 3.6667])
    """
    if isinstance(values, Proxy):
        return handle_torch_function(soft_sort, (values,), **locals())
    signature = _soft_signature(soft_sort, values, regularization, regularization_strength, dim, descending, mask)
    call = recall(signature)
    if call is not None:
        found: Tensor = call.directly(_order_autograd.SOFT_SORT, values)[0]
        return found
    values, strength, kl, dim = _soft(values, regularization, regularization_strength, dim)
    sign = 1.0 if descending else -1.0
    if values.numel() == 0 or (mask is None and not isinstance(strength, Tensor)):
        arguments = None, _inverse(strength), sign, kl, dim
        prepare(signature, values, *arguments)
        return _order_autograd.soft_sort(values, *arguments)
    present = torch.ones_like(values, dtype=torch.bool) if mask is None else _checks.mask(mask, values)
    x = values.to(reference.wide_dtype(values.device))
    number, place = _numbered(present, x, dim)
    z, scale = number - place, 1.0
    if isinstance(strength, Tensor):
        z = z / strength.clamp(min=_LEAST_DIVISOR)
    elif strength > 1:
        z = z / strength
    else:
        scale = _inverse(strength)
    with torch.no_grad():  # what takes no part comes last, and far from the others in what is projected
        last = torch.where(present, x, sign * math.inf)
        last = last.amin(dim, keepdim=True) if descending else last.amax(dim, keepdim=True)
        last = torch.nextafter(last, torch.full_like(last, -sign * math.inf)).nan_to_num()
        z = torch.where(place < number, z, torch.finfo(x.dtype).min).expand(x.shape)
    y = _order_autograd.soft_sort(torch.where(present, x, last), z, scale, sign, kl, dim)
    return torch.where(place < number, y, 0.0).to(values.dtype)


# Of a strength in a tensor. What float32 can tell apart is far apart when divided by this, and in the range of float64.
_LEAST_DIVISOR = 2.0**-880


def _numbered(present: Tensor | None, x: Tensor, dim: int) -> tuple[Tensor | int, Tensor]:
    """How many entries of each vector take part, all for None, and the places 0, ..., n - 1 in the dtype of `x`."""
    place = torch.arange(x.shape[dim], dtype=x.dtype, device=x.device).view(-1, *(1,) * (x.ndim - 1 - dim))
    return x.shape[dim] if present is None else present.sum(dim, keepdim=True, dtype=x.dtype), place


def _soft_signature(
    function: Any, values: Tensor, regularization: str, strength: float, dim: int, descending: bool, mask: Tensor | None
) -> tuple[Any, ...] | None:
    if mask is not None:
        return None
    return signature_of(values, function, type(strength), type(dim), regularization, strength, dim, bool(descending))


def _soft(values: Tensor, regularization: str, strength: float, dim: int) -> tuple[Tensor, Any, bool, int]:
    """What soft_rank and soft_sort check alike: values, strength (see `steady`), whether entropic, dimension."""
    _checks.logits(values, "values")
    kl = _checks.choice("regularization", regularization, REGULARIZATIONS) == 1
    strength = _checks.positive("regularization_strength", strength, "a real number")
    return autocast(values), steady(strength, values), kl, _checks.dimension(dim, values.ndim)
