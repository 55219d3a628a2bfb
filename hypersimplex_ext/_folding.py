"""Thresholds and temperatures moved into the layer that makes the logits: out' = (out - shift) / scale, class by class.

The layer has to be one of which this is known to hold: its output is linear in weight and bias together, and these are
its parameters, not results of something that would compute them anew.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import reference
from ._torch_private import makers_of

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)

Change = tuple[Tensor, Tensor]  # a tensor, and what is to be written to it


def fold(layer: Any, classes: int, shift: Tensor, scale: Tensor | None, others: list[Change]) -> None:
    """Fold shift [C] and, unless it is None, scale [C] into a layer, and write the others: all, or nothing on error.

    Raises:
        TypeError: The layer is not one that can be folded into; the message names what stands against it.
        ValueError: Its number of outputs is not C, or the result is out of the range of its dtype.
    """
    _check(layer, classes)
    weight = layer.weight
    bias = _parameter(layer, "bias", (classes,)) if layer.bias is not None else None
    wide = reference.wide_dtype(weight.device)
    shift = shift.to(weight.device, wide)
    offset = -shift if bias is None else bias.to(wide) - shift
    changes = list(others)
    if scale is not None:
        scale = scale.to(weight.device, wide)
        offset = offset / scale
        weight = _parameter(layer, "weight", _weight_shape(layer, classes))
        changes.append((weight, _divided(layer, weight.to(wide), scale).to(weight.dtype)))
    made = bias
    if made is None:
        trained = any(p.requires_grad for p in layer.parameters())
        made = nn.Parameter(torch.zeros_like(offset, dtype=weight.dtype), requires_grad=trained)
    changes.append((made, offset.to(made.dtype)))
    for tensor, value in changes:
        if (tensor.isfinite() & ~value.isfinite()).any():
            raise ValueError(f"linear cannot hold the result of folding in {tensor.dtype}: it is not finite")
    _write(changes)
    if bias is None:
        layer.bias = made


def _check(layer: Any, classes: int) -> None:
    known = next((kind for kind in _LAYERS if isinstance(layer, kind)), None)
    if known is None or getattr(layer.forward, "__func__", None) is not known.forward:
        kinds = ", ".join(kind.__name__ for kind in _LAYERS)
        raise TypeError(
            f"linear must be a layer with weight and bias and the forward of {kinds}, got {type(layer).__name__}"
        )
    if nn.parameter.is_lazy(layer.weight):
        raise TypeError("linear must have been called once: it does not know the shape of its weight yet")
    outputs = getattr(layer, "out_features", None) or layer.out_channels
    if outputs != classes:
        raise ValueError(f"linear must have {classes} outputs, got weight of shape {list(layer.weight.shape)}")
    for tensor in (layer.weight, layer.bias):
        if tensor is not None and tensor.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"linear must be float32 or float64, as {tensor.dtype} would round the thresholds")


def _parameter(layer: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    """The parameter, unless it is computed from others before each call, sharded or of a kind of its own."""
    value = dict(layer.named_parameters(recurse=False, remove_duplicate=False)).get(name)
    if value is None:
        if parametrize.is_parametrized(layer, name):
            makers = list(layer.parametrizations[name])
        else:  # weight_norm, spectral_norm and pruning of torch.nn.utils
            makers = makers_of(layer, name)
        by = ", ".join(type(maker).__name__ for maker in makers) or "something else"
        raise TypeError(f"linear must have {name} as a parameter, but {by} computes it: remove that first")
    if type(value) is not nn.Parameter or value.shape != shape:
        raise TypeError(
            f"linear must have {name} as a plain parameter of shape {list(shape)}, got {type(value).__name__} of shape "
            f"{list(value.shape)}"
        )
    return value


def _weight_shape(layer: Any, classes: int) -> tuple[int, ...]:
    if isinstance(layer, _TRANSPOSED):
        return layer.in_channels, classes // layer.groups, *layer.kernel_size
    return classes, *layer.weight.shape[1:]


def _divided(layer: Any, weight: Tensor, scale: Tensor) -> Tensor:
    """The weight, divided for each class by its scale."""
    if isinstance(layer, _TRANSPOSED):  # [in, C / groups, ...], where the first of the inputs make the first classes
        groups = layer.groups, layer.in_channels // layer.groups, layer.out_channels // layer.groups
        rest = math.prod(layer.kernel_size)
        return (weight.reshape(*groups, rest) / scale.reshape(groups[0], 1, groups[2], 1)).reshape(weight.shape)
    return weight / scale.reshape(-1, *(1,) * (weight.ndim - 1))


def _write(changes: list[Change]) -> None:
    written: list[Change] = []  # and what was there before
    try:
        for tensor, value in changes:
            before = tensor.clone()
            tensor.copy_(value)
            written.append((tensor, before))
    except BaseException:
        for tensor, before in written:
            tensor.copy_(before)
        raise
