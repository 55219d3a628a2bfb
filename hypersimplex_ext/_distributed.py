"""The projection and the loss over the processes of a group, of arguments as users give them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _checks, _loss, _ops, _shards
from ._arguments import loss_arguments, per_vector
from ._autograd import transforming
from ._backends import has_kernels
from ._calls import DTYPES
from ._eager import autocast
from ._shards import Shards


def _shards_of(group: Any, divisor: Any = None) -> Shards:
    if divisor is not None:
        divisor = _checks.positive("gradient_divisor", divisor, "a real number or None")
    shards = Shards(_shards.group_of(group), divisor)
    if transforming():
        raise NotImplementedError("group does not go with transforms of torch.func or forward-mode differentiation")
    return shards


def _check_device(input: Tensor) -> None:
    if not has_kernels(input.device) or input.device.type == "meta":
        raise NotImplementedError(f"group needs kernels, and there are none for device type '{input.device.type}'")


# What torch.compile would have to trace are decisions of a search; so it breaks the graph here, and says so if it may
# not.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def project_over(
    input: Tensor, k: float | Tensor, tau: float | Tensor, dim: int, mask: Tensor | None, solver: str, group: Any
) -> tuple[Tensor, Tensor]:
    """The shard of the projection of vectors whose entries are spread over processes, and its state."""
    shards = _shards_of(group)
    with shards.told(input):
        _checks.logits(input)
        _check_device(input)
        if solver != "threshold":
            raise ValueError(f"solver must be 'threshold' beside a group, got {solver!r}")
        dim = _checks.dimension(dim, input.ndim)
        input = autocast(input)
        k_values, k = per_vector("k", k, input, dim, math.inf)
        tau_values, tau = per_vector("tau", tau, input, dim)
        if mask is not None:
            input = _ops.masked(input, _checks.mask(mask, input))
        rows = input.movedim(dim, 0)
        shape, rows = rows.shape, rows.reshape(len(rows), math.prod(rows.shape[1:]))
        numbers = [t if t is None else t.reshape(-1) for t in (k_values, tau_values)]
        arguments = numbers[0], k, numbers[1], tau
        search = _shards.begin_projection(shards, rows, *arguments)
    given = [number if values is None else values for number, values in ((k, k_values), (tau, tau_values))]
    shards.agree(rows, len(rows), rows.shape[1], DTYPES[rows.dtype], *given, None, ())
    shards.check_mass(rows, given[0])
    y, state = _shards.project(shards, rows, *arguments, search)
    return y.reshape(shape).movedim(0, dim), state.view(2, *shape[1:])


@torch.compiler.disable  # type: ignore[untyped-decorator]
def loss_over(group: Any, divisor: Any, input: Tensor, target: Tensor, *settings: Any) -> tuple[Tensor, Any]:
    """The loss of the samples of all processes; `settings` are as in `loss_arguments`, up to the reduction."""
    shards = _shards_of(group, divisor)
    with shards.told(input):
        logits, arguments = loss_arguments(input, target, *settings, math.inf)  # type: ignore[call-arg]
        _check_device(logits)
        if logits.ndim > input.ndim:
            raise ValueError("input must have a dimension for the samples beside a group, got a single sample")
    return _loss.loss_over(shards, logits, arguments)
