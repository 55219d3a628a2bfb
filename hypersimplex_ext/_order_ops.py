"""Sort, isotonic regression and its Jacobian products as PyTorch sees them; see `_ops` for how operators are made.

Vectors lie along `dim`, which is not negative; what there is one of per vector has the other dimensions, [*rest]. The
blocks of a regression are a bit per element that says whether a block starts there, in the bytes of 32-bit words: uint8
[*rest, 4 * ceil(n / 32)]. (A size that may be 1, as that of the words, would be a special case to torch.compile.) What
is only handed on, from one operator to the next, is packed: each vector is one run of memory, whatever `dim` is.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _layout, _ops, reference
from ._backends import backend_of
from ._layout import Four, Vectors
from ._ops import DTYPES, _operator

# The enumerations of csrc/hypersimplex.h.
L2: int = 0
KL: int = 1
REGRESSION: int = 0
PRIMAL: int = 1
EXP_PRIMAL: int = 2
MEAN: int = 0
RATIO: int = 1
TRANSPOSED: int = 2
RESIDUAL: int = 3

_NOWHERE: tuple[int, Four] = (0, (0, 0, 0, 0))


def _contiguous(like: Tensor) -> Tensor:
    """An uninitialised tensor, in half the time of Tensor.new_empty."""
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _packed(like: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor in the shape of `like` in which each vector is one run."""
    strides, step = [1] * like.ndim, like.shape[dim]
    for i in reversed([i for i in range(like.ndim) if i != dim]):
        strides[i], step = step, step * like.shape[i]
    return like.new_empty_strided(like.shape, strides, dtype=dtype)


def _located(t: Tensor | None, layout: Vectors, kept: list[Tensor]) -> tuple[int, Four]:
    """Address and strides of a tensor, or of a copy that fits the layout and is put into `kept`."""
    if t is None:
        return _NOWHERE
    t, strides = layout.fitted(t)
    kept.append(t)
    return t.data_ptr(), strides


# ---- sort ----


def _sort_fake(x: Tensor, descending: bool, wide: bool, dim: int) -> tuple[Tensor, Tensor]:
    if wide:
        return _contiguous(x), torch.empty_like(x, dtype=torch.int64, memory_format=torch.contiguous_format)
    return _packed(x, dim), _packed(x, dim, torch.int32)


@_operator("sort(Tensor x, bool descending, bool wide, int dim) -> (Tensor values, Tensor order)", _sort_fake)
def sort(x: Tensor, descending: bool, wide: bool, dim: int) -> tuple[Tensor, Tensor]:
    """Each vector in order, and where in `x` each element was: int64 if `wide`, else int32 and both packed."""
    values, order = _sort_fake(x, descending, wide, dim)
    if x.numel() == 0:
        return values, order
    backend = backend_of(x.device)
    if backend is None:
        by_torch = x.sort(dim=dim, descending=descending, stable=True)
        return values.copy_(by_torch.values), order.copy_(by_torch.indices)
    x, layout = _layout.vectors(x, dim)
    kept: list[Tensor] = []
    backend.call(
        backend.kernels.sort,
        x.device,
        *(DTYPES[x.dtype], layout.shape, *_located(x, layout, kept), descending),
        *(*_located(values, layout, kept), *_located(order, layout, kept), wide),
    )
    return values, order


# ---- isotonic regression ----


class Regression(NamedTuple):
    """`IsotonicArgs` of csrc/hypersimplex.h; a missing term is the ramp n, ..., 1, or nothing where its scale is 0."""

    dim: int
    a: Tensor | None = None
    a_scale: float = 1.0
    b: Tensor | None = None
    b_scale: float = 1.0
    b_logarithm: bool = False
    weight: Tensor | None = None
    order: Tensor | None = None  # element j of the result is put at order[j]
    divergence: int = L2
    increasing: bool = False
    result: int = REGRESSION
    scale: float = 1.0
    wants_share: bool = False

    @property
    def like(self) -> Tensor:
        """The term that gives shape, dtype and device."""
        term = self.b if self.a is None else self.a
        assert term is not None
        return term


