"""The loss and its gradient as PyTorch sees them; see `_ops` for how operators are made."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import _layout
from ._backends import BACKENDS, Backend, backend_of, contiguous
from ._calls import DTYPES, expanded, maker, prepared
from ._enumerations import codes
from ._ops import _operator, check_given, check_temperatures, check_values, check_vectors, describe
from ._torch_private import direct

(STATE_ROWS,) = codes("LossState", "ROWS")  # p, d, mean, active, k, taking_part; one number follows, the scale

_LOSS_ARGUMENTS = (
    "Tensor x, Tensor target, Tensor? k_values, Tensor? tau_values, Tensor? weight, Tensor? sample_weight, float k,"
    " int mass_kind, float tau, int ignore_index, float label_smoothing, int kind, int reduction"
)


def _loss_forward_fake(x: Tensor, *_arguments: object) -> tuple[Tensor, Tensor]:
    check_vectors("x", x, 0)
    return x.new_empty(()), new_state(x)


@_operator(f"loss_forward({_LOSS_ARGUMENTS}) -> (Tensor loss, Tensor state)", _loss_forward_fake)
def loss_forward(x: Tensor, target: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """The loss, and what its backward needs: `STATE_ROWS` rows [C], then the scale."""
    loss, state = _loss_forward_fake(x)
    if x.numel() == 0:
        state.zero_()[: len(state) // STATE_ROWS] = math.inf
        return loss.fill_(math.nan if arguments[-1] == 0 else 0.0), state
    call, tensors = placed(x, state, target, *arguments)
    return call.forward(tensors), state


def _loss_backward_fake(grad: Tensor, state: Tensor, x: Tensor, *_arguments: object) -> Tensor:
    check_vectors("x", x, 0)
    return _layout.output_like(*_layout.samples(x))


@_operator(f"loss_backward(Tensor grad, Tensor state, {_LOSS_ARGUMENTS}) -> Tensor", _loss_backward_fake)
def loss_backward(grad: Tensor, state: Tensor, x: Tensor, target: Tensor, *arguments: Any) -> Tensor:
    """The gradient of the loss in `x`."""
    check_vectors("x", x, 0)
    if x.numel() == 0:
        return _loss_backward_fake(grad, state, x)
    call, tensors = placed(x, contiguous(state), target, *arguments)
    return call.backward(grad, tensors)


def placed(x: Tensor, state: Tensor | None, target: Tensor, *arguments: Any) -> tuple[LossCall, LossTensors]:
    """The call, and its tensors where it wants them; logits and targets are copied where d... does not collapse."""
    check_given("target", target)
    if target.shape not in (x.shape, x.shape[:1] + x.shape[2:]):
        raise ValueError(f"target does not go with x, {describe(x)}: it is {describe(target)}")
    others, settings = map(contiguous, arguments[:4]), arguments[4:]
    call = loss_call(x, target, settings)
    if call is None:
        x, target = _layout.batch(x, target)
        call = loss_call(x, target, settings)
        assert call is not None
    return call, (x, state, target, *others)


def new_state(x: Tensor) -> Tensor:
    """The memory of the state of a loss or projection of the columns of `x`."""
    return x.new_empty(STATE_ROWS * (x.shape[1] if x.ndim > 1 else 1) + 1, dtype=torch.float64)


def loss_call(x: Tensor, target: Tensor, settings: tuple[Any, ...]) -> LossCall | None:
    """What calls with this signature share; None where d... does not collapse."""
    backend, kinds = backend_of(x.device), tuple(map(type, settings))
    places = x.shape, x.stride(), target.shape, target.stride()
    return prepared(_loss_call, backend, x.dtype, x.device, *places, kinds, settings)


def thresholds_of(state: Tensor) -> Tensor:
    """The thresholds [C] in the state of a loss."""
    p, d, *_ = state[:-1].view(STATE_ROWS, -1)
    threshold: Tensor = p + d
    return threshold


def numbers_of_entries(state: Tensor) -> tuple[Tensor, Tensor]:
    """How many entries of each class are active, and how many take part: [C] each."""
    _, _, _, active, _, taking_part = state[:-1].view(STATE_ROWS, -1)
    return active, taking_part


def state_of(thresholds: Tensor, active: Tensor, taking_part: Tensor) -> Tensor:
    """A state that tells no more than this: thresholds [C], or p and d [2, C], and numbers of entries [C]."""
    parts = thresholds if thresholds.ndim > 1 else torch.stack((thresholds, torch.zeros_like(thresholds)))
    others = torch.zeros_like(parts[0])
    return torch.cat((parts.flatten(), others, active, others, taking_part, others[:1]))


def average_thresholds(state: Tensor, average: Tensor, batches: Tensor, momentum: float | None) -> None:
    """Move an average [C] towards the finite ones of the thresholds of a loss; `batches` [C] counts them.

    Of b batches the last one's share is max(momentum, 1 / b); of a momentum of None the plain average comes.
    """
    backend = BACKENDS.get(state.device.type)
    if backend is not None and direct(state, average, batches) and average.device == state.device:
        backend.call(backend.kernels.average_thresholds, state.device, state, average, batches, momentum or 0.0)
        increment_version((average, batches))
        return
    threshold = thresholds_of(state)
    finite = threshold.isfinite()
    batches.add_(finite)
    share = batches.to(threshold.dtype).reciprocal().clamp(momentum, 1)
    average.copy_(torch.where(finite, average + share * (threshold - average), average))


# x, state, target, k_values, tau_values, weight, sample_weight: x has entries, all behind the target are contiguous.
LossTensors = tuple[Tensor | None, ...]


class LossCall(NamedTuple):
    """What calls of one signature share."""

    backend: Backend
    kernels: Any  # LossCall of csrc/bindings.cpp
    shapes: tuple[torch.Size, torch.Size]  # of logits and targets
    strides: tuple[tuple[int, ...], tuple[int, ...]]
    samples: int
    device: torch.device
    loss: Tensor  # what the results are like, but on the CPU
    state: Tensor
    new_loss: Callable[[], Tensor]  # their memory
    new_state: Callable[[], Tensor]
    grad_format: torch.memory_format
    settings: tuple[Any, ...]
    target_dtype: torch.dtype

    def forward(self, tensors: LossTensors) -> Tensor:
        """The loss; the state is filled."""
        if tensors[3] is not None:
            check_values("k", tensors[3], self.samples)
        if tensors[4] is not None:
            check_temperatures(tensors[4])
        loss = self.new_loss()
        self.backend.call(self.kernels.forward, self.device, tensors, loss)
        return loss

    def backward(self, grad: Tensor, tensors: LossTensors, out: Tensor | None = None) -> Tensor:
        """The gradient in `x`, in memory with its shape and dtype if some is given."""
        x: Any = tensors[0]
        if out is None:
            out = torch.empty_like(x, memory_format=self.grad_format)
        self.backend.call(self.kernels.backward, x.device, tensors, grad, out)
        return out


def _loss_call(
    backend: Backend | None,
    dtype: torch.dtype,
    device: torch.device,
    shape: torch.Size,
    strides: tuple[int, ...],
    target_shape: torch.Size,
    target_strides: tuple[int, ...],
    _: tuple[type, ...],
    settings: tuple[Any, ...],
) -> LossCall | None:
    assert backend is not None  # without kernels the loss is composed of the operators above
    places = _layout.places(shape, strides, target_shape, target_strides)
    if places.strides is None or places.target_strides is None:
        return None
    x = torch.empty_strided(shape, strides, device="meta")
    grad_format = _layout.result_format(x, places.samples)
    results = _loss_forward_fake(torch.empty((0, *shape[1:]), dtype=dtype, device="meta"))
    loss, state = (expanded(tuple(t.shape), t.dtype) for t in results)
    return LossCall(
        backend,
        backend.kernels.LossCall(DTYPES[dtype], device.type, device.index or 0, shape, places.dense, *settings),
        (shape, target_shape),
        (strides, target_strides),
        math.prod(places.samples.shape[2:]),
        device,
        loss,
        state,
        maker(loss, device),
        maker(state, device),
        grad_format,
        settings,
        dtype if places.dense else torch.int64,
    )
