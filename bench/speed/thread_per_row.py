"""The published way to project on a GPU, to compare with: sort, then one thread per row pools adjacent violators.

The kernels are thread_per_row.cu, which nvcc compiles for the GPU at hand when they are first wanted.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.speed import nvcc

SOURCE = Path(__file__).with_suffix(".cu")


class Kernels:
    """The two kernels of a compiled library.

    Args:
        library: path of the library.
        stream: returns the address of the stream to work on.

    Raises:
        RuntimeError: from a call, where its launch failed.
    """

    def __init__(self, library: Path, stream: Callable[[], int]) -> None:
        self._library = ctypes.CDLL(str(library))
        self._stream = stream

    def pool(self, s: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The non-increasing isotonic regression of s - w, w being k ones and then zeros, and the starts of its blocks.

        Args:
            s: [rows, n] in descending order, float32, contiguous.
            k: [rows], float32, contiguous.
        """
        v, start = torch.empty_like(s), torch.empty_like(s, dtype=torch.int32)
        sums = torch.empty_like(s, dtype=torch.float64)
        self._call("thread_per_row_pool", (s, k, v, start, sums), s.shape)
        return v, start

    def centre(self, g: Tensor, start: Tensor) -> Tensor:
        """`g` [rows, n], float32, contiguous, less its mean over the block that holds the entry."""
        out = torch.empty_like(g)
        self._call("thread_per_row_centre", (g, start, out), g.shape)
        return out

    def _call(self, name: str, tensors: tuple[Tensor, ...], shape: torch.Size) -> None:
        assert all(t.is_contiguous() for t in tensors)
        addresses = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
        rows, n = shape
        error = self._library[name](*addresses, ctypes.c_int64(rows), ctypes.c_int(n), ctypes.c_void_p(self._stream()))
        if error:
            raise RuntimeError(f"{name}: CUDA error {error}")


class _Project(torch.autograd.Function):
    """Eq. 4.4 of the paper along the last dimension: y = s - v in sorted order."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, k: Tensor, kernels: Kernels) -> Tensor:
        s, order = z.sort(-1, descending=True)
        v, start = kernels.pool(s, k)
        ctx.save_for_backward(order, start)
        ctx.kernels = kernels
        return torch.empty_like(z).scatter_(-1, order, (s - v).clamp_(0, 1))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        order, start = ctx.saved_tensors
        centred = ctx.kernels.centre(g.gather(-1, order), start)
        return torch.empty_like(centred).scatter_(-1, order, centred), None, None


def project(x: Tensor, k: Tensor | float, tau: float, dim: int, kernels: Kernels) -> Tensor:
    """The projection of x [a, b] along dim; `k` is one number or one per vector."""
    z = (x.float() / tau).movedim(dim, -1).contiguous()
    masses = torch.as_tensor(k, dtype=torch.float32, device=x.device).expand(len(z)).contiguous()
    y: Tensor = _Project.apply(z, masses, kernels)  # type: ignore[no-untyped-call]
    return y.movedim(-1, dim).to(x.dtype)


@functools.cache
def on_gpu() -> Kernels:
    """Compile the kernels for the current GPU, unless that is done, and load them.

    Raises:
        RuntimeError: there is no nvcc, or it failed; the message says why.
    """
    architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
    return Kernels(nvcc.compiled(SOURCE, architecture), lambda: torch.cuda.current_stream().cuda_stream)
