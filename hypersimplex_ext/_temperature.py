"""A temperature for given logits: the smallest at which enough of them have a gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from . import _checks, _layout, reference
from ._arguments import per_vector
from .functional import Proxy, soft_binary_argmax

__all__ = ["suggest_tau"]

ROUNDING = 1e-12  # of a share times a number: .07 of 100 entries are 7
ROUNDINGS = 4
LARGEST_NUDGE = 1024.0


def suggest_tau(logits: Tensor, k: float | Tensor, active: float = 0.5, dim: int = -1) -> Tensor:
    r"""The smallest temperature at which a share of the entries of each vector has a gradient.

    An entry of y = `soft_binary_argmax(logits, k, tau, dim)` has a gradient where 0 < y < 1. For each vector x of n
    logits along `dim`,

    .. math:: \tau^* = \inf\, \{ \tau > 0 : \#\{ i : 0 < y_i < 1 \} \ge \text{active} \cdot n \}

    As tau grows no entry loses its gradient, so every larger tau serves too. With x in descending order, m the least
    number of entries that is enough, and for i = 0, 1, ... S_i the sum of x_i to x_{i+m-1},

    .. math:: \tau^* = \min_{i\,:\; 0 < k - i < m} \max \left(
              \frac{S_i - m\, x_{i+m-1}}{k - i},\; \frac{m\, x_i - S_i}{m - (k - i)} \right)

    An entry alone between 0 and 1 has no gradient, as k fixes its value: m is at least 2. What is returned is larger by
    as much as rounding asks for: with it `soft_binary_argmax` of these logits has gradients for the share. (In half
    precision an entry that has one may still be rounded to 1.)

    Args:
        logits: Of any shape with at least one dimension and any strides; float16, bfloat16, float32 or float64.
        k: As in :func:`hypersimplex_ext.soft_binary_argmax`: a number in [0, n] or a tensor that broadcasts to the
            shape of `logits` without dimension `dim`. For a loss with k = "targets", the number of positives of each
            class.
        active: The share, in (0, 1].
        dim: The dimension along which vectors lie: 0 for the loss's classes.

    Returns:
        tau with the shape of `logits` without `dim`, float64 for float64 logits and float32 otherwise, without a
        gradient. It is

        - inf where no temperature is enough: k = 0, k = n, n < 2, or tau would be larger than the dtype holds;
        - the smallest normal number of its dtype where every temperature is enough, as with equal entries around the
          k-th largest;
        - nan for a vector with a nan.

        Infinite entries never have a gradient and are not counted in n: those of -inf take no part, each of +inf takes
        1 of k.

    Raises:
        TypeError: `logits` is not of a floating-point dtype above, `k` or `active` is a bool or no number, or a tensor
            is sparse or nested.
        ValueError: `k` or `active` is out of range, or `k` does not broadcast. A tensor `k` on another device than the
            CPU is not looked into: vectors with a value out of range give nan.
        IndexError: `dim` is out of range.

    The result is checked by projections, for which a device is waited for: for a first batch, not for every step.

    Example:
        >>> x = torch.tensor([3.0, 1.0, 0.0, -4.0])
        >>> suggest_tau(x, k=2)
        tensor(1.0000)
        >>> suggest_tau(x, k=2, active=1)
        tensor(8.0000)
    """
    if isinstance(logits, Proxy):
        return handle_torch_function(suggest_tau, (logits,), **locals())
    _checks.logits(logits, "logits")
    dim = _checks.dimension(dim, logits.ndim)
    active = _checks.number("active", active)
    if not 0 < active <= 1:
        raise ValueError(f"active must lie in (0, 1], got {active}")
    k_values, number = per_vector("k", k, logits, dim, logits.shape[dim])
    wide = reference.wide_dtype(logits.device)
    shape = _layout.rest(logits.shape, dim)
    mass = torch.full(shape, number, dtype=wide, device=logits.device) if k_values is None else k_values
    with torch.no_grad():
        least, enough = _least_and_enough(logits.detach().movedim(dim, -1).to(wide), mass, active)
        return _nudged(logits.detach(), k, dim, least, enough)


def _least_and_enough(x: Tensor, k: Tensor, active: float) -> tuple[Tensor, Tensor]:
    """The infimum for vectors [..., n] of mass k [...], and how many entries are enough."""
    n = x.shape[-1]
    finite = x.isfinite()
    taking_part = finite.sum(-1)
    known = ~x.isnan().any(-1) & (k >= 0) & (k <= n)
    k = k - (x == torch.inf).sum(-1)
    enough = (active * taking_part.to(k.dtype) * (1 - ROUNDING)).ceil()
    enough = enough.clamp(min=2)
    least = torch.full_like(k, torch.inf)
    if n:
        least = _least_over_windows(torch.where(finite, x, -torch.inf), taking_part, k, enough)
    return torch.where(known, least, torch.nan), enough


def _least_over_windows(x: Tensor, taking_part: Tensor, k: Tensor, enough: Tensor) -> Tensor:
    """The minimum over windows of `enough` entries; infinite where there is no window."""
    n = x.shape[-1]
    first = torch.arange(n, device=x.device)
    last = first + (enough.unsqueeze(-1).long() - 1)
    fits, last = last < taking_part.unsqueeze(-1), last.clamp(max=n - 1)
    x = x.sort(-1, descending=True).values
    # Every window holds the entry at k. Sums from there outwards have terms of one sign, and outliers beyond a window
    # have no part in its sum.
    middle = x.gather(-1, k.floor().clamp(0, n - 1).long().unsqueeze(-1))
    x = torch.where(first < taking_part.unsqueeze(-1), x - middle, 0)
    above = x.clamp(min=0).flip(-1).cumsum(-1).flip(-1)
    below = x.clamp(max=0).cumsum(-1)
    total = above + below.gather(-1, last)
    m, ones = enough.unsqueeze(-1), k.unsqueeze(-1) - first
    tau = torch.maximum((total - m * x.gather(-1, last)) / ones, (m * x - total) / (m - ones))
    return torch.where(fits & (ones > 0) & (ones < m), tau, torch.inf).amin(-1)


def _nudged(logits: Tensor, k: float | Tensor, dim: int, least: Tensor, enough: Tensor) -> Tensor:
    """The infimum, which is itself not enough, enlarged until the projection has enough active entries.

    They are to be some roundings away from 0 and 1, so that they are active however the projection is computed, but not
    further than where they end: at k / n, about which nothing is asked where it lies closer.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)  # in which halves are computed and told active
    logits = logits.to(dtype)
    tau = base = least.to(dtype).clamp(min=torch.finfo(dtype).tiny)
    nudge = torch.finfo(dtype).eps
    margin = ROUNDINGS * nudge
    while True:
        reachable = tau.isfinite()
        y = soft_binary_argmax(logits, k, torch.where(reachable, tau, 1), dim)
        middle = y.mean(dim, keepdim=True)
        inside = (y > (middle / 2).clamp(max=margin)) & (1 - y > ((1 - middle) / 2).clamp(max=margin))
        short = reachable & (inside.sum(dim) < enough)
        if not short.any():
            return tau
        tau = torch.where(short, base * (1 + nudge) if nudge < LARGEST_NUDGE else torch.inf, tau)
        nudge *= 2
