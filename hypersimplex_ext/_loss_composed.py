"""The HyperSimplex loss composed of the projection, in differentiable operations: what the kernels do not serve.

A loss per element, gradients in anything but the logits, function transforms, devices without kernels; and the loss
with thresholds that are given.
"""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _loss_ops, _shards
from ._arguments import FRACTION, NONE, SQUARED, SUM, TARGETS, VALUE, Arguments, Statistics
from ._autograd import project, tracing
from ._shards import Shards


class Batch(NamedTuple):
    """Logits as [n, C] and the targets that go with them."""

    x: Tensor  # [n, C], computed in float32 at least
    dense: Tensor | None  # [n, C], 0 where ignored
    labels: Tensor | None  # [n], 0 where ignored
    valid: Tensor  # bool [n, C] beside dense targets, [n, 1] beside class indices
    keep: float  # target = keep * label + off
    off: float


def rows(t: Tensor) -> Tensor:
    """[N, C, d...] or [N] as [n, C], in float32 at least."""
    t = t.unsqueeze(1) if t.ndim == 1 else t.movedim(1, -1)
    t = t.reshape(math.prod(t.shape[:-1]), t.shape[-1])  # flatten has no batching rule for batched gradients
    return t.to(torch.promote_types(t.dtype, torch.float32))


def unflattened(t: Tensor, x: Tensor) -> Tensor:
    """Back from [n, C] to the shape of `x`."""
    return t.squeeze(1) if x.ndim == 1 else t.reshape(x.shape[0], *x.shape[2:], t.shape[1]).movedim(-1, 1)


def batch_of(x: Tensor, arguments: Arguments) -> Batch:
    target, smoothing = arguments.target, arguments.label_smoothing
    logits = rows(x)
    keep, off = 1 - smoothing, smoothing / max(logits.shape[1], 2)
    if target.shape == x.shape:
        valid = rows(target) != arguments.ignore_index
        dense = torch.where(valid, rows(target), 0.0)
        label = _first(dense, (dense < 0) | (dense > 1))
        if label is not None:
            raise ValueError(f"target must lie in [0, 1], got {label:g}")
        return Batch(logits, dense, None, valid, keep, off)
    index = target.flatten()
    valid = index != arguments.ignore_index
    outside = _first(index, valid & ((index < 0) | (index >= logits.shape[1])))
    if outside is not None:
        raise IndexError(f"Target {outside} is out of bounds.")
    return Batch(logits, None, torch.where(valid, index, 0), valid.unsqueeze(1), keep, off)


def _first(values: Tensor, chosen: Tensor) -> Any:
    """The first of the chosen numbers, if any, on the CPU; elsewhere, and in a batch of vmap, nobody can tell."""
    if values.device.type != "cpu" or tracing():
        return None
    try:
        found = values.detach()[chosen]
        return found[0].item() if found.numel() else None
    except RuntimeError:  # of vmap, where a number of entries may depend on no data
        return None


def _masses(
    batch: Batch, arguments: Arguments, wide: torch.dtype, shards: Shards | None
) -> tuple[Tensor | None, float]:
    """Masses of the classes, as numbers [C] or one number."""
    classes = batch.x.shape[1]
    if arguments.mass_kind == VALUE:
        return arguments.k_values, arguments.k
    taking_part = batch.valid.sum(0, dtype=wide)
    if shards is not None:
        taking_part = shards.add(taking_part)
    if arguments.mass_kind == FRACTION:
        return whole_part(arguments.k, taking_part).expand(classes), 0.0
    if batch.dense is not None:
        positives = batch.dense.sum(0, dtype=wide)
    else:
        assert batch.labels is not None
        positives = torch.zeros(classes, dtype=wide, device=batch.x.device)
        positives = positives.scatter_add(0, batch.labels, batch.valid.squeeze(1).to(wide))
    if shards is not None:
        positives = shards.add(positives)
    return (batch.keep * positives + batch.off * taking_part).clamp(0).minimum(taking_part), 0.0


def whole_part(fraction: float, numbers: Tensor) -> Tensor:
    """The whole part of a fraction as it is written: .29 of 100 is 29, though .29 * 100 = 28.999999999999996."""
    return (fraction * numbers * (1 + 2 * sys.float_info.epsilon)).floor()


def residual(p: Tensor, batch: Batch) -> Tensor:
    """The residual p - target, 0 where ignored."""
    valid = batch.valid.to(p.dtype)
    if batch.dense is not None:
        return p - (batch.keep * batch.dense + batch.off * valid)
    assert batch.labels is not None
    return (p - batch.off * valid).scatter_add(1, batch.labels.unsqueeze(1), -batch.keep * valid)


