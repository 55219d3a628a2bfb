"""The operators as PyTorch sees them: schema, shapes for tracing, batching rule, allocation, call into the kernels.

What there is one of per vector has the shape of `x` without dimension `dim`, here [*rest]: k_values and tau_values are
float64 [*rest], the state of a projection is float64 [2, *rest]. `mask` has the shape of `x`, `dim` is not negative.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from . import _layout, reference
from ._backends import check_memory, contiguous
from ._calls import DTYPES, placed
from ._torch_private import direct

_LIBRARY = torch.library.Library("hypersimplex_ext", "DEF")  # type: ignore[no-untyped-call]


def register_derivative(name: str, backward: Callable[..., Any], save: Callable[..., Any]) -> None:
    """Differentiate an operator by `backward` where it is called as such: by what torch.compile makes, above all."""
    torch.library.register_autograd(f"hypersimplex_ext::{name}", backward, setup_context=save, lib=_LIBRARY)


_NUMBERS = {type(None), int, float, bool}  # told from tensors faster than by isinstance


def _operator(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function under this schema for every device, and `fake` for tracing.

    What takes its place goes through the dispatcher only where something waits there, as that takes 5 microseconds.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = schema.partition("(")[0]
        _LIBRARY.define(schema)  # type: ignore[no-untyped-call]
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"hypersimplex_ext::{name}", fake, lib=_LIBRARY)
        overload: Any = getattr(torch.ops.hypersimplex_ext, name).default
        types = schema.partition("(")[2].partition(")")[0].split(", ")
        tensors = 1 + max(i for i, kind in enumerate(types) if kind.startswith("Tensor"))  # none follows these

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            if is_dynamo_compiling():
                return overload(*arguments)
            given = [a for a in arguments[:tensors] if type(a) not in _NUMBERS and isinstance(a, Tensor)]
            if direct(*given) and not (torch.is_grad_enabled() and any(t.requires_grad for t in given)):
                return function(*arguments)
            return overload(*arguments)

        return call

    return register


# ---- what operators are called with, by whomever: kernels look at the tensors that they get once more ----


def describe(t: Tensor) -> str:
    """Dtype, shape and device, as messages name them."""
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)} on {t.device}"


def check_given(name: str, t: Tensor | None) -> None:
    """Raise for None, which the dispatcher lets pass for any tensor."""
    if t is None:
        raise TypeError(f"{name} must be a Tensor, got None")


def check_vectors(name: str, x: Tensor, dim: int) -> None:
    """Raise unless `x` holds vectors along `dim` that kernels compute with."""
    check_given(name, x)
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if not 0 <= dim < x.ndim:
        raise IndexError(f"dim must lie in [0, {x.ndim - 1}], got {dim}")


def check_beside(name: str, t: Tensor | None, x: Tensor, dtype: torch.dtype | None = None) -> None:
    """Raise unless `t`, if there is one, has the shape and device of `x`, and this dtype or one that vectors have."""
    if t is None:
        return
    if t.shape != x.shape or t.device != x.device:
        raise ValueError(f"{name} must have shape {list(x.shape)} on {x.device}, got {describe(t)}")
    if t.dtype != dtype if dtype is not None else t.dtype not in DTYPES:
        raise TypeError(f"{name} must be {dtype or 'float16, bfloat16, float32 or float64'}, got {t.dtype}")


class ChangedError(RuntimeError):
    """A tensor that was saved for the backward pass came back as another one."""

    def __init__(self, what: object) -> None:
        super().__init__(f"a tensor saved for backward came back changed, by a hook perhaps: {what}")


def check_saved(name: str, t: Tensor, dtype: torch.dtype, shape: torch.Size, device: torch.device) -> None:
    """Raise unless `t` is as it was saved. Its strides may differ."""
    if t.dtype != dtype or t.shape != shape or t.device != device:
        saved = f"{str(dtype).removeprefix('torch.')} {list(shape)} on {device}"
        raise ChangedError(f"{name} was {saved}, and is {describe(t)}")


# ---- projection ----


def _filled(x: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """The logits, with masked entries at -inf."""
    check_vectors("x", x, dim)
    check_beside("mask", mask, x, torch.bool)
    return x if mask is None else masked(x, mask)


def _output_like(x: Tensor, dim: int) -> Tensor:
    return _layout.output_like(*_layout.vectors(x, dim))


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` with -inf where `mask` is False."""
    for name, t in (("x", x), ("mask", mask)):
        check_memory(name, t)
    return x.masked_fill(~mask, -math.inf)


