"""Who is measured: this package, and everything that a user would pick instead.

Each contender prepares a case: it takes the input and returns functions without arguments that do the work. A contender
whose package is not installed is absent, and one that does not apply to a case (a dtype or layout it lacks) sits it
out. "the paper's code" is what was published with the paper, built as it builds itself; "sort + PAV" is its algorithm
(sort, pool adjacent violators, one row after the other) on top of numpy's sort and scipy's or scikit-learn's compiled
isotonic regression, and "sort + PAV, a thread per row" is its way to do that on a GPU.
"""

from __future__ import annotations

import functools
import importlib.metadata
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench.speed import order_peers, thread_per_row
from bench.speed.cases import DENSE, FENCHEL_YOUNG, HALF_MASS, Case
from bench.speed.contender import (
    ALONG_ROWS,
    COPY,
    CROSS_ENTROPY,
    OURS,
    Contender,
    Prepare,
    Prepared,
    differentiable,
    float32_rows,
    never,
)
from hypersimplex_ext import hypersimplex_loss, soft_binary_argmax

THREAD_PER_ROW = "sort + PAV, a thread per row"


def _torch_loss(function: Callable[[Tensor, Tensor], Tensor]) -> Prepare:
    """Prepare a differentiable torch function of logits and class indices."""

    def prepare(case: Case, x: Tensor, v: Tensor, classes: Tensor) -> Prepared:
        leaf = x.detach().requires_grad_()
        return Prepared(lambda: function(x, classes), lambda: torch.autograd.grad(function(leaf, classes), leaf)[0])

    return prepare


def target_of(case: Case, v: Tensor, classes: Tensor) -> Tensor:
    """Return what a loss is to be near: class indices, labels of one class, or probabilities made of random numbers."""
    if case.variant == DENSE:
        return v.softmax(1)
    return classes[:, None].to(v.dtype) if case.vectors == 1 else classes


def _ours(case: Case, x: Tensor, v: Tensor, classes: Tensor) -> Prepared:
    k: Any = 0.5 if case.variant == HALF_MASS else "targets"
    kind = "fenchel_young" if case.variant == FENCHEL_YOUNG else "squared"
    function = _torch_loss(lambda x, target: hypersimplex_loss(x, target, k, kind=kind))
    return function(case, x, v, target_of(case, v, classes))


def _cross_entropy(case: Case, x: Tensor, v: Tensor, classes: Tensor) -> Prepared:
    """Of one class, that of its labels."""
    one = case.vectors == 1
    function = _torch_loss(functional.binary_cross_entropy_with_logits if one else functional.cross_entropy)
    return function(case, x, v, target_of(case, v, classes))


# ---- the projection in plain torch ----


def _project_bisection(z: Tensor, k: float | Tensor, dim: int, halvings: int = 30) -> Tensor:
    with torch.no_grad():
        low, high = z.amin(dim, keepdim=True) - 1, z.amax(dim, keepdim=True)
        for _ in range(halvings):
            middle = (low + high) / 2
            above = (z - middle).clamp(0, 1).sum(dim, keepdim=True) > k
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return _refine(z, low, k, dim)


def _project_sort(z: Tensor, k: float, dim: int) -> Tensor:
    """Evaluate the sum at every kink (an entry, or an entry less 1) by prefix sums; it is linear between them."""
    with torch.no_grad():
        s = z.movedim(dim, -1).sort(dim=-1, descending=True).values
        n = s.shape[-1]
        prefix = functional.pad(s.cumsum(-1, dtype=torch.float64), (1, 0))
        rank = torch.arange(n, device=s.device).expand_as(s)
        ascending = s.flip(-1).contiguous()
        ones = n - torch.searchsorted(ascending, s + 1)  # at the kink s_i: entries of at least s_i + 1
        among = n - torch.searchsorted(ascending, s - 1, right=True)  # at the kink s_i - 1: entries above it
        kinks = torch.cat((s, s - 1), -1)
        sums = torch.cat(
            (
                ones + prefix.gather(-1, rank) - prefix.gather(-1, ones) - s * (rank - ones),
                rank + prefix.gather(-1, among) - prefix.gather(-1, rank) - (s - 1) * (among - rank),
            ),
            -1,
        )
        low = torch.where(sums >= k, kinks, -torch.inf).amax(-1, keepdim=True)
        high = torch.where(sums < k, kinks, torch.inf).amin(-1, keepdim=True)
    return _refine(z, ((low + high) / 2).movedim(-1, dim), k, dim)


