"""The loss with a weighted mass: of a batch in which sample i stands s_i times.

The projections of the kernels give every sample the same mass whatever its weight, so weights move no threshold. Here
the threshold T of a class solves sum_i s_i p_i = k with p_i = clip((x_i - T) / tau, 0, 1), and k is a sum of weights.
By its profile form the Fenchel-Young loss of k = "targets" is the least over T of sum_i s_i h((x_i - T) / tau, t_i),
with h as in `_loss_composed.loss_at`, and this T is where it is least. Plain PyTorch, on finite logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _loss, _loss_composed, _loss_ops, reference
from ._arguments import FRACTION, NONE, SQUARED, VALUE, Arguments, Statistics


def loss(input: Tensor, x: Tensor, arguments: Arguments) -> tuple[Tensor, Statistics]:
    """As `_loss.loss` for checked logits x, in the shape of `input` without a reduction."""
    weight = arguments.sample_weight
    if weight is None or x.numel() == 0:
        value, statistics = _loss.loss(x, arguments)
    else:
        value, statistics = _composed(x, weight, arguments)
    return value.reshape(input.shape) if arguments.reduction == NONE else value, statistics


def _composed(x: Tensor, weight: Tensor, arguments: Arguments) -> tuple[Tensor, Statistics]:
    batch = _loss_composed.batch_of(x, arguments)
    tau = arguments.tau if arguments.tau_values is None else arguments.tau_values
    s = torch.where(batch.valid, weight.reshape(-1, 1), 0.0).expand_as(batch.x).to(reference.wide_dtype(x.device))
    z = torch.where(s > 0, batch.x.to(s.dtype), -math.inf)
    t = threshold(z, s, _masses(batch, s, arguments), tau)
    logits = torch.where(batch.valid, batch.x, 0.0)
    p = ((logits - t) / tau).clamp(0, 1).to(logits.dtype)
    r = torch.where(batch.valid, _loss_composed.residual(p, batch), 0.0)
    level = t.detach()
    if arguments.kind == SQUARED:
        terms = r * r
    else:
        terms = _loss_composed.fenchel_young(logits, p, r, torch.stack((level, torch.zeros_like(level))), arguments)

    def statistics() -> Tensor:
        active = (p > 0) & (p < 1) & batch.valid
        return _loss_ops.state_of(level, active.sum(0), batch.valid.sum(0).expand(len(level)))

    return _loss_composed.reduce(terms, batch.valid, x, arguments), statistics


def _masses(batch: _loss_composed.Batch, s: Tensor, arguments: Arguments) -> Tensor:
    """Sums of weights: of the targets, of a fraction of all, or as given."""
    if arguments.mass_kind == VALUE:
        return torch.full_like(s[0], arguments.k) if arguments.k_values is None else arguments.k_values
    if arguments.mass_kind == FRACTION:
        return _loss_composed.whole_part(arguments.k, s.sum(0))
    return (s * -_loss_composed.residual(torch.zeros_like(s), batch)).sum(0)


def threshold(x: Tensor, s: Tensor, k: Tensor, tau: float | Tensor) -> Tensor:
    """T [C] with sum_i s_i clip((x_i - T) / tau, 0, 1) = k for every column, found as `reference.threshold` finds it.

    Let x_(j) be the first entry, from the largest down, at which the weights reach k. Those before it cannot hold the
    mass and up to it they can, so T lies in [x_(j) - tau, x_(j)). There the sum is followed from kink to kink to the
    active set, from which T and its gradient are computed. Where nothing is active, T is the middle of the gap. +inf
    where k = 0, -inf where k is the sum of all weights.

    Args:
        x: [n, C]; -inf takes no part.
        s: Weights [n, C], 0 where x is -inf.
        k: [C].
        tau: A number or [C].
    """
    total = s.sum(0)
    rounding = torch.finfo(s.dtype).eps * (len(s) + 1) * total
    with torch.no_grad():
        ordered, order = x.sort(0, descending=True)
        reached = s.gather(0, order).cumsum(0)
        place = (reached < k - rounding).sum(0, keepdim=True).clamp(max=len(x) - 1)
        pivot, held = (t.gather(0, place).squeeze(0) for t in (ordered, reached))
        following = ordered.gather(0, (place + 1).clamp(max=len(x) - 1)).squeeze(0)
        gap = (held <= k + rounding) & (pivot - following >= tau)
        u = (x - pivot) / tau
        u = u - _level(u, s, k)
        active, ones = (u > 0) & (u < 1), u >= 1
    share, excess = torch.where(active, s, 0.0), torch.where(ones, s, 0.0).sum(0) - k
    among = share.sum(0)
    t = ((share * torch.where(active, x, 0.0)).sum(0) + tau * excess) / torch.where(among > 0, among, 1.0)
    t = torch.where(gap | (among == 0), (pivot - tau + following) / 2, t)
    t = torch.where(k >= total - rounding, -math.inf, t)
    t = torch.where(k <= rounding, math.inf, t)
    return torch.where(x.isnan().any(0) | ~(k >= 0), math.nan, t)


def _level(u: Tensor, s: Tensor, k: Tensor) -> Tensor:
    """Where in [-1, 0] the sum of s_i clip(u_i - v, 0, 1) is k as v falls, for the columns of u.

    The sum is linear between kinks, where an entry becomes active (v = u_i) or one (v = u_i - 1).
    """
    kinks, order = torch.cat((u, u - 1)).clamp(-1, 0).sort(0, descending=True)
    slope = torch.cat((s, -s)).gather(0, order).cumsum(0)  # from a kink to the next: the weight of what is active
    gain = -(slope[:-1] * kinks.diff(dim=0)).cumsum(0)
    held = (s * u.clamp(0, 1)).sum(0) + torch.cat((torch.zeros_like(gain[:1]), gain))
    place = ((held < k).sum(0, keepdim=True) - 1).clamp(min=0)  # the last kink at which less than k is held
    kink, slope, held = (t.gather(0, place).squeeze(0) for t in (kinks, slope, held))
    lowest = kinks.gather(0, (place + 1).clamp(max=len(kinks) - 1)).squeeze(0)
    return (kink - torch.where(slope > 0, (k - held) / slope, 0.0)).maximum(lowest)
