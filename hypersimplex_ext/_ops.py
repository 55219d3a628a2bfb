"""The operators as PyTorch sees them: schema, shapes for tracing, batching rule, allocation, call into the kernels.

What there is one of per vector has the shape of `x` without dimension `dim`, here [*rest]: k_values and tau_values are
float64 [*rest], the state of a projection is float64 [2, *rest]. `mask` has the shape of `x`, `dim` is not negative.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _dispatch_keys as dispatch_keys
from torch._C import _dispatch_tls_local_include_set as keys_in_place
from torch.compiler import is_dynamo_compiling

from . import _backends, _layout, reference
from ._backends import DENSE, MATTERING, Backend, backend_of, check_memory, contiguous
from ._layout import Vectors

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

_LIBRARY = torch.library.Library("hypersimplex_ext", "DEF")  # type: ignore[no-untyped-call]


def register_derivative(name: str, backward: Callable[..., Any], save: Callable[..., Any]) -> None:
    """Differentiate an operator by `backward` where it is called as such: by what torch.compile makes, above all."""
    torch.library.register_autograd(f"hypersimplex_ext::{name}", backward, setup_context=save, lib=_LIBRARY)


# What is always in place: without any mode or transform, and in inference mode.
_ALWAYS = torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect)
_IDLE = {keys.raw_repr() for keys in (_ALWAYS, _ALWAYS.add(torch._C.DispatchKey.ADInplaceOrView))}

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
        types = [argument.type for argument in overload._schema.arguments]
        tensors = 1 + max(i for i, kind in enumerate(types) if "Tensor" in str(kind))  # none follows these

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


def direct(*tensors: Tensor) -> bool:
    """Whether nothing but autograd comes before the kernels: no tracing, mode, transform, subclass or lazy negation."""
    if is_dynamo_compiling() or keys_in_place().raw_repr() not in _IDLE:
        return False
    for t in tensors:  # noqa: SIM110  # is_plain of each, faster
        if dispatch_keys(t).raw_repr() & MATTERING not in DENSE:
            return False
    return True


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


def _filled(x: Tensor, mask: Tensor | None, dim: int) -> tuple[Tensor, Vectors]:
    """The logits, with masked entries at -inf, in strides that kernels take, and their layout."""
    check_vectors("x", x, dim)
    check_beside("mask", mask, x, torch.bool)
    if mask is not None:
        x = masked(x, mask)
    return _layout.vectors(x, dim)


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` with -inf where `mask` is False."""
    for name, t in (("x", x), ("mask", mask)):
        check_memory(name, t)
    return x.masked_fill(~mask, -math.inf)


def _state_like(x: Tensor, dim: int) -> Tensor:
    return x.new_empty((2, *_layout.rest(x.shape, dim)), dtype=reference.wide_dtype(x.device))


def threshold_fake(
    x: Tensor, mask: Tensor | None, k_values: Tensor | None, k: float, tau_values: Tensor | None, tau: float, dim: int
) -> tuple[Tensor, Tensor]:
    return _layout.output_like(*_filled(x, mask, dim)), _state_like(x, dim)


@_operator(
    "threshold(Tensor x, Tensor? mask, Tensor? k_values, float k, Tensor? tau_values, float tau, int dim)"
    " -> (Tensor y, Tensor state)",
    threshold_fake,
)
def threshold(
    x: Tensor, mask: Tensor | None, k_values: Tensor | None, k: float, tau_values: Tensor | None, tau: float, dim: int
) -> tuple[Tensor, Tensor]:
    """The projection of Eq. 4.3, like `x`, and its state."""
    x, layout = _filled(x, mask, dim)
    check_values("k", k_values, x.shape[dim])
    check_temperatures(tau_values)
    call = projection_call(x, dim)
    if call is not None:
        state = call.new_state()
        return call.threshold(x, contiguous(k_values), k, contiguous(tau_values), tau, state), state
    y, state = _layout.output_like(x, layout), _state_like(x, dim)
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
    return _layout.output_like(*_filled(x, mask, dim))


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
    return _layout.output_like(*_filled(x, mask, dim)), _state_like(x, dim)


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
    sums = _state_like(x, dim)
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
    x, layout = _filled(x, mask, dim)
    check_given("v", v)
    check_beside("v", v, x)
    call = projection_call(x, dim)
    if call is not None:
        return call.jvp(x, v, contiguous(state), contiguous(tau_values), tau, sums)
    out = _layout.output_like(x, layout)
    if x.numel() == 0:
        if sums is not None:
            sums.zero_()
        return out
    product, row_sums = reference.jvp(x, v, state, tau if tau_values is None else tau_values, dim)
    if sums is not None:
        sums.copy_(row_sums)
    return out.copy_(product)


def projection_call(x: Tensor, dim: int) -> ProjectionCall | None:
    """What projections of tensors like this share; None without kernels, entries, or strides that kernels take."""
    return _projection_calls(backend_of(x.device), x.dtype, x.device, x.shape, x.stride(), dim)


class ProjectionCall(NamedTuple):
    """What calls of one layout share. All tensors but x and v are contiguous."""

    backend: Backend
    kernels: Any  # ProjectionCall of csrc/bindings.cpp
    layout: Vectors
    strides: tuple[int, ...]  # of x
    result_format: torch.memory_format
    new_state: Callable[[], Tensor]  # the memory of one

    def threshold(
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
        v = self.layout.fitted(v)
        out = torch.empty_like(x, memory_format=self.result_format)
        self.backend.call(self.kernels.jvp, x.device, x, v, state, tau_values, tau, out, sums)
        return out


@functools.lru_cache(maxsize=1024)
def expanded(sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What tensors of this shape are like, but for their strides: one number, which all calls of these sizes share.

    Never on a GPU: first made while a graph is captured, it would lie in the memory of that graph.
    """
    return torch.empty((), dtype=dtype, device="cpu").expand(sizes)


def maker(like: Tensor, device: torch.device) -> Callable[[], Tensor]:
    """What makes contiguous tensors that hold nothing yet, in half the time of Tensor.new_empty."""
    make = functools.partial(torch.empty_like, like, memory_format=torch.contiguous_format)
    return make if device.type == "cpu" else functools.partial(make, device=device)


@functools.lru_cache(maxsize=1024, typed=True)
def _projection_calls(
    backend: Backend | None,
    dtype: torch.dtype,
    device: torch.device,
    shape: torch.Size,
    strides: tuple[int, ...],
    dim: int,
) -> ProjectionCall | None:
    x = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    fitting, layout = _layout.vectors(x, dim)
    if backend is None or fitting is not x or x.numel() == 0:
        return None
    result_format = _layout.result_format(x, layout)
    return ProjectionCall(
        backend,
        backend.kernels.ProjectionCall(DTYPES[dtype], device.type, device.index or 0, shape, dim, layout.cut),
        layout,
        strides,
        result_format,
        maker(expanded((2, *_layout.rest(shape, dim)), reference.wide_dtype(device)), device),
    )


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


_register_batching(threshold, "threshold", None, (0, 1))
_register_batching(jvp, "jvp", 3, 0)
_register_batching(vjp, "vjp", 3, (0, 1))
