"""Sorting and isotonic regression, with gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from . import _checks, _order_autograd
from ._calls import recall
from ._eager import autocast, prepare, signature_of
from .functional import Proxy

__all__ = ["isotonic_regression", "sort"]


def sort(input: Tensor, dim: int = -1, *, descending: bool = False) -> torch.return_types.sort:
    """Sort along a dimension, stably, with gradients for the values.

    The order is that of `torch.sort`: nan is greater than every number, so nans come last in ascending and first in
    descending order; -0 and 0 are equal; equal entries keep their order, also in descending order.

    Args:
        input: Entries of any shape with at least one dimension and any strides; float16, bfloat16, float32 or float64.
        dim: The dimension to sort along.
        descending: Largest first.

    Returns:
        (values, indices), named as those of `torch.sort`, in the shape of `input`; indices are int64.

    Raises:
        TypeError: `input` is not of a floating-point dtype above.
        ValueError: `input` has no dimension.
        IndexError: `dim` is out of range.

    Equivalent to::

        values, indices = torch.sort(input, dim=dim, descending=descending, stable=True)

    Example:
        >>> sort(torch.tensor([0.3, 0.1, 0.2]), descending=True).indices
        tensor([0, 2, 1])
    """
    if isinstance(input, Proxy):
        return handle_torch_function(sort, (input,), **locals())
    signature = signature_of(input, sort, bool(descending), type(dim), dim)
    call = recall(signature)
    if call is not None:
        return torch.return_types.sort(call.directly(_order_autograd.SORT, input))
    _checks.logits(input)
    arguments = descending, _checks.dimension(dim, input.ndim)
    prepare(signature, input, *arguments)
    return torch.return_types.sort(_order_autograd.sort(input, *arguments))


def isotonic_regression(
    input: Tensor,
    weight: Tensor | None = None,
    *,
    dim: int = -1,
    increasing: bool = True,
    lower: float | None = None,
    upper: float | None = None,
) -> Tensor:
    r"""Fit a monotone sequence to each vector along a dimension by pooling adjacent violators.

    For each vector y with weights w,

    .. math:: v = \arg\min_{l \le v_1 \le \dots \le v_n \le u} \textstyle\sum_i w_i (y_i - v_i)^2

    v is constant on blocks of adjacent entries and there the weighted mean of y, clipped to [l, u]. Gradients flow to
    `input` and `weight`; where v changes its blocks, neighbours of equal value count as separate.

    Args:
        input: y, of any shape with at least one dimension and any strides; float16, bfloat16, float32 or float64. Sums
            are in float64. Under autocast, halves are taken as float32.
        weight: w, positive, a real tensor that broadcasts to the shape of `input`; None for equal weights. Floats are
            used as wide as they come, integers as float64.
        dim: The dimension of the sequence.
        increasing: Non-decreasing; else non-increasing.
        lower: l, a number, or None for none.
        upper: u, a number, or None for none.

    Returns:
        v with the shape and dtype of `input`. A nan or an infinity in `input` makes its vector nan.

    Raises:
        TypeError: `input` is not of a floating-point dtype above, `weight` is no real tensor, a bound is no number.
        ValueError: A shape does not broadcast, `lower` is greater than `upper` or one of them nan, or a weight is not
            in (0, inf). Weights on another device than the CPU are not looked into: a vector with one out of range
            becomes nan.
        IndexError: `dim` is out of range.

    Equivalent to (one vector)::

        scipy.optimize.isotonic_regression(input, weights=weight, increasing=increasing).x.clip(lower, upper)

    Example:
        >>> isotonic_regression(torch.tensor([1.0, 3.0, 2.0, 4.0]))
        tensor([1.0000, 2.5000, 2.5000, 4.0000])
    """
    if isinstance(input, Proxy):
        return handle_torch_function(isotonic_regression, (input,), **locals())
    signature = None
    if weight is None and lower is upper is None:
        signature = signature_of(input, isotonic_regression, bool(increasing), type(dim), dim)
        call = recall(signature)
        if call is not None:
            fitted: Tensor = call.directly(_order_autograd.REGRESSION, input)[0]
            return fitted
    _checks.logits(input)
    dim = _checks.dimension(dim, input.ndim)
    input = autocast(input)
    prepare(signature, input, None, increasing, dim)
    dtype = input.dtype
    if weight is not None:
        kind = _checks.tensor("weight", weight).dtype
        input = input.to(torch.promote_types(dtype, kind if kind.is_floating_point else torch.float64))
        weight = _checks.broadcast("weight", weight, input).expand(input.shape)
    low, high = _bound("lower", lower, dtype), _bound("upper", upper, dtype)
    if low is not None and high is not None and low > high:
        raise ValueError(f"lower must not be greater than upper, got {lower} and {upper}")
    v = _order_autograd.regression(input, weight, increasing, dim).to(dtype)
    return v if low is None and high is None else v.clamp(low, high)


def _bound(name: str, bound: float | None, dtype: torch.dtype) -> float | None:
    """The bound as `dtype` has it: a finite one stays finite."""
    if bound is None:
        return None
    bound = _checks.number(name, bound)
    if bound != bound:
        raise ValueError(f"{name} must be a number or None, got nan")
    largest = torch.finfo(dtype).max
    return max(-largest, min(bound, largest)) if abs(bound) < math.inf else bound
