"""Prepared calls: what calls of one signature share, kept in one table for all operators.

A signature is all of the arguments but data: dtypes, devices, shapes, strides, settings. Types come before values, as
1 == 1.0 == True. What is prepared holds no data either. Kernels look at the tensors of every call themselves.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from . import _backends, _layout, reference
from ._backends import Backend, backend_of, check_memory, contiguous
from ._enumerations import codes
from ._layout import Vectors

_CODES = codes("DType", "FLOAT32", "FLOAT64", "FLOAT16", "BFLOAT16")
DTYPES = dict(zip((torch.float32, torch.float64, torch.float16, torch.bfloat16), _CODES, strict=True))

Result = TypeVar("Result")

# The calls that passed every check: the next batch is mostly like the last.
_known: dict[Hashable, Any] = {}
_KNOWN_AT_MOST = 1024
_NOTHING: Any = object()  # prepared where there are no kernels for a signature


def recall(signature: Hashable) -> Any:
    """What was prepared for this signature, or None."""
    try:
        return _known.get(signature)
    except TypeError:  # of what cannot be hashed, and mostly is to be refused
        return None


def remember(signature: Hashable, call: Any) -> None:
    """Keep what was prepared for this signature."""
    if len(_known) >= _KNOWN_AT_MOST:
        _known.clear()
    with contextlib.suppress(TypeError):
        _known[signature] = call


def prepared(make: Callable[..., Result], *signature: Any) -> Result:
    """What `make` makes of a signature."""
    key = (make, *signature)
    call = recall(key)
    if call is None:
        call = make(*signature)
        remember(key, _NOTHING if call is None else call)
    return None if call is _NOTHING else call  # type: ignore[return-value]


def expanded(sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What tensors of this shape are like, but for their strides: one number, which all calls of these sizes share.

    Never on a GPU: first made while a graph is captured, it would lie in the memory of that graph.
    """
    return prepared(_expanded, sizes, dtype)


