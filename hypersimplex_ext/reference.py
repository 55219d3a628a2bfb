"""The projection, the loss, and isotonic regression with what rests on it, in plain PyTorch, written for reading.

Every test compares with these functions, and tensors on a device without a kernel take this route. The equations are
those of C. Gomez, P. Wang, L. Tang, "Differentiable Zero-One Loss via Hypersimplex Projections", PAKDD 2026
(arXiv 2602.23336), sections 4.3 to 4.6. For a vector x of n logits, a temperature tau and a mass k,

    y = argmin ||y - x / tau||^2  over  { y in [0, 1]^n : sum y = k },      y_i = clip((x_i - t) / tau, 0, 1),

with t the threshold at which the entries sum to k. A = { i : 0 < y_i < 1 } is the active set.

`k` and `tau` are numbers, or tensors of one number per vector: the shape of `x` without dimension `dim`. Computed in
float64 (float32 on a device that lacks it). An entry that is -inf takes no part.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

LEAST_TEMPERATURE = 2.0**-1022  # the smallest normal number; a threshold is resolved to 2^-1074, an ulp of it
_HALVINGS = 64


def project_sort_pav(x: Tensor, k: float | Tensor, tau: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    """Project by sorting and isotonic regression, as in the paper (Eq. 4.4).

    With s = sort(x / tau) in descending order and w = (1, ..., 1, 0, ..., 0) holding k ones, v is the non-increasing
    isotonic regression of s - w, and y = s - v is put back in the order of x. A fractional k ends the ones with its
    fraction. Finite entries only; one vector at a time, in Python.

    Returns:
        y, float64, in the shape of `x`.
    """
    rows = x.double().movedim(dim, -1)
    n = rows.shape[-1]
    masses, taus = (torch.as_tensor(v, dtype=torch.float64).expand(rows.shape[:-1]).reshape(-1) for v in (k, tau))
    out = torch.empty(rows.shape, dtype=torch.float64)
    for row, mass, temperature, y in zip(rows.reshape(-1, n), masses, taus, out.view(-1, n), strict=True):
        ordered, order = row.sort(descending=True)
        middle = ordered[
            max(math.ceil(float(mass)) - 1, 0)
        ]  # y is shift invariant; near the threshold x - middle is exact
        s = (ordered - middle) / temperature
        w = (mass - torch.arange(n)).clamp(0, 1)
        v = isotonic_regression(s - w, increasing=False)
        y[order] = w + ((s - w) - v)  # s - v; where nothing is pooled this is w, however large s is
    return out.movedim(-1, dim)


def project_bisection(x: Tensor, k: float | Tensor, tau: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    """Project by bisection on the threshold; any number of vectors at once, special values included.

    Returns:
        y in the dtype and shape of `x`.
    """
    return evaluate(x, threshold(x, k, tau, dim), tau, dim)


def threshold(x: Tensor, k: float | Tensor, tau: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    """Find the threshold t at which sum_i clip((x_i - t) / tau, 0, 1) = k.

    Let x_(j) be the j-th largest entry and K = ceil(k). K - 1 entries cannot hold the mass, so x_(K) lies above t. If
    it is active, t lies in (x_(K) - tau, x_(K)) and is found there by bisection, then exactly from the active set. If
    it is one, k = K and nothing is active: any t in [x_(K+1), x_(K) - tau] does, and the middle is taken.

    Returns:
        The state [2, *shape of x without dim], two rows p and d. t = p + d, kept apart so that x - p is exact near the
        threshold however large x is. p is not finite where no threshold describes y: nan if the vector holds a nan
        or its k or tau is out of range; +inf if y = d where x = +inf and 0 elsewhere; -inf if y = 1 where x > -inf.
    """
    z = _wide(x)
    n = z.shape[dim]
    mass, width = per_vector(k, z, dim), per_vector(tau, z, dim)

    rank = (mass.nan_to_num().ceil() - 1).clamp(0, max(n - 1, 0)).long()
    ordered = z.sort(dim, descending=True).values
    pivot = ordered.gather(dim, rank)
    following = ordered.gather(dim, (rank + 1).clamp(max=n - 1))
    offset = (z - pivot) / width  # [..., n, ...]; 0 at the K-th largest

    low, high = torch.full_like(pivot, -1.0), torch.zeros_like(pivot)  # invariant: the sum is >= k at low, < k at high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = (offset - middle).clamp(0, 1).sum(dim, keepdim=True) >= mass
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    u = offset - low
    active = (u > 0) & (u < 1)
    ones = (u >= 1).sum(dim, keepdim=True)
    among = active.sum(dim, keepdim=True).clamp(min=1)
    exact = ((ones - mass) + torch.where(active, offset, 0.0).sum(dim, keepdim=True)) / among
    d = offset_of_gap(mass, rank, pivot, following, width, width * exact)
    return with_special_rows(pivot, d, z, mass, width, dim)


def offset_of_gap(
    mass: Tensor, rank: Tensor, pivot: Tensor, following: Tensor, width: Tensor, offset: Tensor
) -> Tensor:
    """Give t relative to the K-th largest entry, `pivot`: `offset`, or the middle of the gap where none is active."""
    gap = (mass == rank + 1) & (pivot - following >= width)
    middle = (0.5 * following - 0.5 * pivot) - 0.5 * width  # halves, as pivot - following may overflow
    return torch.where(gap, middle.clamp(min=-torch.finfo(middle.dtype).max), offset)


def with_special_rows(p: Tensor, d: Tensor, z: Tensor, mass: Tensor, width: Tensor, dim: int) -> Tensor:
    """Make the state of thresholds p + d: vectors of z that no threshold describes get a mark instead.

    Numbers per vector have one entry along `dim`.
    """
    infinite = (z == math.inf).sum(dim, keepdim=True)
    present = (z != -math.inf).sum(dim, keepdim=True)
    p, d = _special(p, d, mass <= infinite, math.inf, torch.nan_to_num(mass / infinite))
    p, d = _special(p, d, (mass > infinite) & (mass >= present), -math.inf, 0.0)
    invalid = ~((mass >= 0) & (mass <= z.shape[dim]) & is_temperature(width))
    p, d = _special(p, d, invalid | z.isnan().any(dim, keepdim=True), math.nan, math.nan)
    return torch.stack((p.squeeze(dim), d.squeeze(dim)))


def is_temperature(tau: Tensor) -> Tensor:
    """Whether these are positive normal numbers of the type they are kept in."""
    return (tau >= torch.finfo(tau.dtype).tiny) & (tau < math.inf)


def _special(p: Tensor, d: Tensor, where: Tensor, code: float, value: float | Tensor) -> tuple[Tensor, Tensor]:
    """Mark the vectors chosen by `where`."""
    return torch.where(where, code, p), torch.where(where, value, d)


def evaluate(x: Tensor, state: Tensor, tau: float | Tensor, dim: int = -1) -> Tensor:
    """Evaluate y = clip((x - t) / tau, 0, 1) from the state of `threshold`, in the dtype of `x`."""
    z = _wide(x)
    p, d = state.unsqueeze(dim if dim < 0 else dim + 1)
    y = (((z - p) - d) / per_vector(tau, z, dim)).clamp(0, 1)
    y = torch.where(p == math.inf, torch.where(z == math.inf, d, 0.0), y)
    y = torch.where(p == -math.inf, (z > -math.inf).to(z.dtype), y)
    y = torch.where(z == -math.inf, 0.0, y)
    return torch.where(p.isnan(), math.nan, y).to(x.dtype)


def active(x: Tensor, state: Tensor, tau: float | Tensor, dim: int = -1) -> Tensor:
    """The active set A as a bool tensor in the shape of `x`; a kink (y exactly 0 or 1) is not active."""
    z = _wide(x)
    p, d = state.unsqueeze(dim if dim < 0 else dim + 1)
    u = (z - p) - d
    inside: Tensor = (u > 0) & (u < per_vector(tau, z, dim)) & p.isfinite()
    return inside


def jvp(x: Tensor, v: Tensor, state: Tensor, tau: float | Tensor = 1.0, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Multiply by the Jacobian dy/dx = J / tau, J = diag(1_A) - 1_A 1_A^T / |A|, which is symmetric.

    Returns:
        J v / tau in the dtype of `x`, and the row sums [2, *shape of x without dim] that the derivatives in k and tau
        are made of: mean_A(v), and -(1 / tau) sum_A (v - mean_A(v)) y. All zero where A is empty.
    """
    inside = active(x, state, tau, dim)
    v = torch.where(inside, v.to(state.dtype), 0.0)
    width = per_vector(tau, v, dim)
    mean = v.sum(dim, keepdim=True) / inside.sum(dim, keepdim=True).clamp(min=1)
    out = torch.where(inside, v - mean, 0.0) / width
    y = torch.where(inside, evaluate(x.to(state.dtype), state, tau, dim), 0.0)
    sums = torch.stack((mean.squeeze(dim), -(out * y).sum(dim)))
    invalid = state[0].isnan()
    out = torch.where(invalid.unsqueeze(dim), math.nan, out)
    return out.to(x.dtype), torch.where(invalid, math.nan, sums)