def state_like(x: Tensor, dim: int) -> Tensor:
    """The memory of a state."""
    return x.new_empty((2, *_layout.rest(x.shape, dim)), dtype=reference.wide_dtype(x.device))


def project_fake(
    x: Tensor, mask: Tensor | None, k_values: Tensor | None, k: float, tau_values: Tensor | None, tau: float, dim: int
) -> tuple[Tensor, Tensor]:
    return _output_like(_filled(x, mask, dim), dim), state_like(x, dim)


@_operator(
    "project(Tensor x, Tensor? mask, Tensor? k_values, float k, Tensor? tau_values, float tau, int dim)"
    " -> (Tensor y, Tensor state)",
    project_fake,
)
def project(
    x: Tensor, mask: Tensor | None, k_values: Tensor | None, k: float, tau_values: Tensor | None, tau: float, dim: int
) -> tuple[Tensor, Tensor]:
    """The projection of Eq. 4.3, like `x`, and its state."""
    x = _filled(x, mask, dim)
    check_values("k", k_values, x.shape[dim])
    check_temperatures(tau_values)
    x, call = placed(x, dim)
    if call is not None:
        state = call.new_state()
        return call.project(x, contiguous(k_values), k, contiguous(tau_values), tau, state), state
    y, state = _output_like(x, dim), state_like(x, dim)
    if x.numel() == 0:
        state[0], state[1] = math.inf, 0.0
        return y, state
    temperature = tau if tau_values is None else tau_values
    state.copy_(reference.threshold(x, k if k_values is None else k_values, temperature, dim))
    return y.copy_(reference.evaluate(x, state, temperature, dim)), state


def _jvp_fake(
    x: Tensor, mask: Tensor | None, v: Tensor, state: Tensor, tau_values: Tensor | None, tau: float, dim: int
) -> Tensor:
    check_given("v", v)
    check_beside("v", v, x)
    return _output_like(_filled(x, mask, dim), dim)


@_operator(
    "jvp(Tensor x, Tensor? mask, Tensor v, Tensor state, Tensor? tau_values, float tau, int dim) -> Tensor", _jvp_fake
)
def jvp(
    x: Tensor, mask: Tensor | None, v: Tensor, state: Tensor, tau_values: Tensor | None, tau: float, dim: int
) -> Tensor:
    """J v / tau, J = diag(1_A) - 1_A 1_A^T / |A|: the product with the Jacobian in x, and with its transpose."""
    return _multiply(x, mask, v, state, tau_values, tau, dim, None)


def _vjp_fake(
    x: Tensor, mask: Tensor | None, v: Tensor, state: Tensor, tau_values: Tensor | None, tau: float, dim: int
) -> tuple[Tensor, Tensor]:
    check_given("v", v)
    check_beside("v", v, x)
    return _output_like(_filled(x, mask, dim), dim), state_like(x, dim)


@_operator(
    "vjp(Tensor x, Tensor? mask, Tensor v, Tensor state, Tensor? tau_values, float tau, int dim)"
    " -> (Tensor out, Tensor sums)",
    _vjp_fake,
)
def vjp(
    x: Tensor, mask: Tensor | None, v: Tensor, state: Tensor, tau_values: Tensor | None, tau: float, dim: int
) -> tuple[Tensor, Tensor]:
    """`jvp`, and the gradients in k, mean_A(v), and in tau, -(1 / tau) sum_A (v - mean_A(v)) y: [2, *rest]."""
    check_vectors("x", x, dim)
    sums = state_like(x, dim)
    return _multiply(x, mask, v, state, tau_values, tau, dim, sums), sums


