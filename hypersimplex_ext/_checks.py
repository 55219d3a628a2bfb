"""Validation of what users pass: each error names the argument, what was expected and what came."""

from __future__ import annotations

import math
import numbers
from typing import Any, Literal

import torch
from torch import Tensor

from . import reference
from ._backends import check_memory
from ._calls import DTYPES


def tensor(name: str, value: object) -> Tensor:
    """A tensor of which every entry lies in memory."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if value.is_nested or value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense Tensor, got {'nested' if value.is_nested else value.layout}")
    check_memory(name, value)
    return value


def logits(input: Tensor, name: str = "input") -> None:
    """Raise unless `input` is a real floating-point tensor with at least one dimension."""
    tensor(name, input)
    if input.dtype not in DTYPES:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {input.dtype}")
    if input.ndim == 0:
        raise ValueError(f"{name} must have at least one dimension, got none")


def dimension(dim: int, ndim: int) -> int:
    """`dim` counted from the front."""
    dim = integer("dim", dim)
    if not -ndim <= dim < ndim:
        raise IndexError(f"dim must lie in [{-ndim}, {ndim - 1}] for an input with {ndim} dimensions, got {dim}")
    return dim % ndim


def choice(name: str, value: Any, allowed: dict[str, int]) -> int:
    """The number that a word stands for."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return allowed[value]


def number(name: str, value: object, kinds: str = "a real number") -> float:
    """Any real number but a bool, be it NumPy's or a fraction, as an int or a float."""
    if type(value) in _PLAIN or type(value := _unwrapped(value)) in _PLAIN:
        return value  # type: ignore[return-value]
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {kinds}, got {type(value).__name__}")
    return int(value) if isinstance(value, numbers.Integral) else _float(value)


_PLAIN = (int, float, torch.SymInt, torch.SymFloat)


def _unwrapped(value: Any) -> Any:
    """A number of NumPy's, which torch.compile takes for an array, as Python's."""
    return value.item() if torch.compiler.is_compiling() and hasattr(value, "item") else value


def _float(value: Any) -> float:
    """The nearest float, infinite beyond the largest."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def mass(k: object, n: float) -> float:
    """A number k in [0, n]."""
    k = number("k", k, "a real number or a Tensor")
    if not 0 <= k <= n:
        raise ValueError(f"k must lie in [0, {n}], the number of entries, got {k}")
    return k


def positive(name: str, value: object, kinds: str) -> float:
    """A number in (0, inf)."""
    value = number(name, value, kinds)
    if type(value) is int:
        value = _float(value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must lie in (0, inf), got {value}")
    return value


def temperature(tau: object) -> float:
    """A number in (0, inf) that is no subnormal one: a threshold in logit units has to be resolved to an ulp of it."""
    tau = positive("tau", tau, "a real number or a Tensor")
    if tau < reference.LEAST_TEMPERATURE:
        raise ValueError(f"tau must be a normal number, at least {reference.LEAST_TEMPERATURE:.4g}, got {tau}")
    return tau


def fraction(name: str, value: object, kinds: str = "a real number") -> float:
    """A number in [0, 1]."""
    value = number(name, value, kinds)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
    return value


def on_device(name: str, value: Tensor, like: Tensor) -> Tensor:
    """A tensor on the device of `like`; a single number may come from the CPU."""
    if value.device == like.device:
        return value
    if value.ndim == 0:
        # A copy from the CPU need not be waited for; one to it has to be, or it would be read before it is there.
        return value.to(like.device, non_blocking=value.device.type == "cpu")
    raise ValueError(f"{name} must be on {like.device} like input, got {value.device}")


def per_vector(name: str, value: Tensor, like: Tensor, shape: tuple[int, ...], meaning: str) -> Tensor:
    """Real numbers that broadcast to `shape`, broadcast, as wide as numbers per vector are kept."""
    tensor(name, value)
    if value.dtype == torch.bool or value.is_complex():
        raise TypeError(f"{name} must be real, got {value.dtype}")
    value = on_device(name, value, like)
    if not _broadcasts(value.shape, shape):
        raise ValueError(f"{name} must broadcast to {list(shape)}, {meaning}, got shape {list(value.shape)}")
    return value.to(reference.wide_dtype(like.device)).expand(shape)


def mask(value: Any, like: Tensor) -> Tensor:
    """A bool mask broadcast to the shape of `like`."""
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        came = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"mask must be a bool Tensor, got {came}")
    tensor("mask", value)
    if not _broadcasts(value.shape, tuple(like.shape)):
        raise ValueError(f"mask must broadcast to input's shape {list(like.shape)}, got shape {list(value.shape)}")
    return on_device("mask", value, like).expand(like.shape)


def broadcast(name: str, value: object, like: Tensor) -> Tensor:
    """Real numbers that broadcast to the shape of `like`, in its dtype, not yet broadcast."""
    value = tensor(name, value)
    if value.dtype == torch.bool or value.is_complex():
        raise TypeError(f"{name} must be real, got {value.dtype}")
    if not _broadcasts(value.shape, tuple(like.shape)):
        raise ValueError(f"{name} must broadcast to input's shape {list(like.shape)}, got shape {list(value.shape)}")
    return on_device(name, value, like).to(like.dtype)


def _broadcasts(sizes: torch.Size, shape: tuple[int, ...]) -> bool:
    trailing = shape[len(shape) - len(sizes) :]
    return len(sizes) <= len(shape) and all(size in (1, due) for size, due in zip(sizes, trailing, strict=True))


def integer(name: str, value: object) -> int:
    """An integer that is no bool, be it NumPy's, and fits into 64 bits."""
    if type(value) is not int:  # which is told in a fraction of the time
        value = _unwrapped(value)
        if type(value) is torch.SymInt:
            return value  # type: ignore[return-value]
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
        value = int(value)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} must fit into 64 bits, got {value}")
    return value