def _isotonic_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    r = Regression(*arguments)
    blocks = (*_layout.rest(r.like.shape, r.dim), 4 * ((r.like.shape[r.dim] + 31) // 32))
    share = _packed(r.like, r.dim) if r.wants_share else r.like.new_empty(0)
    return _contiguous(r.like), share, r.like.new_empty(blocks, dtype=torch.uint8)


@_operator(
    "isotonic(int dim, Tensor? a, float a_scale, Tensor? b, float b_scale, bool b_logarithm, Tensor? weight,"
    " Tensor? order, int divergence, bool increasing, int result, float scale, bool wants_share)"
    " -> (Tensor out, Tensor share, Tensor blocks)",
    _isotonic_fake,
)
def isotonic(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The result of a `Regression`; if wanted, exp(b) / sum_B exp(b) of each element, packed; and the blocks."""
    r = Regression(*arguments)
    _ops.check_values("weight", r.weight)
    out, share, blocks = outputs = _isotonic_fake(*arguments)
    if out.numel() == 0:
        return outputs
    backend = backend_of(out.device)
    if backend is None:
        _isotonic_in_torch(r, *outputs)
        return outputs
    _, layout = _layout.vectors(r.like, r.dim)
    kept: list[Tensor] = []
    backend.call(
        backend.kernels.isotonic,
        out.device,
        *(DTYPES[out.dtype], layout.shape, r.divergence, r.increasing),
        (*_located(r.a, layout, kept), r.a_scale, False),
        (*_located(r.b, layout, kept), r.b_scale, r.b_logarithm),
        *(*_located(r.weight, layout, kept), r.result, r.scale),
        *(*_located(out, layout, kept), *_located(r.order, layout, kept)),
        *(*_located(share if r.wants_share else None, layout, kept), blocks.data_ptr()),
    )
    return outputs


def _isotonic_in_torch(r: Regression, out: Tensor, share: Tensor, blocks: Tensor) -> None:
    wide = reference.wide_dtype(out.device)

    def last(t: Tensor) -> Tensor:
        return t.to(wide).movedim(r.dim, -1)

    ramp = torch.arange(out.shape[r.dim], 0, -1, dtype=wide, device=out.device).expand_as(last(out))
    a = ramp if r.a is None else last(r.a)
    b = r.b_scale * (ramp if r.b is None else last(r.b))
    if r.b_logarithm:
        b = b.log()
    if r.result != REGRESSION:
        value, starts = reference.project_sorted(a, r.a_scale, b, r.divergence == KL)
        value = value.exp() if r.result == EXP_PRIMAL else value
        if r.wants_share:
            share.copy_((b - reference.block_logsumexp(b, starts)).exp().movedim(-1, r.dim))
    else:
        w = torch.ones_like(a) if r.weight is None else last(r.weight)
        amount = w * (r.a_scale * a - b)
        starts = reference.pool_adjacent_violators(-amount if r.increasing else amount, w)
        value = reference.block_sum(amount, starts) / reference.block_sum(w, starts)
    value = (r.scale * value).movedim(-1, r.dim).to(out.dtype)
    if r.order is None:
        out.copy_(value)
    else:
        out.scatter_(r.dim, r.order.long(), value)
    blocks.copy_(_bits(starts))


def _bits(starts: Tensor) -> Tensor:
    """Bools [..., n] as the bytes of little-endian words, [..., 4 * ceil(n / 32)]."""
    padded = torch.nn.functional.pad(starts, (0, -starts.shape[-1] % 32))
    bits = padded.reshape(*starts.shape[:-1], -1, 8).int() << torch.arange(8, dtype=torch.int32, device=starts.device)
    return bits.sum(-1).to(torch.uint8)


def _starts(blocks: Tensor, n: int) -> Tensor:
    """The inverse of `_bits`."""
    bits = blocks.int().unsqueeze(-1) >> torch.arange(8, dtype=torch.int32, device=blocks.device)
    return (bits & 1).bool().flatten(-2)[..., :n]


# ---- products with its Jacobian ----


class Product(NamedTuple):
    """`BlockProductArgs` of csrc/hypersimplex.h; of what is ordered, the element in sorted place j lies at order[j]."""

    v: Tensor
    weight: Tensor | None
    order: Tensor | None
    blocks: Tensor
    product: int
    dim: int
    v_ordered: bool = False
    weight_ordered: bool = False
    out_ordered: bool = False
    scale: float = 1.0


def _block_product_fake(v: Tensor, *_arguments: object) -> Tensor:
    return _contiguous(v)


@_operator(
    "block_product(Tensor v, Tensor? weight, Tensor? order, Tensor blocks, int product, int dim, bool v_ordered,"
    " bool weight_ordered, bool out_ordered, float scale) -> Tensor",
    _block_product_fake,
)
def block_product(*arguments: Any) -> Tensor:
    """The result of a `Product`."""
    p = Product(*arguments)
    out = _block_product_fake(p.v)
    if out.numel() == 0:
        return out
    backend = backend_of(out.device)
    if backend is None:
        return _block_product_in_torch(p, out)
    v, layout = _layout.vectors(p.v, p.dim)
    kept: list[Tensor] = []
    blocks = p.blocks.contiguous()
    backend.call(
        backend.kernels.block_product,
        out.device,
        *(DTYPES[out.dtype], layout.shape, p.product),
        (*_located(v, layout, kept), p.v_ordered),
        (*_located(None if p.weight is None else p.weight.to(out.dtype), layout, kept), p.weight_ordered),
        (*_located(out, layout, kept), p.out_ordered),
        *(p.scale, *_located(p.order, layout, kept), blocks.data_ptr()),
    )
    return out


def _block_product_in_torch(p: Product, out: Tensor) -> Tensor:
    place = None if p.order is None else p.order.long().movedim(p.dim, -1)

    def sorted_places(t: Tensor, ordered: bool) -> Tensor:
        t = t.to(reference.wide_dtype(t.device)).movedim(p.dim, -1)
        return t.gather(-1, place) if ordered and place is not None else t

    v = sorted_places(p.v, p.v_ordered)
    w = torch.ones_like(v) if p.weight is None else sorted_places(p.weight, p.weight_ordered)
    starts = _starts(p.blocks, v.shape[-1])
    level = reference.block_sum(v if p.product in (RATIO, TRANSPOSED) else w * v, starts)
    level = level / reference.block_sum(w, starts)
    result = v - level if p.product == RESIDUAL else level
    if p.product in (TRANSPOSED, RESIDUAL):
        result = w * result
    if p.out_ordered and place is not None:
        result = torch.empty_like(result).scatter_(-1, place, result)
    return out.copy_(p.scale * result.movedim(-1, p.dim))


# ---- the projection onto the hypersimplex by this route, Eq. 4.4 of the paper ----


@_operator(
    "threshold_pav(Tensor x, Tensor? mask, Tensor? k_values, float k, Tensor? tau_values, float tau, int dim)"
    " -> (Tensor y, Tensor state)",
    _ops.threshold_fake,
)
def threshold_pav(
    x: Tensor, mask: Tensor | None, k_values: Tensor | None, k: float, tau_values: Tensor | None, tau: float, dim: int
) -> tuple[Tensor, Tensor]:
    """`threshold` by sorting and isotonic regression, with the same state."""
    _ops.check_values("k", k_values, x.shape[dim])
    _ops.check_temperatures(tau_values)
    y, state = _ops.threshold_fake(x, mask, k_values, k, tau_values, tau, dim)
    n = x.shape[dim]
    if x.numel() == 0:
        state[0], state[1] = math.inf, 0.0
        return y, state
    if mask is not None:
        x = x.masked_fill(~mask, -math.inf)
    values, order = sort(x, True, False, dim)
    z = values.to(state.dtype)
    temperature = tau if tau_values is None else tau_values
    mass, width = (reference.per_vector(v, z, dim) for v in (k if k_values is None else k_values, temperature))
    rank = (mass.nan_to_num().ceil() - 1).clamp(0, n - 1).long()
    pivot, following = z.gather(dim, rank), z.gather(dim, (rank + 1).clamp(max=n - 1))

    # Active entries lie within tau of the K-th largest, K = ceil(k). Those beyond twice that cannot be, and may move.
    compute = torch.promote_types(x.dtype, torch.float32)
    s = ((z - pivot) / width).clamp(-2, 2).to(compute)
    at = torch.arange(n, device=x.device).view(-1, *(1,) * (x.ndim - 1 - dim))
    w = (mass - at).clamp(0, 1).to(compute)
    found = isotonic(*Regression(dim, s, b=w, order=order, result=PRIMAL))[0]

    height = found.gather(dim, order.gather(dim, rank).long()).to(state.dtype)  # y of the K-th largest
    d = reference.offset_of_gap(mass, rank, pivot, following, width, -width * height)
    most = torch.finfo(compute).max
    p = (pivot + d).clamp(-most, most).to(compute).to(state.dtype)  # the nearest number that entries can have
    state.copy_(reference.with_special_rows(p, (pivot - p) + d, z, mass, width, dim))
    regular = state[0].isfinite().unsqueeze(dim)
    return y.copy_(torch.where(regular, found, reference.evaluate(x, state, temperature, dim).to(compute))), state


_ops.register_batching_in_front(sort, "sort", 3)
_ops.register_batching_in_front(isotonic, "isotonic", 0)
_ops.register_batching_in_front(block_product, "block_product", 5)
_ops._register_batching(threshold_pav, "threshold_pav", None, (0, 1))
