"""Which kernels serve which device, and how they are called."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch.compiler import is_dynamo_compiling

from ._torch_private import is_plain

_modules: dict[str, Any] = {}
_look: Callable[[str, torch.Tensor], None] | None = None
_reason = ""
try:
    from . import _C
except ImportError as error:  # not built, or built for another system: the reference serves, and says so
    _reason = f" ({error})"
else:
    _modules = {name: getattr(_C, name) for name in ("cpu", "cuda") if hasattr(_C, name)}
    _look = _C.check_memory


class Backend(NamedTuple):
    """Kernels for one device type; `call(function, device, *arguments)` adds what a function takes at its end."""

    kernels: Any  # a module with threshold, jvp, LossCall and the others of csrc/bindings.cpp
    call: Callable[..., None]
    on_cpu: bool  # then kernels take threads() at their end, and no memory for a state that nobody wants


threads: Callable[[], int] = torch.get_num_threads


def _one() -> int:
    return 1


def _after_fork() -> None:
    """Go on with one thread: a forked child has none of its parent's, for which OpenMP would wait forever."""
    global threads
    threads = _one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _call_cpu(function: Callable[..., None], device: torch.device, *arguments: object) -> None:
    function(*arguments, threads())


def _call_cuda(function: Callable[..., None], device: torch.device, *arguments: object) -> None:
    workspace = []  # alive until everything is launched; then the allocator orders its reuse on the stream

    def allocate(size: int) -> int:
        workspace.append(torch.empty(size, dtype=torch.uint8, device=device))
        return workspace[-1].data_ptr()

    with torch.cuda.device(device):
        function(*arguments, torch.cuda.current_stream(device).cuda_stream, allocate)


_CALLS = {"cpu": _call_cpu, "cuda": _call_cuda}
BACKENDS = {name: Backend(kernels, _CALLS[name], name == "cpu") for name, kernels in _modules.items()}
_announced: set[str] = set()


def has_kernels(device: torch.device) -> bool:
    """Whether kernels serve tensors on this device; tensors without data count as served."""
    kind = device.type
    return kind in BACKENDS or kind == "meta"


def check_memory(name: str, t: torch.Tensor) -> None:
    """Raise where the storage of a tensor of plain memory was freed, or is shorter than the tensor reaches.

    Kernels look for themselves. This is for where operators of PyTorch come first, which may read what is not there.
    """
    if _look is not None and not is_dynamo_compiling() and is_plain(t) and t.device.type in BACKENDS:
        _look(name, t)


MaybeTensor = TypeVar("MaybeTensor", torch.Tensor, torch.Tensor | None)


def contiguous(t: MaybeTensor) -> MaybeTensor:
    """`t`, copied if need be."""
    if t is None or t.is_contiguous():
        return t
    check_memory("a tensor", t)
    return t.contiguous()


def backend_of(device: torch.device) -> Backend | None:
    """The backend for a device, or None: then the reference serves, which is announced once."""
    backend = BACKENDS.get(device.type)
    if backend is None and device.type not in _announced:
        _announced.add(device.type)
        warnings.warn(
            f"hypersimplex_ext has no kernels for device type '{device.type}'{_reason}: "
            "it computes in plain PyTorch there, which is slower.",
            RuntimeWarning,
            stacklevel=2,
        )
    return backend
