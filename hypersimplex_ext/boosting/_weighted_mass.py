"""The loss in which sample i stands s_i times, class by class, at the size of a training set.

The threshold T solves sum_i s_i clip((x_i - T) / tau, 0, 1) = k. Sums are NumPy's, on one thread: they do not depend on
the number of threads. `hypersimplex_ext/_weighted.py` has the same with derivatives of any order, and sorts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ._arrays import Array

_MOST_STEPS = 200


class Column(NamedTuple):
    """What the projection of a class leaves."""

    threshold: float
    p: Array  # [n]
    active: Array  # bool [n]
    among: float  # the weight of what is active


def project(x: Array, s: Array, k: float, tau: float) -> Column:
    """The weighted projection of a column, in float64, by Newton's method within a bracket.

    The sum is piecewise linear and does not grow with T. A step that leaves the bracket, or finds the sum flat, bisects
    it; one after which the same entries are active has found the root.
    """
    x = x.astype(np.float64)
    total = float(s.sum())
    rounding = np.finfo(np.float64).eps * (len(x) + 1) * total
    weighed = s > 0
    if np.isnan(x).any():
        return _extreme(x, math.nan)
    if k <= rounding:
        return _extreme(x, math.inf)
    if k >= total - rounding:
        return _extreme(x, -math.inf)
    taking_part = x if weighed.all() else x[weighed]
    low, high = float(taking_part.min()) - tau, float(taking_part.max())
    t = _clip((_sum(s, x) - tau * k) / total, low, high)  # the root, were all entries active
    u, p = np.empty_like(x), np.empty_like(x)
    for _ in range(_MOST_STEPS):
        np.divide(np.subtract(x, t, out=u), tau, out=u)
        np.clip(u, 0, 1, out=p)
        excess = _sum(s, p) - k
        if abs(excess) <= rounding:
            break
        slope = _sum(s, ((u > 0) & (u < 1)).astype(np.float64)) / tau
        low, high = (t, high) if excess > 0 else (low, t)
        step = t + excess / slope if slope > 0 else math.inf
        following = step if low < step < high else (low + high) / 2
        if following in (low, high, t):
            break
        t = following
    active = (u > 0) & (u < 1) & weighed
    if _sum(s, np.where(active, np.minimum(p, 1 - p), 0.0)) <= rounding:  # at the edge of a gap, but for rounding
        active = np.zeros_like(active)
    if not active.any():  # all thresholds of a gap give the same p: its middle
        ones, zeros = (p > 0.5) & weighed, (p <= 0.5) & weighed
        if ones.any() and zeros.any():
            t = (float(x[ones].min()) - tau + float(x[zeros].max())) / 2
    return Column(t, p, active, _sum(s, active.astype(np.float64)))


def _sum(s: Array, values: Array) -> float:
    """sum_i s_i v_i, in an order that depends on nothing but the length."""
    return float(np.einsum("i,i->", s, values))


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _extreme(x: Array, threshold: float) -> Column:
    p = np.full_like(x, threshold if math.isnan(threshold) else float(threshold < 0))
    return Column(threshold, p, np.zeros(len(x), bool), 0.0)


def gradient(column: Column, t: Array, s: Array, tau: float, squared: bool) -> Array:
    """Of the loss of a column, summed."""
    r = s * (column.p - t)
    if not squared:
        out: Array = r / tau
        return out
    mean = float(r[column.active].sum()) / column.among if column.among > 0 else 0.0
    found: Array = np.where(column.active, 2 * (r - s * mean) / tau, 0.0)
    return found
