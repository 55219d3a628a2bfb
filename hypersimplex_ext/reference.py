"""The projection and the loss in plain PyTorch, written for reading.

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

import torch
from torch import Tensor

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
        v = torch.tensor(_non_increasing((s - w).tolist()), dtype=torch.float64)
        y[order] = w + ((s - w) - v)  # s - v; where nothing is pooled this is w, however large s is
    return out.movedim(-1, dim)


def _non_increasing(values: list[float]) -> list[float]:
    """Pool adjacent violators: the non-increasing sequence nearest to `values` in least squares."""
    means: list[float] = []
    sizes: list[int] = []
    for value in values:
        mean, size = value, 1
        while means and means[-1] < mean:  # invariant: the means of finished blocks do not increase
            before, count = means.pop(), sizes.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        means.append(mean)
        sizes.append(size)
    return [mean for mean, size in zip(means, sizes, strict=True) for _ in range(size)]


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
    mass, width = _per_vector(k, z, dim), _per_vector(tau, z, dim)
    infinite = (z == math.inf).sum(dim, keepdim=True)
    present = (z != -math.inf).sum(dim, keepdim=True)

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
    gap = (mass == rank + 1) & (pivot - following >= width)
    d = torch.where(gap, -0.5 * (pivot - following + width), width * exact)

    p, d = _special(pivot, d, mass <= infinite, math.inf, torch.nan_to_num(mass / infinite))
    p, d = _special(p, d, (mass > infinite) & (mass >= present), -math.inf, 0.0)
    invalid = ~((mass >= 0) & (mass <= n) & (width > 0) & (width < math.inf))
    p, d = _special(p, d, invalid | z.isnan().any(dim, keepdim=True), math.nan, math.nan)
    return torch.stack((p.squeeze(dim), d.squeeze(dim)))


def _special(p: Tensor, d: Tensor, where: Tensor, code: float, value: float | Tensor) -> tuple[Tensor, Tensor]:
    """Mark the vectors chosen by `where`."""
    return torch.where(where, code, p), torch.where(where, value, d)


def evaluate(x: Tensor, state: Tensor, tau: float | Tensor, dim: int = -1) -> Tensor:
    """Evaluate y = clip((x - t) / tau, 0, 1) from the state of `threshold`, in the dtype of `x`."""
    z = _wide(x)
    p, d = state.unsqueeze(dim if dim < 0 else dim + 1)
    y = (((z - p) - d) / _per_vector(tau, z, dim)).clamp(0, 1)
    y = torch.where(p == math.inf, torch.where(z == math.inf, d, 0.0), y)
    y = torch.where(p == -math.inf, (z > -math.inf).to(z.dtype), y)
    y = torch.where(z == -math.inf, 0.0, y)
    return torch.where(p.isnan(), math.nan, y).to(x.dtype)


def active(x: Tensor, state: Tensor, tau: float | Tensor, dim: int = -1) -> Tensor:
    """The active set A as a bool tensor in the shape of `x`; a kink (y exactly 0 or 1) is not active."""
    z = _wide(x)
    p, d = state.unsqueeze(dim if dim < 0 else dim + 1)
    u = (z - p) - d
    inside: Tensor = (u > 0) & (u < _per_vector(tau, z, dim)) & p.isfinite()
    return inside


def jvp(x: Tensor, v: Tensor, state: Tensor, tau: float | Tensor = 1.0, dim: int = -1) -> tuple[Tensor, Tensor]:
    """Multiply by the Jacobian dy/dx = J / tau, J = diag(1_A) - 1_A 1_A^T / |A|, which is symmetric.

    Returns:
        J v / tau in the dtype of `x`, and the row sums [2, *shape of x without dim] that the derivatives in k and tau
        are made of: mean_A(v), and -(1 / tau) sum_A (v - mean_A(v)) y. All zero where A is empty.
    """
    inside = active(x, state, tau, dim)
    v = torch.where(inside, v.to(state.dtype), 0.0)
    width = _per_vector(tau, v, dim)
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


def wide_dtype(device: torch.device) -> torch.dtype:
    """The type that numbers per vector are kept in."""
    return torch.float32 if device.type == "mps" else torch.float64


def _wide(x: Tensor) -> Tensor:
    return x.to(wide_dtype(x.device))


def _per_vector(value: float | Tensor, like: Tensor, dim: int) -> Tensor:
    """A number per vector, in the shape of `like` with one entry along `dim`."""
    if isinstance(value, Tensor):
        return value.to(like.dtype).unsqueeze(dim)
    return torch.full_like(like.narrow(dim, 0, 1), value)