def _expanded(sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty((), dtype=dtype, device="cpu").expand(sizes)


def maker(like: Tensor, device: torch.device) -> Callable[[], Tensor]:
    """What makes contiguous tensors that hold nothing yet, in half the time of Tensor.new_empty."""
    make = functools.partial(torch.empty_like, like, memory_format=torch.contiguous_format)
    return make if device.type == "cpu" else functools.partial(make, device=device)


def new(like: Tensor) -> Tensor:
    """An uninitialised contiguous tensor, in half the time of Tensor.new_empty."""
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def packed_strides(sizes: tuple[int, ...], dim: int) -> tuple[int, ...]:
    """Strides in which each vector is one run."""
    strides, step = [1] * len(sizes), sizes[dim]
    for i in reversed([i for i in range(len(sizes)) if i != dim]):
        strides[i], step = step, step * sizes[i]
    return tuple(strides)


def blocks_shape(sizes: tuple[int, ...], dim: int) -> tuple[int, ...]:
    """Of the bytes that hold a bit per element, in 32-bit words."""
    return (*_layout.rest(sizes, dim), 4 * ((sizes[dim] + 31) // 32))


def vector_call(x: Tensor, dim: int) -> VectorCall | None:
    """What calls with vectors like these share; None without kernels, entries, or strides that kernels take."""
    return prepared(_vector_call, backend_of(x.device), x.dtype, x.device, x.shape, x.stride(), type(dim), dim)


def placed(x: Tensor, dim: int) -> tuple[Tensor, VectorCall | None]:
    """`x`, copied if its strides are not such as kernels take, and the call for it."""
    call = vector_call(x, dim)
    if call is None and x.numel() > 0:
        x = _layout.vectors(x, dim)[0]
        call = vector_call(x, dim)
    return x, call


def _vector_call(
    backend: Backend | None,
    dtype: torch.dtype,
    device: torch.device,
    shape: torch.Size,
    strides: tuple[int, ...],
    _: type,
    dim: int,
) -> VectorCall | None:
    x = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    fitting, layout = _layout.vectors(x, dim)
    if backend is None or fitting is not x or x.numel() == 0:
        return None
    return VectorCall(
        backend,
        backend.kernels.ProjectionCall(DTYPES[dtype], device.type, device.index or 0, shape, dim, layout.cut),
        layout,
        strides,
        packed_strides(shape, dim),
        _layout.result_format(x, layout),
        maker(expanded((2, *_layout.rest(shape, dim)), reference.wide_dtype(device)), device),
        maker(expanded(blocks_shape(shape, dim), torch.uint8), device),
    )


class VectorCall(NamedTuple):
    """What calls of one layout share. Numbers per vector and states are contiguous; the other tensors are fitted.

    `sort`, `isotonic` and `block_product` take the arguments of the operators with these names in `_order_ops`.
    """

    backend: Backend
    kernels: Any  # ProjectionCall of csrc/bindings.cpp
    layout: Vectors
    strides: tuple[int, ...]  # of x
    packed: tuple[int, ...]  # strides in which each vector is one run
    result_format: torch.memory_format
    new_state: Callable[[], Tensor]  # the memory of one
    new_blocks: Callable[[], Tensor]

    def fitted(self, t: Tensor | None) -> Tensor | None:
        """`t`, copied only where its strides do not fit the layout."""
        return t if t is None or t.is_contiguous() else self.layout.fitted(t)

    def project(
        self, x: Tensor, k_values: Tensor | None, k: float, tau_values: Tensor | None, tau: float, state: Tensor | None
    ) -> Tensor:
        """The projection of `x`; a state that is there is filled."""
        y = torch.empty_like(x, memory_format=self.result_format)
        if self.backend.on_cpu:  # without the detour, which takes a tenth of a small call
            self.kernels.threshold(x, k_values, k, tau_values, tau, y, state, _backends.threads())
        else:
            self.backend.call(self.kernels.threshold, x.device, x, k_values, k, tau_values, tau, y, state)
        return y

    def jvp(
        self, x: Tensor, v: Tensor, state: Tensor, tau_values: Tensor | None, tau: float, sums: Tensor | None = None
    ) -> Tensor:
        """J v / tau; `sums` is filled with the gradients in k and tau."""
        if v.dtype != x.dtype:  # a call of Tensor.to takes longer
            check_memory("v", v)
            v = v.to(x.dtype)
        out = torch.empty_like(x, memory_format=self.result_format)
        self.backend.call(self.kernels.jvp, x.device, x, self.fitted(v), state, tau_values, tau, out, sums)
        return out

    def sort(self, x: Tensor, descending: bool, wide: bool, dim: int) -> tuple[Tensor, Tensor]:
        """Each vector in order, and where in `x` each element was."""
        if wide:
            values = new(x)
            order = torch.empty_like(x, dtype=torch.int64, memory_format=torch.contiguous_format)
        else:
            shape, device = x.shape, x.device
            values = torch.empty_strided(shape, self.packed, dtype=x.dtype, device=device)
            order = torch.empty_strided(shape, self.packed, dtype=torch.int32, device=device)
        kernels, cut = self.backend.kernels, self.layout.cut
        self.backend.call(kernels.sort, x.device, dim, cut, x, descending, values, order, wide)
        return values, order

    def isotonic(
        self,
        dim: int,
        a: Tensor | None,
        a_scale: float,
        b: Tensor | None,
        b_scale: float,
        b_logarithm: bool,
        weight: Tensor | None,
        order: Tensor | None,
        divergence: int,
        increasing: bool,
        result: int,
        scale: float,
        wants_share: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """The result of a `Regression`, the share if wanted, and the blocks."""
        like: Any = b if a is None else a
        out, blocks, fitted = new(like), self.new_blocks(), self.fitted
        share = (
            torch.empty_strided(like.shape, self.packed, dtype=like.dtype, device=like.device) if wants_share else None
        )
        if order is not None and not self.backend.on_cpu:
            out.fill_(
                torch.nan
            )  # nothing foreign at places that an order may leave out; on the CPU the kernel sees to it
        self.backend.call(
            self.backend.kernels.isotonic,
            out.device,
            dim,
            self.layout.cut,
            divergence,
            increasing,
            (fitted(a), a_scale, False),
            (fitted(b), b_scale, b_logarithm),
            fitted(weight),
            result,
            scale,
            out,
            fitted(order),
            share,
            blocks,
        )
        return out, share, blocks

    def block_product(
        self,
        v: Tensor,
        weight: Tensor | None,
        order: Tensor | None,
        blocks: Tensor,
        product: int,
        dim: int,
        v_ordered: bool = False,
        weight_ordered: bool = False,
        out_ordered: bool = False,
        scale: float = 1.0,
    ) -> Tensor:
        """The result of a `Product`."""
        out, fitted = new(v), self.fitted
        if order is not None and out_ordered and not self.backend.on_cpu:
            out.fill_(torch.nan)  # as above
        if weight is not None and weight.dtype != v.dtype:
            check_memory("weight", weight)
            weight = weight.to(v.dtype)
        self.backend.call(
            self.backend.kernels.block_product,
            out.device,
            dim,
            self.layout.cut,
            product,
            (fitted(v), v_ordered),
            (fitted(weight), weight_ordered),
            (out, out_ordered),
            scale,
            fitted(order),
            contiguous(blocks),
        )
        return out
