"""How vectors lie in a strided tensor: (outer, inner, n1, n2) of csrc/hypersimplex.h, without a copy if possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Four = tuple[int, int, int, int]


class Vectors(NamedTuple):
    """Vectors along `dim`. The first `cut` of the other dimensions are numbered by `outer`, the rest by `inner`."""

    shape: Four
    dim: int
    cut: int

    def strides(self, t: Tensor) -> Four | None:
        """The strides of `t`, or None where its dimensions do not collapse into these four."""
        strides = t.stride()
        others = (*strides[: self.dim], *strides[self.dim + 1 :])
        sizes = rest(t.shape, self.dim)
        outer = _collapsed(sizes[: self.cut], others[: self.cut])
        inner = _collapsed(sizes[self.cut :], others[self.cut :])
        return None if outer is None or inner is None else (outer, inner, 0, strides[self.dim])


class Samples(NamedTuple):
    """Samples and classes of a loss: [N, C, d...] or [N] is (1, C, N, prod d), class by class a vector."""

    shape: Four

    def strides(self, t: Tensor) -> Four | None:
        """The strides of logits or dense targets; None where d... does not collapse."""
        return self._strides(t, 1) if t.ndim > 1 else (0, 0, t.stride(0), 0)

    def index_strides(self, t: Tensor) -> Four | None:
        """The strides of class indices [N, d...]; None where d... does not collapse."""
        return self._strides(t, 0)

    def _strides(self, t: Tensor, last: int) -> Four | None:
        strides = t.stride()
        along = _collapsed(t.shape[last + 1 :], strides[last + 1 :]) if t.ndim > last + 1 else 0
        return None if along is None else (0, strides[1] if last else 0, strides[0], along)


def rest(sizes: Sequence[int], dim: int) -> tuple[int, ...]:
    """The sizes without dimension `dim`: the shape of what there is one of per vector."""
    return (*sizes[:dim], *sizes[dim + 1 :])


def vectors(x: Tensor, dim: int) -> tuple[Tensor, Vectors]:
    """The vectors of `x` along `dim`; `x` is copied only if two strides cannot number them."""
    sizes = rest(x.shape, dim)
    # Dimensions on both sides of `dim` are kept apart: taken as one they would not collapse in a contiguous tensor.
    cuts = (dim, *range(1, len(sizes))) if dim in (0, x.ndim - 1) else (dim,)
    for cut in cuts:
        layout = Vectors((math.prod(sizes[:cut]), math.prod(sizes[cut:]), 1, x.shape[dim]), dim, cut)
        if layout.strides(x) is not None:
            return x, layout
    return x.contiguous(), Vectors((math.prod(sizes[:dim]), math.prod(sizes[dim:]), 1, x.shape[dim]), dim, dim)


def samples(x: Tensor) -> tuple[Tensor, Samples]:
    """The samples of logits [N, C, d...] or [N]; `x` is copied only if d... does not collapse."""
    classes = x.shape[1] if x.ndim > 1 else 1
    layout = Samples((1, classes, x.shape[0], math.prod(x.shape[2:])))
    return (x if layout.strides(x) is not None else x.contiguous()), layout


def output_like(x: Tensor, layout: Vectors | Samples) -> Tensor:
    """An uninitialised result with the strides of `x`, or contiguous where those do not fit the layout."""
    out = torch.empty_like(x)
    return out if layout.strides(out) is not None else torch.empty_like(x, memory_format=torch.contiguous_format)


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