def _multiply(
    x: Tensor,
    mask: Tensor | None,
    v: Tensor,
    state: Tensor,
    tau_values: Tensor | None,
    tau: float,
    dim: int,
    sums: Tensor | None,  # to be filled
) -> Tensor:
    x = _filled(x, mask, dim)
    check_given("v", v)
    check_beside("v", v, x)
    x, call = placed(x, dim)
    if call is not None:
        return call.jvp(x, v, contiguous(state), contiguous(tau_values), tau, sums)
    out = _output_like(x, dim)
    if x.numel() == 0:
        if sums is not None:
            sums.zero_()
        return out
    product, row_sums = reference.jvp(x, v, state, tau if tau_values is None else tau_values, dim)
    if sums is not None:
        sums.copy_(row_sums)
    return out.copy_(product)


# ---- arguments ----


def check_values(name: str, values: Tensor | None, n: int | None = None) -> None:
    """Raise for numbers outside [0, n], or (0, inf), on the CPU; elsewhere that would wait for the device."""
    if values is None or values.device.type != "cpu":
        return
    check_memory(name, values)
    allowed = (values > 0) & (values < math.inf) if n is None else (values >= 0) & (values <= n)
    wrong = values[~allowed]
    if wrong.numel():
        interval = "(0, inf)" if n is None else f"[0, {n}]"
        raise ValueError(f"{name} must lie in {interval}, got {wrong.flatten()[0].item():g}")


def check_temperatures(values: Tensor | None) -> None:
    """Raise for temperatures that are not positive normal numbers, likewise."""
    if values is None or values.device.type != "cpu":
        return
    check_memory("tau", values)
    wrong = values[~reference.is_temperature(values)]
    if wrong.numel():
        tau = wrong.flatten()[0].item()
        if 0 < tau < math.inf:
            raise ValueError(f"tau must be a normal number, at least {reference.LEAST_TEMPERATURE:.4g}, got {tau:g}")
        raise ValueError(f"tau must lie in (0, inf), got {tau:g}")


# ---- batching rules: the new dimension goes in front, but behind the rows of a state ----


def _batched(t: Any, at: int | None, size: int, to: int) -> Any:
    """Move the batch dimension of a tensor to `to`, or make one there."""
    if not isinstance(t, Tensor):
        return t
    return t.movedim(at, to) if at is not None else t.unsqueeze(to).expand(*t.shape[:to], size, *t.shape[to:])


def _register_batching(operator: Callable[..., Any], name: str, state_at: int | None, out_dims: Any) -> None:
    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        *others, dim = (
            _batched(t, at, info.batch_size, int(i == state_at))
            for i, (t, at) in enumerate(zip(arguments, in_dims, strict=True))
        )
        return operator(*others, dim + 1), out_dims

    _register_rule(name, rule)


def register_batching_in_front(operator: Callable[..., Any], name: str, dim_at: int) -> None:
    """The rule of an operator of which everything has the new dimension in front; argument `dim_at` is its `dim`."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        batched = [_batched(t, at, info.batch_size, 0) for t, at in zip(arguments, in_dims, strict=True)]
        batched[dim_at] += 1
        output = operator(*batched)
        if isinstance(output, Tensor):
            return output, 0
        return output, tuple(0 if t.shape[0] == info.batch_size else None for t in output)  # not where one is unwanted

    _register_rule(name, rule)


def _register_rule(name: str, rule: Callable[..., Any]) -> None:
    torch.library.register_vmap(f"hypersimplex_ext::{name}", rule, lib=_LIBRARY)


_register_batching(project, "project", None, (0, 1))
_register_batching(jvp, "jvp", 3, 0)
_register_batching(vjp, "vjp", 3, (0, 1))
