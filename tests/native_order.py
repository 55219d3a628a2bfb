"""Sort, isotonic regression and block products as the native interface has them: allocates, calls, returns."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hypersimplex_ext import _backends, _layout

L2, KL = 0, 1
REGRESSION, PRIMAL, EXP_PRIMAL = 0, 1, 2
MEAN, RATIO, TRANSPOSED, RESIDUAL = 0, 1, 2, 3


class Term(NamedTuple):
    """A number per element: scale * data, or scale * (n, ..., 1) without data; then perhaps its logarithm."""

    data: Tensor | None = None
    scale: float = 1.0
    logarithm: bool = False


class Isotonic(NamedTuple):
    out: Tensor
    blocks: Tensor  # int32 [vectors, ceil(n / 32)]
    share: Tensor | None


def call(name: str, device: torch.device, *arguments: object) -> None:
    backend = _backends.BACKENDS[device.type]
    backend.call(getattr(backend.kernels, name), device, *arguments)


def sort(x, descending=False, dim=-1, values=True, order=True, wide=False, like=None):
    """Values and order, each None where it is not asked for. `like` gives their layout, that of x by default."""
    x, layout = _layout.vectors(x, dim % x.ndim)
    like = x if like is None else like
    sorted_values = torch.empty_like(like) if values else None
    places = torch.empty_like(like, dtype=torch.int64 if wide else torch.int32) if order else None
    call("sort", x.device, layout.dim, layout.cut, x, descending, sorted_values, places, wide)
    return sorted_values, places


def isotonic(
    a: Tensor | Term,
    b: Term | None = None,
    weight=None,
    *,
    dim=-1,
    divergence=L2,
    increasing=False,
    result=REGRESSION,
    scale=1.0,
    order=None,
    share=False,
    like=None,
) -> Isotonic:
    """The regression of a - b; b is 0 by default. `like` gives the layout of the results, that of a by default."""
    a = a if isinstance(a, Term) else Term(a)
    data, layout = _layout.vectors(a.data, dim % a.data.ndim)
    if b is None:
        b = Term(torch.zeros((), dtype=data.dtype, device=data.device).expand(data.shape))
    like = data if like is None else like
    out = torch.empty_like(like)
    shares = torch.empty_like(like) if share else None
    words = -(-data.shape[layout.dim] // 32)
    rest = _layout.rest(data.shape, layout.dim)
    blocks = torch.full((*rest, 4 * words), 255, dtype=torch.uint8, device=data.device)
    call(
        "isotonic",
        data.device,
        *(layout.dim, layout.cut, divergence, increasing),
        (data, float(a.scale), a.logarithm),
        (b.data, float(b.scale), b.logarithm),
        *(weight, result, float(scale), out, order, shares, blocks),
    )
    return Isotonic(out, blocks.flatten().view(torch.int32).view(math.prod(rest), words), shares)


def block_product(
    v, blocks, product=MEAN, *, weight=None, order=None, ordered=(True, True, True), scale=1.0, dim=-1, like=None
):
    """`ordered` says which of v, weight and the result lie at order[j]."""
    v, layout = _layout.vectors(v, dim % v.ndim)
    out = torch.empty_like(v if like is None else like)
    rest = _layout.rest(v.shape, layout.dim)
    call(
        "block_product",
        v.device,
        *(layout.dim, layout.cut, product),
        *zip((v, weight, out), ordered, strict=True),
        *(float(scale), order, blocks.view(torch.uint8).view(*rest, -(-v.shape[layout.dim] // 32) * 4)),
    )
    return out


def starts(blocks: Tensor, n: int) -> Tensor:
    """The bitmask as bools [vectors, n]; the bits behind the last element must be clear."""
    bits = (blocks.cpu().unsqueeze(-1) >> torch.arange(32, dtype=torch.int32)) & 1
    bits = bits.flatten(1).bool()
    assert not bits[:, n:].any()
    return bits[:, :n]
