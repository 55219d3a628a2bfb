"""The projection and the loss of PyTorch's distributed tensors.

Each process computes with its part: over the mesh where the vectors, or the samples, are what is spread; alone where
each process has vectors, or classes, of its own.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from . import _checks, functional
from ._loss_ops import STATE_ROWS
from ._shards import Shards


def is_distributed(t: Any) -> bool:
    """Whether this is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def _placement(input: Any, group: Any) -> Any:
    """How a DTensor lies over its mesh, which has one dimension."""
    if group is not None:
        raise ValueError("group must be None for a DTensor, which lies on a mesh of its own")
    if input.device_mesh.ndim != 1:
        raise ValueError(f"input must lie on a mesh of one dimension, got {input.device_mesh.ndim}")
    (placement,) = input.placements
    if not (placement.is_shard() or placement.is_replicate()):
        raise ValueError(f"input must be placed as Shard or Replicate, got {placement}")
    return placement


def _local(name: str, t: Any, placement: Any) -> Any:
    """This process's part of a tensor that goes with the logits; what is no DTensor is that part."""
    if not is_distributed(t):
        return t
    if tuple(t.placements) != (placement,):
        raise ValueError(f"{name} must be placed as {placement}, or be no DTensor, got {t.placements}")
    return t.to_local()


def _like(input: Any, t: Tensor, placement: Any) -> Any:
    """A DTensor of these parts, in the shape of `input`."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        t, input.device_mesh, [placement], run_check=False, shape=input.shape, stride=input.stride()
    )


def _number(input: Any, value: Tensor) -> Any:
    """A DTensor of a number that every process has."""
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(value, input.device_mesh, [Replicate()], run_check=False)


def project(input: Any, k: Any, tau: Any, dim: int, mask: Any, solver: str, group: Any) -> tuple[Tensor, Tensor]:
    """The projection, a DTensor like `input`, and the state of this process's vectors."""
    placement = _placement(input, group)
    dim = _checks.dimension(dim, input.ndim)
    local, mask = input.to_local(), _local("mask", mask, placement)
    if placement.is_shard() and not placement.is_shard(dim):
        for name, value in (("k", k), ("tau", tau)):
            if isinstance(value, Tensor) and value.numel() > 1:
                raise ValueError(f"{name} must be one number for an input placed as {placement}, got {value.numel()}")
    over = input.device_mesh if placement.is_shard(dim) else None
    y, state = functional.projection_and_state(local, k, tau, dim, mask, solver, over, True)
    assert state is not None
    return _like(input, y, placement), state


def loss(divisor: Any, group: Any, input: Any, target: Any, *settings: Any) -> tuple[Tensor, Any]:
    """The loss of all samples, a replicated DTensor or, without a reduction, one like `input`.

    `settings` are those of `functional.loss_and_statistics`, from k to the reduction. The gradient in `input` is that
    of one process: the default of `divisor` is 1.
    """
    placement = _placement(input, group)
    divisor = 1 if divisor is None else divisor
    k, tau, kind, weight, sample_weight, ignore_index, label_smoothing, reduction = settings
    over = None
    if placement.is_shard(1) and input.ndim > 1:
        value, statistics = _over_classes(input, divisor, target, *settings)
    else:
        if placement.is_shard():
            if not placement.is_shard(0):
                raise ValueError(f"input must be placed as Shard(0), Shard(1) or Replicate, got {placement}")
            over = input.device_mesh
        target, sample_weight = _local("target", target, placement), _local("sample_weight", sample_weight, placement)
        value, statistics = functional.loss_and_statistics(
            input.to_local(), target, k, tau, kind, weight, sample_weight, ignore_index, label_smoothing, reduction,
            group=over, gradient_divisor=divisor,
        )  # fmt: skip
    return (_like(input, value, placement) if reduction == "none" else _number(input, value)), statistics


_IGNORED = -100  # of dense targets


def _over_classes(input: Any, divisor: float, target: Any, *settings: Any) -> tuple[Tensor, Any]:
    """The loss of classes that are spread over processes: each class is one process's own, and only sums are exchanged.

    Class indices become dense targets of this process's classes, in as much memory as its logits take.
    """
    from torch.distributed.tensor import Replicate

    k, tau, kind, weight, sample_weight, ignore_index, label_smoothing, reduction = settings
    shards = Shards(input.device_mesh.get_group(), divisor)
    local, classes = input.to_local(), input.shape[1]
    each = -(-classes // shards.size)  # as DTensor cuts
    own = slice(min(each * shards.rank, classes), min(each * (shards.rank + 1), classes))
    if is_distributed(target) and target.placements == input.placements:
        dense = target.to_local()
        valid = dense != ignore_index
    else:
        target = _local("target", target, Replicate())
        valid = target != ignore_index
        if target.shape == input.shape:
            dense, valid = target[:, own], valid[:, own]
        else:
            if ((target < 0) | (target >= classes))[valid].any():
                raise IndexError(f"target must lie in [0, {classes}), got class indices beyond")
            numbers = torch.arange(own.start, own.stop, device=local.device).reshape(-1, *(1,) * (target.ndim - 1))
            dense, valid = target.unsqueeze(1) == numbers, valid.unsqueeze(1).expand(local.shape)
    eps = _checks.fraction("label_smoothing", label_smoothing)
    dense = torch.where(valid, (1 - eps) * dense.to(local.dtype) + eps / max(classes, 2), _IGNORED)
    k, tau, weight = (t[own] if isinstance(t, Tensor) and t.numel() == classes > 1 else t for t in (k, tau, weight))
    part = "none" if reduction == "none" else "sum"
    state = torch.zeros(0, dtype=torch.float64)
    if local.shape[1] == 0:
        value = local.sum() if part == "sum" else local
    else:
        value, statistics = functional.loss_and_statistics(
            local, dense, k, tau, kind, weight, sample_weight, _IGNORED, 0.0, part
        )
        state = statistics()

    def of_all_classes() -> Tensor:
        rows = torch.zeros(STATE_ROWS, classes, dtype=torch.float64, device=local.device)
        rows[:, own] = state[: STATE_ROWS * local.shape[1]].view(STATE_ROWS, -1)
        return torch.nn.functional.pad(shards.add(rows).flatten(), (0, 1))

    if reduction == "none":
        return value, of_all_classes
    value = shards.total(value)
    if reduction == "mean":
        importance = valid.double()
        if sample_weight is not None:
            importance = torch.where(valid, sample_weight.double().unsqueeze(1), 0.0)
        if weight is not None:
            importance = importance * weight.double().reshape(-1, *(1,) * (local.ndim - 2))
        value = value / shards.add(importance.sum()).to(value.dtype)
    return value, of_all_classes