def sample_shape(input: Tensor) -> tuple[int, ...]:
    """The shape of what a loss has one of per sample: [N, d...] for logits [N, C, d...] or [N]."""
    shape = input.shape
    return shape[:1] + shape[2:]


def labelled(input: Tensor, target: object) -> tuple[Tensor, Tensor]:
    """Logits and targets of one kind each: a single sample [C] becomes [1, C], binary labels [n] of [n, 1] the same."""
    logits(input)
    target = tensor("target", target)
    if target.device != input.device:
        raise ValueError(f"target must be on {input.device} like input, got {target.device}")
    if input.ndim == 1 and target.ndim == 0:
        input, target = input.unsqueeze(0), target.unsqueeze(0)
    if input.ndim > 1 and input.shape[1] == 0:
        raise ValueError(f"input must have at least one class, got shape {list(input.shape)}")
    if input.ndim > 1 and input.shape[1] == 1 and target.shape == sample_shape(input):
        target = target.unsqueeze(1)
    return input, target


def by_sample(input: Tensor, target: object) -> tuple[Tensor, Tensor]:
    """Logits [n, C], and class indices [n] or dense targets [n, C]: the positions of [N, C, d...] become samples."""
    input, of_input = labelled(input, target)
    if of_input.shape != input.shape:
        return _rows(input), of_input.flatten()
    return _rows(input), _rows(of_input)


def _rows(t: Tensor) -> Tensor:
    return t.unsqueeze(1) if t.ndim == 1 else t.movedim(1, -1).flatten(0, -2)


def target(target: Tensor, input: Tensor) -> Tensor:
    """Class indices as int64, or dense targets in the dtype of `input`."""
    if target.shape == input.shape:
        if target.is_complex():
            raise TypeError(f"target must be real, got {target.dtype}")
        return target.to(input.dtype)
    if input.ndim == 1 or target.shape != sample_shape(input):
        indices = "" if input.ndim == 1 else f"class indices of shape {list(sample_shape(input))} or "
        raise ValueError(
            f"target must be {indices}dense of shape {list(input.shape)} for an input of shape {list(input.shape)}, "
            f"got shape {list(target.shape)}"
        )
    if target.dtype == torch.int64:
        return target
    if target.dtype != torch.uint8:
        raise TypeError(f"target must hold class indices as int64 or uint8, got {target.dtype}")
    return target.to(torch.int64)


def weight(name: str, value: object, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Weights of exactly this shape, as wide as numbers per vector are kept."""
    value = tensor(name, value)
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(value.shape)}")
    return per_vector(name, value, like, shape, "")


def share(name: str, value: object) -> float | Literal["targets"]:
    """What masses of a loss are before a batch is known: "targets", a float in [0, 1] or an int from 0."""
    if isinstance(value, str):
        choice(name, value, {"targets": 0})
        return "targets"
    value = number(name, value, "a real number, a Tensor or 'targets'")
    if isinstance(value, int) and value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    return value if isinstance(value, int) else fraction(name, value)
