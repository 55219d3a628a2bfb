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

from . import _ops, reference
from ._backends import check_memory
from ._calls import blocks_shape, new, packed_strides, placed
from ._enumerations import codes
from ._ops import _operator

L2, KL = codes("Divergence", "L2", "KL")
REGRESSION, PRIMAL, EXP_PRIMAL = codes("IsotonicResult", "REGRESSION", "PRIMAL", "EXP_PRIMAL")
MEAN, RATIO, TRANSPOSED, RESIDUAL = codes("BlockProduct", "MEAN", "RATIO", "TRANSPOSED", "RESIDUAL")


def _packed(like: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor in the shape of `like` in which each vector is one run."""
    return like.new_empty_strided(like.shape, packed_strides(like.shape, dim), dtype=dtype)


# ---- sort ----


def _sort_fake(x: Tensor, descending: bool, wide: bool, dim: int) -> tuple[Tensor, Tensor]:
    _ops.check_vectors("x", x, dim)
    if wide:
        return new(x), torch.empty_like(x, dtype=torch.int64, memory_format=torch.contiguous_format)
    return _packed(x, dim), _packed(x, dim, torch.int32)


@_operator("sort(Tensor x, bool descending, bool wide, int dim) -> (Tensor values, Tensor order)", _sort_fake)
def sort(x: Tensor, descending: bool, wide: bool, dim: int) -> tuple[Tensor, Tensor]:
    """Each vector in order, and where in `x` each element was: int64 if `wide`, else int32 and both packed."""
    _ops.check_vectors("x", x, dim)
    x, call = placed(x, dim)
    if call is not None:
        return call.sort(x, descending, wide, dim)
    values, order = _sort_fake(x, descending, wide, dim)
    if x.numel() > 0:
        by_torch = x.sort(dim=dim, descending=descending, stable=True)
        values.copy_(by_torch.values)
        order.copy_(by_torch.indices)
    return values, order


def _place_fake(v: Tensor, order: Tensor, dim: int) -> Tensor:
    _ops.check_vectors("v", v, dim)
    _ops.check_given("order", order)
    _ops.check_beside("order", order, v, torch.int64)
    return new(v)


@_operator("place(Tensor v, Tensor order, int dim) -> Tensor", _place_fake)
def place(v: Tensor, order: Tensor, dim: int) -> Tensor:
    """Element j of each vector at order[j].

    An operator, which Inductor leaves whole: where it fuses a scatter with what follows, that may read what has not
    been written, as in PyTorch issue 191571.
    """
    out = _place_fake(v, order, dim)
    for name, t in (("v", v), ("order", order)):
        check_memory(name, t)
    return out.zero_().scatter_(dim, order, v)


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
        if term is None:
            raise ValueError("one of a and b must be a Tensor, got None for both")
        return term

    def check(self) -> None:
        """Raise unless all tensors are as vectors of one dtype have them."""
        like = self.like
        _ops.check_vectors("b" if self.a is None else "a", like, self.dim)
        _ops.check_beside("b", self.b, like, like.dtype)
        _ops.check_beside("weight", self.weight, like, like.dtype)
        _ops.check_beside("order", self.order, like, torch.int32)


def _isotonic_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    r = Regression(*arguments)
    r.check()
    share = _packed(r.like, r.dim) if r.wants_share else r.like.new_empty(0)
    return new(r.like), share, r.like.new_empty(blocks_shape(r.like.shape, r.dim), dtype=torch.uint8)


@_operator(
    "isotonic(int dim, Tensor? a, float a_scale, Tensor? b, float b_scale, bool b_logarithm, Tensor? weight,"
    " Tensor? order, int divergence, bool increasing, int result, float scale, bool wants_share)"
    " -> (Tensor out, Tensor share, Tensor blocks)",
    _isotonic_fake,
)
def isotonic(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The result of a `Regression`; if wanted, exp(b) / sum_B exp(b) of each element, packed; and the blocks."""
    r = Regression(*arguments)
    r.check()
    _ops.check_values("weight", r.weight)
    _, call = placed(r.like, r.dim)
    if call is not None:
        out, share, blocks = call.isotonic(*r)
        return out, r.like.new_empty(0) if share is None else share, blocks
    outputs = _isotonic_fake(*arguments)
    if r.like.numel() > 0:
        _isotonic_in_torch(r, *outputs)
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
            share.copy_(reference.block_softmax(b, starts).movedim(-1, r.dim))
    else:
        w = torch.ones_like(a) if r.weight is None else last(r.weight)
        amount = w * (r.a_scale * a - b)
        starts = reference.pool_adjacent_violators(-amount if r.increasing else amount, w)
        value = reference.block_sum(amount, starts) / reference.block_sum(w, starts)
    value = (r.scale * value).movedim(-1, r.dim).to(out.dtype)
    if r.order is None:
        out.copy_(value)
    else:
        out.fill_(math.nan).scatter_(r.dim, r.order.long(), value)
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

    def check(self) -> None:
        """Raise unless all tensors go with v."""
        v = self.v
        _ops.check_vectors("v", v, self.dim)
        _ops.check_beside("weight", self.weight, v)
        _ops.check_beside("order", self.order, v, torch.int32)
        _ops.check_given("blocks", self.blocks)
        blocks = blocks_shape(v.shape, self.dim)
        if self.blocks.dtype != torch.uint8 or self.blocks.shape != blocks or self.blocks.device != v.device:
            raise ValueError(f"blocks must be uint8 {list(blocks)} on {v.device}, got {_ops.describe(self.blocks)}")


def _block_product_fake(*arguments: Any) -> Tensor:
    p = Product(*arguments)
    p.check()
    return new(p.v)


@_operator(
    "block_product(Tensor v, Tensor? weight, Tensor? order, Tensor blocks, int product, int dim, bool v_ordered,"
    " bool weight_ordered, bool out_ordered, float scale) -> Tensor",
    _block_product_fake,
)
def block_product(*arguments: Any) -> Tensor:
    """The result of a `Product`."""
    p = Product(*arguments)
    p.check()
    v, call = placed(p.v, p.dim)
    if call is not None:
        return call.block_product(*p._replace(v=v))
    out = new(p.v)
    return _block_product_in_torch(p, out) if out.numel() > 0 else out


def _block_product_in_torch(p: Product, out: Tensor) -> Tensor:
    place = None if p.order is None else p.order.long().movedim(p.dim, -1)

    def sorted_places(t: Tensor, ordered: bool) -> Tensor:
        t = t.to(reference.wide_dtype(t.device)).movedim(p.dim, -1)
        return t.gather(-1, place) if ordered and place is not None else t

    v = sorted_places(p.v, p.v_ordered)
    w = torch.ones_like(v) if p.weight is None else sorted_places(p.weight, p.weight_ordered)
    starts = _starts(p.blocks, v.shape[-1])
    level = reference.block_sum(v if p.product in (RATIO, TRANSPOSED) else w * v, starts)
    total = reference.block_sum(w, starts)
    level = level / total
    # The mean of one element is that element, which w v / w would miss by rounding.
    result = v - torch.where(total == w, v, level) if p.product == RESIDUAL else level
    if p.product in (TRANSPOSED, RESIDUAL):
        result = w * result
    if p.out_ordered and place is not None:
        result = torch.full_like(result, math.nan).scatter_(-1, place, result)
    return out.copy_(p.scale * result.movedim(-1, p.dim))


# ---- the projection onto the hypersimplex by this route, Eq. 4.4 of the paper ----


@_operator(
    "project_pav(Tensor x, Tensor? mask, Tensor? k_values, float k, Tensor? tau_values, float tau, int dim)"
    " -> (Tensor y, Tensor state)",
    _ops.project_fake,
)
def project_pav(
    x: Tensor, mask: Tensor | None, k_values: Tensor | None, k: float, tau_values: Tensor | None, tau: float, dim: int
) -> tuple[Tensor, Tensor]:
    """`project` by sorting and isotonic regression, with the same state."""
    y, state = _ops.project_fake(x, mask, k_values, k, tau_values, tau, dim)
    for name, values in (("k_values", k_values), ("tau_values", tau_values)):
        _ops.check_beside(name, values, state[0], state.dtype)
    _ops.check_values("k", k_values, x.shape[dim])
    _ops.check_temperatures(tau_values)
    n = x.shape[dim]
    if x.numel() == 0:
        state[0], state[1] = math.inf, 0.0
        return y, state
    if mask is not None:
        x = _ops.masked(x, mask)
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
_ops.register_batching_in_front(place, "place", 2)
_ops.register_batching_in_front(isotonic, "isotonic", 0)
_ops.register_batching_in_front(block_product, "block_product", 5)
_ops._register_batching(project_pav, "project_pav", None, (0, 1))
