"""The loss in which sample i stands s_i times, class by class, at the size of a training set.

The threshold T solves sum_i s_i clip((x_i - T) / tau, 0, 1) = k. Sums are NumPy's, on one thread, block after block:
they do not depend on the number of threads. `hypersimplex_ext/_weighted.py` has the same with derivatives of any order,
for which it sorts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ._arrays import Array, blocks, memory

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
    total = sum(float(s[rows].sum()) for rows in blocks(s))
    rounding = np.finfo(np.float64).eps * (len(x) + 1) * total
    if any(np.isnan(x[rows]).any() for rows in blocks(x)):
        return _extreme(x, math.nan)
    if k <= rounding:
        return _extreme(x, math.inf)
    if k >= total - rounding:
        return _extreme(x, -math.inf)
    first, low, high = 0.0, math.inf, -math.inf
    for rows in blocks(x):
        weighed = s[rows] > 0
        taking_part = x[rows] if weighed.all() else x[rows][weighed]
        low, high = min(low, taking_part.min(initial=math.inf)), max(high, taking_part.max(initial=-math.inf))
        first += weighted_sum(s[rows], x[rows])
    low, high = float(low) - tau, float(high)
    t = _clip((first - tau * k) / total, low, high)  # the root, were all entries active
    for _ in range(_MOST_STEPS):
        mass = among = 0.0
        for rows in blocks(x):
            u = _positions(x[rows], t, tau)
            among += weighted_sum(s[rows], ((u > 0) & (u < 1)).astype(np.float64))
            mass += weighted_sum(s[rows], np.clip(u, 0, 1, out=u))
        excess, slope = mass - k, among / tau
        if abs(excess) <= rounding:
            break
        low, high = (t, high) if excess > 0 else (low, t)
        step = t + excess / slope if slope > 0 else math.inf
        following = step if low < step < high else (low + high) / 2
        if following in (low, high, t):
            break
        t = following
    p, active = memory(x, np.dtype(np.float64)), np.empty(len(x), bool)
    edge = among = 0.0  # how far from 0 or 1 the active entries are, and what they weigh
    for rows in blocks(x):
        u = _positions(x[rows], t, tau)
        np.logical_and((u > 0) & (u < 1), s[rows] > 0, out=active[rows])
        u.clip(0, 1, out=p[rows])
        on = s[rows] * active[rows]
        edge += weighted_sum(on, np.minimum(p[rows], 1 - p[rows]))
        among += float(on.sum())
    if edge <= rounding:  # at the edge of a gap, but for rounding; all thresholds of a gap give the same p: its middle
        active[:] = False
        ones, zeros = (p > 0.5) & (s > 0), (p <= 0.5) & (s > 0)
        if ones.any() and zeros.any():
            t = (float(x[ones].min()) - tau + float(x[zeros].max())) / 2
        return Column(t, p, active, 0.0)
    return Column(t, p, active, among)


def _positions(x: Array, t: float, tau: float) -> Array:
    """(x - t) / tau, in float64."""
    u: Array = np.subtract(x, t, dtype=np.float64)
    u /= tau
    return u


def weighted_sum(s: Array, values: Array) -> float:
    """sum_i s_i v_i, in an order that depends on nothing but the length."""
    return float(np.einsum("i,i->", s, values))


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _extreme(x: Array, threshold: float) -> Column:
    p = np.full(len(x), threshold if math.isnan(threshold) else float(threshold < 0))
    return Column(threshold, p, np.zeros(len(x), bool), 0.0)


def gradient(column: Column, t: Array, s: Array, tau: float, squared: bool, out: Array) -> None:
    """Of the loss of a column, summed."""
    mean = 0.0
    if squared and column.among > 0:
        for rows in blocks(t):
            mean += weighted_sum(s[rows] * column.active[rows], column.p[rows] - t[rows]) / column.among
    for rows in blocks(t):
        r = column.p[rows] - t[rows]
        if squared:
            r = 2 * (r - mean) * column.active[rows]
        out[rows] = s[rows] * r / tau


def diagonal(column: Column, s: Array, floor: float, b: float, out: Array) -> None:
    """Of the Hessian: b s_i (1 - s_i / sum_A s) on A, and nowhere less than floor b s_i."""
    least = 1 - floor  # of the share of a sample in the active weight, above which the floor holds
    for rows in blocks(s):
        above = least - np.minimum(s[rows] / (column.among or 1.0), least)
        out[rows] = b * s[rows] * (floor + above * column.active[rows])
