"""What the modules have in common: buffers that keep their digits, of unknown size at first; a node of torch.fx.

Settings and statistics are counts, thresholds and temperatures, which the operators take in float32 or float64 whatever
the dtype of the logits is. `half()` would round them, a count of 4095 even to more than there are samples.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, is_lazy

from . import _torch_private
from .functional import Proxy


class Module(_torch_private.Module):
    """A module of which no conversion narrows the buffers: they move to any device, and only grow wider."""

    def _keep(self, name: str, value: Any, device: torch.device | str | None = None) -> None:
        """Keep a setting: a tensor as a buffer of the module's own, a parameter and what requires grad as it is."""
        if isinstance(value, torch.nn.Parameter) or not isinstance(value, Tensor):
            setattr(self, name, value)
        else:
            self.register_buffer(name, value if value.requires_grad else value.to(device or value.device, copy=True))

    def _converted(self, before: dict[str, Tensor]) -> None:
        for name, was in before.items():
            now: Tensor = getattr(self, name)
            if now.dtype != was.dtype and not _wider(now, was):
                setattr(self, name, was.to(now.device))

    def _settings(self, **values: Any) -> str:
        """Those that are not the default of the argument with their name."""
        arguments = inspect.signature(type(self).__init__).parameters
        defaults = {name: argument.default for name, argument in arguments.items()}
        shown = {name: f"Tensor{list(v.shape)}" for name, v in values.items() if isinstance(v, Tensor)}
        shown |= {n: repr(v) for n, v in values.items() if n not in shown and (n not in defaults or v != defaults[n])}
        return ", ".join(f"{name}={shown[name]}" for name in values if name in shown)


def _wider(now: Tensor, was: Tensor) -> bool:
    return was.is_floating_point() and now.is_floating_point() and now.dtype.itemsize > was.dtype.itemsize


class UnsizedBuffer(UninitializedBuffer):
    """A buffer of unknown size that can be copied and pickled with its dtype, and copied to.

    PyTorch's own can be neither deep-copied nor read by `torch.load`, and is float32 once unpickled.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[id(self)] = _unsized(str(self.data.device), self.data.dtype)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return UnsizedBuffer, (False, str(self.data.device), self.data.dtype)

    def detach(self) -> Tensor:
        """This buffer; it has no gradient."""
        return self

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Tensor:
        """Become a copy of `source`, as an averaged model copies the buffers of the model in training."""
        if is_lazy(source):
            return self
        self.materialize(source.shape)
        return Tensor.copy_(self, source, non_blocking)


torch.serialization.add_safe_globals([UnsizedBuffer])


def _unsized(device: torch.device | str | None, dtype: torch.dtype) -> Tensor:
    make: Any = UnsizedBuffer  # the signature of its base is not annotated
    buffer: Tensor = make(False, device, dtype)
    return buffer


def statistic(size: int | tuple[int, ...] | None, device: torch.device | str | None, dtype: torch.dtype) -> Tensor:
    """Zeros, or None for the size: what becomes zeros when it is known."""
    return _unsized(device, dtype) if size is None else torch.zeros(size, device=device, dtype=dtype)


def is_traced(module: torch.nn.Module, input: Any) -> bool:
    """Whether torch.fx traces a model of which `module` is a part."""
    return isinstance(input, Proxy) and getattr(input.tracer, "root", module) is not module


def leaf(module: torch.nn.Module, input: Any, *others: Any) -> Any:
    """The call of `module` as one node of the graph that torch.fx traces, as it is for PyTorch's own modules."""
    tracer = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input, *others), {})