def loss(
    x: Tensor,
    target: Tensor,
    k: float | Tensor,
    tau: float | Tensor = 1.0,
    *,
    kind: str = "squared",
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient, one projection per class over the batch, every step written out.

    With z = x / tau, p the projection of each column of z, r = p - target, w the class and s the sample weights,

        squared:        l = (p - t)^2                        dl/dx = (2 / tau) w 1_A (s r - mean_A(s r))
        Fenchel-Young:  l = (z - t)^2 / 2 - (z - p)^2 / 2    dl/dx = (1 / tau) w (s r + 1_A lambda (s - mean_A s))

    where lambda = threshold / tau. For equal sample weights the second gradient is (p - t) / tau.

    Args:
        x: Finite logits [n, C].
        target: Dense targets [n, C] in [0, 1].
        k: Mass of each column, a number or [C].
        tau: Temperature, a number or [C].
        kind: "squared" or "fenchel_young".
        weight: Class weights [C].
        sample_weight: Sample weights [n].

    Returns:
        The weighted terms w_c s_i l_ic and the gradient of their sum in `x`, both [n, C] in float64.
    """
    x, t = x.double(), target.double()
    s = x.new_ones(len(x), 1) if sample_weight is None else sample_weight.double().unsqueeze(1)
    w = x.new_ones(x.shape[1]) if weight is None else weight.double()
    state = threshold(x, k, tau, dim=0)
    p, inside = evaluate(x, state, tau, dim=0), active(x, state, tau, dim=0)
    size = inside.sum(0).clamp(min=1)
    r = p - t

    def centred(v: Tensor) -> Tensor:
        return torch.where(inside, v - torch.where(inside, v, 0.0).sum(0) / size, 0.0)

    if kind == "squared":
        return w * s * r**2, 2 * w * centred(s * r) / tau
    z, level = x / tau, torch.where(state[0].isfinite(), state.sum(0) / tau, 0.0)
    terms = r * ((z - level) - (p + t) / 2) + level * r
    return w * s * terms, w * (s * r + level * centred(s.expand_as(x))) / tau


# ---- isotonic regression, and the permutahedron of Blondel et al., arXiv 2002.08871 ----


def isotonic_regression(y: Tensor, weight: Tensor | None = None, *, dim: int = -1, increasing: bool = True) -> Tensor:
    """Minimise sum_i w_i (y_i - v_i)^2 over monotone v by pooling adjacent violators.

    Returns:
        v, float64, differentiable in `y` and `weight`. A nan or an infinity makes its vector nan.
    """
    y = _wide(y).movedim(dim, -1)
    w = torch.ones_like(y) if weight is None else _wide(weight).movedim(dim, -1)
    sign = -1 if increasing else 1
    starts = pool_adjacent_violators(sign * w * y, w)
    return (block_sum(w * y, starts) / block_sum(w, starts)).movedim(-1, dim)


def soft_rank(x: Tensor, regularization: str = "l2", strength: float = 1.0, dim: int = -1) -> Tensor:
    """Project x / strength onto the permutahedron of the ranks w = (n, ..., 1): the largest entry has rank n.

    With s the sorted x / strength, y = s - v put back in the order of x, v the non-increasing regression of s - w in
    least squares; for "kl", y = exp(s - v) with v = log sum_B exp(s) - log sum_B w on each block B.
    """
    s, order = _wide(x).movedim(dim, -1).sort(dim=-1, descending=True, stable=True)
    w = torch.arange(s.shape[-1], 0, -1, dtype=s.dtype, device=s.device).expand_as(s)
    kl = regularization == "kl"
    y, _ = project_sorted(s, _inverse(strength), w.log() if kl else w, kl)
    return torch.empty_like(y).scatter(-1, order, y.exp() if kl else y).movedim(-1, dim)


def soft_sort(x: Tensor, regularization: str = "l2", strength: float = 1.0, dim: int = -1) -> Tensor:
    """Project (n, ..., 1) / strength onto the permutahedron of -x, and negate: soft values in ascending order."""
    s = (-_wide(x).movedim(dim, -1)).sort(dim=-1, descending=True, stable=True).values
    ramp = torch.arange(s.shape[-1], 0, -1, dtype=s.dtype, device=s.device).expand_as(s)
    return -project_sorted(ramp, _inverse(strength), s, regularization == "kl")[0].movedim(-1, dim)


def _inverse(strength: float) -> float:
    """1 / strength, finite."""
    return min(1 / strength, sys.float_info.max)


def project_permutahedron(z: Tensor, w: Tensor, dim: int = -1) -> Tensor:
    """Project z onto the convex hull of the permutations of w, both [..., n, ...]: y = s - v put back in order."""
    s, order = _wide(z).movedim(dim, -1).sort(dim=-1, descending=True, stable=True)
    y, _ = project_sorted(s, 1.0, _wide(w).movedim(dim, -1).sort(dim=-1, descending=True, stable=True).values)
    return torch.empty_like(y).scatter(-1, order, y).movedim(-1, dim)


def project_sorted(z: Tensor, scale: float, b: Tensor, kl: bool = False) -> tuple[Tensor, Tensor]:
    """Compute y = a - v for a = scale * z and b, both not increasing along the last dimension, and the blocks' starts.

    v does not increase and is mean_B(a - b) on each block B or, with `kl`, log sum_B exp(a) - log sum_B exp(b). Where a
    and v are large, y is the small difference of large numbers. But it depends on differences within a block alone, and
    no block reaches across a gap in a that is wider than all of b (and 2 log n, with `kl`): such gaps are narrowed
    before neighbours are pooled.
    """
    with torch.no_grad():
        n = z.shape[-1]
        widest = 2 * (b[..., :1] - b[..., -1:] + (2 * math.log(max(n, 1)) if kl else 0))
        gaps = (scale * -z.diff(dim=-1)).minimum(widest)
        narrowed = -torch.nn.functional.pad(gaps, (1, 0)).cumsum(-1)
        finite = z.isfinite().all(-1, keepdim=True)
        amount = torch.where(finite, narrowed if kl else narrowed - b, math.nan)
        starts = pool_adjacent_violators(amount, b if kl else torch.ones_like(b), logarithms=kl)
    if n == 0:
        return z * b, starts
    first = torch.where(starts, torch.arange(n, device=z.device), 0).cummax(-1).values
    a, of_b = scale * (z - z.gather(-1, first)), b.gather(-1, first)
    if kl:
        return of_b + (a - block_logsumexp(a, starts) + block_logsumexp(b - of_b, starts)), starts
    size = block_sum(torch.ones_like(a), starts)
    return of_b + (a - block_sum(a, starts) / size + block_sum(b - of_b, starts) / size), starts


def pool_adjacent_violators(amount: Tensor, weight: Tensor, logarithms: bool = False) -> Tensor:
    """Pool neighbours until sum_B amount / sum_B weight does not increase from block to block along the last dimension.

    With `logarithms`, both are given as logarithms. One vector at a time, in Python; strict violators are pooled.

    Returns:
        Whether a block starts at an element: bool, in the shape of `amount`. False throughout where an amount or a
        weight is not finite.
    """
    starts = torch.zeros(amount.shape, dtype=torch.bool)
    n = amount.shape[-1]
    rows = zip(amount.detach().reshape(-1, n), weight.detach().reshape(-1, n), starts.view(-1, n), strict=True)
    for amounts, weights, start in rows:
        if amounts.isfinite().all() and weights.isfinite().all():
            start[_pool(amounts.tolist(), weights.tolist(), logarithms)] = True
    return starts.to(amount.device)


def _pool(amounts: list[float], weights: list[float], logarithms: bool) -> list[int]:
    """First elements of the blocks."""

    def add(p: float, q: float) -> float:
        return max(p, q) + math.log1p(math.exp(-abs(p - q))) if logarithms else p + q

    def level(block: tuple[int, float, float]) -> float:
        return block[1] - block[2] if logarithms else block[1] / block[2]

    blocks: list[tuple[int, float, float]] = []
    for i, (amount, weight) in enumerate(zip(amounts, weights, strict=True)):
        block = (i, amount, weight)
        while blocks and level(blocks[-1]) < level(block):  # invariant: the levels of finished blocks do not increase
            before = blocks.pop()
            block = (before[0], add(before[1], block[1]), add(before[2], block[2]))
        blocks.append(block)
    return [first for first, _, _ in blocks]


def block_sum(v: Tensor, starts: Tensor) -> Tensor:
    """Sum of an element's block, for every element; nan where no block starts at the first element."""
    index = starts.cumsum(-1).clamp(min=1) - 1
    sums = torch.zeros_like(v).scatter_add(-1, index, v).gather(-1, index)
    return torch.where(starts[..., :1], sums, math.nan)


def block_logsumexp(v: Tensor, starts: Tensor) -> Tensor:
    """Compute log sum_B exp(v) of an element's block, for every element."""
    top = _block_max(v, starts)
    return block_sum(torch.exp(v - top), starts).log() + top


def block_softmax(v: Tensor, starts: Tensor) -> Tensor:
    """Compute exp(v) / sum_B exp(v), for every element."""
    above = torch.exp(v - _block_max(v, starts))
    return above / block_sum(above, starts)


def _block_max(v: Tensor, starts: Tensor) -> Tensor:
    index = starts.cumsum(-1).clamp(min=1) - 1
    return torch.full_like(v, -math.inf).scatter_reduce(-1, index, v.detach(), "amax").gather(-1, index)


def wide_dtype(device: torch.device) -> torch.dtype:
    """The type that numbers per vector are kept in."""
    return torch.float32 if device.type == "mps" else torch.float64


def _wide(x: Tensor) -> Tensor:
    return x.to(wide_dtype(x.device))


def per_vector(value: float | Tensor, like: Tensor, dim: int) -> Tensor:
    """Make a number per vector, in the shape of `like` with one entry along `dim`."""
    if isinstance(value, Tensor):
        return value.to(like.dtype).unsqueeze(dim)
    return torch.full_like(like.narrow(dim, 0, 1), value)