def _refine(z: Tensor, level: Tensor, k: float | Tensor, dim: int) -> Tensor:
    """From a level with the right active set to the exact one, differentiably."""
    active = ((z > level) & (z < level + 1)).sum(dim, keepdim=True)
    level = level + ((z - level).clamp(0, 1).sum(dim, keepdim=True) - k) / active.clamp(min=1)
    return (z - level).clamp(0, 1)


def _wide(x: Tensor) -> Tensor:
    """In a type that sums of many entries can be formed in."""
    return x.float() if x.dtype.itemsize == 2 else x


def _plain_loss(x: Tensor, classes: Tensor) -> Tensor:
    target = functional.one_hot(classes, x.shape[1]).to(_wide(x).dtype)
    return functional.mse_loss(_project_bisection(_wide(x), target.sum(0), 0), target).to(x.dtype)


# ---- sort + PAV, one row after the other ----


class _SortPav(torch.autograd.Function):
    """Eq. 4.4 of the paper: y = s - isotonic(s - w) in sorted order, w being k ones and n - k zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, tau: float, isotonic: Callable[[Any], Any]) -> Tensor:
        z = x.detach().numpy() / tau
        y = np.empty_like(z)
        w = np.zeros(z.shape[1], z.dtype)
        w[:k] = 1
        for row, out in zip(z, y, strict=True):
            order = np.argsort(-row)
            s = row[order]
            out[order] = s - isotonic(s - w)
        result = torch.from_numpy(y).clamp_(0, 1)
        ctx.save_for_backward(result)
        ctx.tau = tau
        return result

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None, None]:
        (y,) = ctx.saved_tensors
        active = (y > 0) & (y < 1)
        mean = (v * active).sum(1, keepdim=True) / active.sum(1, keepdim=True).clamp(min=1)
        return (v - mean) * active / ctx.tau, None, None, None


def _pav(x: Tensor, case: Case, isotonic: Callable[[Any], Any]) -> Tensor:
    result: Tensor = _SortPav.apply(x, case.k, case.tau, isotonic)  # type: ignore[no-untyped-call]
    return result


def _scipy_pav(case: Case, x: Tensor) -> Tensor:
    from scipy.optimize import isotonic_regression  # type: ignore[import-untyped]

    return _pav(x, case, lambda row: isotonic_regression(row, increasing=False).x)


def _sklearn_pav(case: Case, x: Tensor) -> Tensor:
    from sklearn.isotonic import isotonic_regression  # type: ignore[import-untyped]

    return _pav(x, case, lambda row: isotonic_regression(row, increasing=False))


# ---- the same with a thread per row ----

_LONGEST_SERIAL = 1 << 20  # entries of a row, a second or so


def _thread_per_row(case: Case, x: Tensor) -> Tensor:
    return thread_per_row.project(x, case.k, case.tau, case.dim, thread_per_row.on_gpu())


def _thread_per_row_loss(x: Tensor, classes: Tensor) -> Tensor:
    target = functional.one_hot(classes, x.shape[1]).to(_wide(x).dtype)
    p = thread_per_row.project(_wide(x), target.sum(0), 1.0, 0, thread_per_row.on_gpu())
    return functional.mse_loss(p, target).to(x.dtype)


def _along_rows(case: Case, x: Tensor, v: Tensor, classes: Tensor) -> Prepared:
    """Of the transposed copy, which is not part of the time."""
    prepare = differentiable(lambda case, x: soft_binary_argmax(x, case.k, case.tau, 1))
    prepared = prepare(case, x.T.contiguous(), v.T.contiguous(), classes)
    return Prepared(prepared.forward, prepared.both, lambda result: result.T)


def _topk(case: Case, x: Tensor) -> Tensor:
    """The k largest, scattered into zeros: the hard counterpart, with the same shape."""
    values, indices = x.topk(case.k, case.dim)
    return torch.zeros_like(x).scatter(case.dim, indices, values)


# ---- packages ----


def _budget_bisect(case: Case, x: Tensor) -> Tensor:
    from entmax import budget_bisect  # type: ignore[import-not-found, import-untyped, unused-ignore]

    return budget_bisect(x / case.tau, budget=case.k, dim=-1, n_iter=24)  # type: ignore[no-any-return]


def _sparsemax(case: Case, x: Tensor) -> Tensor:
    from entmax import sparsemax

    return sparsemax(x / case.tau, dim=case.dim)  # type: ignore[no-any-return]


def _paper(case: Case, x: Tensor) -> Tensor:
    from src.soft_binary_arg_max_ops import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
        soft_binary_argmax_k,
    )

    return soft_binary_argmax_k(x, case.k, case.tau)  # type: ignore[no-any-return]


def _soft_rank(case: Case, x: Tensor) -> Tensor:
    import torchsort  # type: ignore[import-not-found, import-untyped, unused-ignore]

    return torchsort.soft_rank(x, regularization_strength=case.tau)  # type: ignore[no-any-return]


@functools.cache
def _jax_functions(k: int, tau: float) -> tuple[Callable[..., Any], Callable[..., Any]]:
    import jax  # type: ignore[import-not-found, unused-ignore]
    import jax.numpy as jnp  # type: ignore[import-not-found, unused-ignore]

    with warnings.catch_warnings():  # it says at import that it is no longer developed
        warnings.simplefilter("ignore", DeprecationWarning)
        from jaxopt.projection import projection_box_section  # type: ignore[import-not-found, unused-ignore]

    def project(row: Any) -> Any:
        ones = jnp.ones_like(row)
        return projection_box_section(row / tau, (0 * ones, ones, ones, float(k)))

    rows = jax.vmap(project)
    return jax.jit(rows), jax.jit(lambda x, v: jax.vjp(rows, x)[1](v)[0])


def _jaxopt(case: Case, x: Tensor, v: Tensor, classes: Tensor) -> Prepared:
    import jax.numpy as jnp

    forward, both = _jax_functions(case.k, case.tau)
    x, v = jnp.asarray(x.numpy()), jnp.asarray(v.numpy())
    return Prepared(
        lambda: forward(x).block_until_ready(),
        lambda: both(x, v).block_until_ready(),
        lambda result: torch.from_numpy(np.array(result)),
    )


CONTENDERS: dict[str, Contender] = {
    OURS: Contender(differentiable(lambda case, x: soft_binary_argmax(x, case.k, case.tau, case.dim))),
    ALONG_ROWS: Contender(_along_rows, applies=lambda case: case.group == "columns"),
    "torch, sort": Contender(differentiable(lambda case, x: _project_sort(x / case.tau, case.k, case.dim))),
    "torch, bisection": Contender(
        differentiable(lambda case, x: _project_bisection(_wide(x) / case.tau, case.k, case.dim).to(x.dtype))
    ),
    "the paper's code": Contender(differentiable(_paper), module="src.soft_binary_arg_max_ops", applies=float32_rows),
    "sort + PAV (scipy)": Contender(differentiable(_scipy_pav), "scipy", "scipy", applies=float32_rows),
    "sort + PAV (scikit-learn)": Contender(
        differentiable(_sklearn_pav), "scikit-learn", "sklearn", applies=float32_rows
    ),
    THREAD_PER_ROW: Contender(
        differentiable(_thread_per_row), applies=lambda case: case.device == "cuda" and case.n <= _LONGEST_SERIAL
    ),
    "entmax.budget_bisect": Contender(
        differentiable(_budget_bisect), "entmax", "entmax", applies=lambda case: case.layout == "rows"
    ),
    "entmax.sparsemax": Contender(differentiable(_sparsemax), "entmax", "entmax", same=lambda case: case.k == 1),
    # XLA takes its number of threads at start-up: every core
    "jaxopt.projection_box_section": Contender(
        _jaxopt, "jaxopt", "jaxopt", applies=lambda case: float32_rows(case) and case.threads == 0
    ),
    "torchsort.soft_rank": Contender(differentiable(_soft_rank), "torchsort", "torchsort", never, float32_rows),
    "torch.softmax": Contender(differentiable(lambda case, x: x.softmax(case.dim)), same=never),
    "torch.sort": Contender(differentiable(lambda case, x: x.sort(case.dim).values), same=never),
    "torch.topk": Contender(differentiable(_topk), same=never),
    COPY: Contender(differentiable(lambda case, x: x.clone()), same=never),
}
LOSSES: dict[str, Contender] = {
    OURS: Contender(_ours),
    "torch, bisection": Contender(_torch_loss(_plain_loss)),
    CROSS_ENTROPY: Contender(_cross_entropy, same=never),
    THREAD_PER_ROW: Contender(_torch_loss(_thread_per_row_loss), applies=lambda case: case.device == "cuda"),
    "F.mse_loss (one-hot)": Contender(
        _torch_loss(lambda x, c: functional.mse_loss(x, functional.one_hot(c, x.shape[1]).to(x.dtype))), same=never
    ),
    **{name: CONTENDERS[name] for name in ("torch.softmax", "torch.sort", COPY)},
}

# operation -> who computes it
FIELDS = {"projection": CONTENDERS, "loss": LOSSES, **order_peers.FIELDS}

_ALWAYS = (OURS, "torch.softmax", COPY)
GROUPS: dict[str, tuple[str, ...]] = {
    "peers": tuple(CONTENDERS),
    "loss": (OURS, "torch, bisection", CROSS_ENTROPY, "F.mse_loss (one-hot)", COPY),
    "length": (*_ALWAYS, "torch.sort", "torch, bisection", "jaxopt.projection_box_section"),
    "inputs": _ALWAYS,
    "mass": (*_ALWAYS, "torch.topk"),
    "dtype": _ALWAYS,
    "layout": _ALWAYS,
    "threads": _ALWAYS,
    "overhead": (*_ALWAYS, "torch.sort", "torch, bisection"),
    "loss-overhead": (OURS, CROSS_ENTROPY),
    "loss-grid": (OURS, CROSS_ENTROPY),
    "columns": (OURS, ALONG_ROWS),
    "long": _ALWAYS,
    "memory": tuple(CONTENDERS),
    "order": tuple(dict.fromkeys(name for field in order_peers.FIELDS.values() for name in field)),
    "gpu-rows": (*_ALWAYS, "torch.sort", "torch, bisection", THREAD_PER_ROW),
    "gpu-loss": (*_ALWAYS, CROSS_ENTROPY, "torch.sort", "torch, bisection", THREAD_PER_ROW),
}


_LONGEST_BRIEF = 8192  # entries of a row: a thread per row takes milliseconds for it


def contenders(case: Case, brief: bool = False) -> dict[str, Contender]:
    """Return those that are present and can do a case, this package first.

    Args:
        case: what is to be measured.
        brief: of those for projections and losses on a GPU, return only what the targets name.
    """
    field = FIELDS[case.operation]
    chosen = GROUPS[case.group]
    if brief and case.group in {"gpu-rows", "gpu-loss"}:
        serial = case.operation == "projection" and case.n <= _LONGEST_BRIEF
        chosen = (OURS, COPY, CROSS_ENTROPY, *([THREAD_PER_ROW] if serial else []))
    return {name: field[name] for name in chosen if name in field and field[name].present and field[name].applies(case)}


def absent() -> list[str]:
    """Return the contenders that are not installed."""
    return sorted({name for field in FIELDS.values() for name, peer in field.items() if not peer.present})


def versions() -> dict[str, str]:
    """Return the versions of the peers' packages that are installed."""
    packages = {peer.package for peer in CONTENDERS.values() if peer.package and peer.present} | {"torch"}
    if "jaxopt" in packages:
        packages.add("jax")
    return {package: importlib.metadata.version(package) for package in sorted(packages)}
