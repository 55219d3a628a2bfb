"""How vectors lie in a strided tensor: (outer, inner, n1, n2) of csrc/hypersimplex.h, without a copy if possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._backends import contiguous

Four = tuple[int, int, int, int]


class Vectors(NamedTuple):
    """Vectors along `dim`. The first `cut` of the other dimensions are numbered by `outer`, the rest by `inner`."""

    shape: Four
    dim: int
    cut: int

    def strides(self, t: Tensor) -> Four | None:
        """The strides of `t`, or None where its dimensions do not collapse into these four."""
        return _vector_strides(t.shape, t.stride(), self.dim, self.cut)

    def fitted(self, t: Tensor) -> Tensor:
        """`t`, copied only where it does not fit."""
        return t if self.strides(t) is not None else contiguous(t)


class Samples(NamedTuple):
    """Samples and classes of a loss: [N, C, d...] or [N] is (1, C, N, prod d), class by class a vector."""

    shape: Four

    def strides(self, t: Tensor) -> Four | None:
        """The strides of logits; None where d... does not collapse."""
        return _sample_strides(t.shape, t.stride(), min(t.ndim - 1, 1))


class Batch(NamedTuple):
    """Where the logits and the targets of a loss lie; None where d... does not collapse."""

    samples: Samples
    strides: Four | None
    dense: bool
    target_strides: Four | None


def rest(sizes: Sequence[int], dim: int) -> tuple[int, ...]:
    """The sizes without dimension `dim`: the shape of what there is one of per vector."""
    return (*sizes[:dim], *sizes[dim + 1 :])


def vectors(x: Tensor, dim: int) -> tuple[Tensor, Vectors]:
    """The vectors of `x` along `dim`; `x` is copied only if two strides cannot number them."""
    layout, fits = _vectors(x.shape, x.stride(), dim)
    return (x if fits else contiguous(x)), layout


def samples(x: Tensor) -> tuple[Tensor, Samples]:
    """The samples of logits [N, C, d...] or [N]; `x` is copied only if d... does not collapse."""
    layout, fits = _samples(x.shape, x.stride())
    return (x if fits else contiguous(x)), layout


def batch(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N, C, d...] or [N] and targets, class indices or dense; copied only where d... does not collapse."""
    where = places(x.shape, x.stride(), target.shape, target.stride())
    x = x if where.strides is not None else contiguous(x)
    return x, target if where.target_strides is not None else contiguous(target)


def _vectors(sizes: Sequence[int], strides: Sequence[int], dim: int) -> tuple[Vectors, bool]:
    """The layout, and whether these strides fit it; contiguous ones do."""
    others = rest(sizes, dim)
    # Dimensions on both sides of `dim` are kept apart: taken as one they would not collapse in a contiguous tensor.
    cuts = (dim, *range(1, len(others))) if dim in (0, len(sizes) - 1) else (dim,)
    for cut in (*cuts, dim):
        layout = Vectors((math.prod(others[:cut]), math.prod(others[cut:]), 1, sizes[dim]), dim, cut)
        if _vector_strides(sizes, strides, dim, cut) is not None:
            return layout, True
    return layout, False


def _vector_strides(sizes: Sequence[int], strides: Sequence[int], dim: int, cut: int) -> Four | None:
    other_sizes, other_strides = rest(sizes, dim), rest(strides, dim)
    outer = _collapsed(other_sizes[:cut], other_strides[:cut])
    inner = _collapsed(other_sizes[cut:], other_strides[cut:])
    return None if outer is None or inner is None else (outer, inner, 0, strides[dim])


def _samples(sizes: Sequence[int], strides: Sequence[int]) -> tuple[Samples, bool]:
    """The layout, and whether these strides fit it; contiguous ones do."""
    last = min(len(sizes) - 1, 1)
    layout = Samples((1, sizes[1] if last else 1, sizes[0], math.prod(sizes[2:])))
    return layout, _sample_strides(sizes, strides, last) is not None


def places(
    sizes: Sequence[int], strides: Sequence[int], target_sizes: Sequence[int], target_strides: Sequence[int]
) -> Batch:
    """Where logits and targets of these shapes and strides lie."""
    dense, last = target_sizes == sizes, min(len(sizes) - 1, 1)
    return Batch(
        _samples(sizes, strides)[0],
        _sample_strides(sizes, strides, last),
        dense,
        _sample_strides(target_sizes, target_strides, last if dense else 0),
    )


def _sample_strides(sizes: Sequence[int], strides: Sequence[int], last: int) -> Four | None:
    """Strides of [N, C, d...], where `last` is 1, or of [N, d...], where it is 0."""
    along = _collapsed(sizes[last + 1 :], strides[last + 1 :])
    return None if along is None else (0, strides[1] if last else 0, strides[0], along)


def result_format(x: Tensor, layout: Vectors | Samples) -> torch.memory_format:
    """Of a result like `x`: with its strides, or contiguous where those do not fit the layout."""
    fits = layout.strides(torch.empty_like(x, device="meta")) is not None
    return torch.preserve_format if fits else torch.contiguous_format


def output_like(x: Tensor, layout: Vectors | Samples) -> Tensor:
    """An uninitialised result in its format."""
    return torch.empty_like(x, memory_format=result_format(x, layout))


def _collapsed(sizes: Sequence[int], strides: Sequence[int]) -> int | None:
    """The stride of adjacent dimensions taken as one, or None where no single stride describes them."""
    stride, due = 0, None
    for size, step in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if due is None:
            stride = step
        elif step != due:
            return None
        due = step * size
    return stride