def composed(batch: Batch, x: Tensor, arguments: Arguments, shards: Shards | None = None) -> tuple[Tensor, Statistics]:
    logits = torch.where(batch.valid, batch.x, -math.inf)
    wide = torch.float64 if arguments.tau_values is None else arguments.tau_values.dtype
    k_values, k = _masses(batch, arguments, wide, shards)
    if arguments.mass_kind == TARGETS and batch.dense is not None:
        assert k_values is not None
        unknown = torch.where(k_values.isnan(), math.nan, 0.0).to(logits.dtype)
        logits, k_values = logits + unknown, k_values.nan_to_num()
    masses_and_temperatures = k_values, k, arguments.tau_values, arguments.tau
    if shards is None:
        p, state = project(logits, None, *masses_and_temperatures, 0)
    else:
        p, state = _shards.project(shards, logits, *masses_and_temperatures)
    r = residual(p, batch)
    terms = r * r if arguments.kind == SQUARED else fenchel_young(logits, p, r, state, arguments)
    value = reduce(terms, batch.valid, x, arguments, shards)

    def statistics() -> Tensor:
        active, taking_part = ((p > 0) & (p < 1)).sum(0), batch.valid.sum(0).expand(p.shape[1])
        return _loss_ops.state_of(state, active, taking_part)

    return value, statistics


def fenchel_young(x: Tensor, p: Tensor, r: Tensor, state: Tensor, arguments: Arguments) -> Tensor:
    """(z - t)^2 / 2 - (z - p)^2 / 2 = r (u - (p + t) / 2) + lambda r,  u = z - lambda: no cancellation at large z.

    Any lambda does. Where an entry is active it is the threshold, as then u = p there and the gradient through p is
    exactly 0. Elsewhere it is 0: the middle of a wide gap would be far from all logits.
    """
    tau = arguments.tau if arguments.tau_values is None else arguments.tau_values.to(x.dtype)
    level = torch.where(((p > 0) & (p < 1)).any(0), state, 0.0).to(x.dtype)  # p and d of the state
    return _margin_loss(((_without_infinite(x) - level[0]) - level[1]) / tau, p, r) + level.sum(0) / tau * r


def _without_infinite(x: Tensor) -> Tensor:
    """These logits, of which infinite ones have no gradient."""
    return torch.where(x.isinf(), x.detach(), x)


def _margin_loss(u: Tensor, p: Tensor, r: Tensor) -> Tensor:
    """(u - t)^2 / 2 - (u - p)^2 / 2 = r (u - (p + t) / 2), which is 0 where p = t."""
    u = torch.where((r == 0) & u.isinf(), 0.0, u)
    return r * (u - p + r / 2)


def reduce(terms: Tensor, taking_part: Tensor, x: Tensor, arguments: Arguments, shards: Shards | None = None) -> Tensor:
    """The result from the terms [n, C], weighted where the bool `taking_part`, [n, C] or [n, 1], and 0 elsewhere."""
    importance = taking_part.to(terms.dtype)
    if arguments.sample_weight is not None:
        s = arguments.sample_weight.to(terms.dtype).reshape(-1, 1)
        importance = torch.where(taking_part, s, 0.0)
        terms = terms * importance
    if arguments.weight is not None:
        terms = terms * arguments.weight.to(terms.dtype)
    if arguments.reduction == NONE:
        return unflattened(terms, x).to(x.dtype)
    total = terms.sum(dtype=terms.dtype)
    if shards is not None:
        total = shards.total(total)
    if arguments.reduction == SUM:
        return total.to(x.dtype)
    shares = importance.sum(0)
    if shards is not None:
        shares = shards.add(shares)
    shares = shares.expand(terms.shape[1])
    if arguments.weight is not None:
        shares = shares * arguments.weight.to(terms.dtype)
    return (total / shares.sum()).to(x.dtype)


# ---- with thresholds that are given ----


def loss_at(threshold: Tensor, known: Tensor | bool, x: Tensor, arguments: Arguments) -> Tensor:
    """The loss of every sample on its own, with p = clip(u, 0, 1) and u = (x - threshold) / tau: `k` plays no part.

    Fenchel-Young: phi(u) - t u + t^2 / 2 with phi(u) = 0 | u^2 / 2 | u - 1/2 for u <= 0 | in [0, 1] | >= 1, of which
    the least sum over all thresholds is the loss of the batch for k = "targets".

    Args:
        threshold: [C], in the units of the logits.
        known: bool [C], or True; the other classes take no part.
        x: The logits.
        arguments: All the rest.
    """
    batch = batch_of(x, arguments)
    tau = arguments.tau if arguments.tau_values is None else arguments.tau_values
    logits = torch.where(batch.valid, _without_infinite(batch.x), 0.0)
    u = ((logits - threshold) / tau).to(torch.promote_types(logits.dtype, threshold.dtype))
    p = u.clamp(0, 1)
    r = residual(p, batch)
    terms = r * r if arguments.kind == SQUARED else _margin_loss(u, p, r)
    taking_part = batch.valid & known
    return reduce(torch.where(taking_part, terms, 0.0), taking_part, x, arguments)
