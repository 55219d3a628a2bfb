"""What the projection and the loss are called with, checked, in the form in which they are computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import _checks, _layout
from ._autograd import steady
from ._eager import autocast
from ._enumerations import codes

SQUARED, FENCHEL_YOUNG = codes("LossKind", "SQUARED", "FENCHEL_YOUNG")
MEAN, SUM = codes("Reduction", "MEAN", "SUM")
NONE = 1 + max(MEAN, SUM)  # composed only
VALUE, TARGETS, FRACTION = codes("MassKind", "VALUE", "TARGETS", "FRACTION")


class Arguments(NamedTuple):
    """What the loss takes beside the logits [N, C, d...] or [N], in the order of the operators."""

    target: Tensor  # class indices [N, d...] int64, or dense like the logits
    k_values: Tensor | None  # [C] float64
    tau_values: Tensor | None  # [C] float64
    weight: Tensor | None  # [C] float64
    sample_weight: Tensor | None  # [N, d...] float64
    k: float
    mass_kind: int
    tau: float
    ignore_index: int
    label_smoothing: float
    kind: int
    reduction: int


TENSORS = 5  # the first of the arguments


def tensors(a: Arguments) -> tuple[Tensor | None, ...]:
    """The first `TENSORS` by name, as torch.compile of PyTorch 2.6 cannot take a slice."""
    return a.target, a.k_values, a.tau_values, a.weight, a.sample_weight


# The state of a loss, as `_loss_ops.loss_forward` leaves it.
Statistics = Callable[[], Tensor]

KINDS = {"squared": SQUARED, "fenchel_young": FENCHEL_YOUNG}
REDUCTIONS = {"mean": MEAN, "sum": SUM, "none": NONE}


def per_vector(
    name: str, value: float | Tensor, input: Tensor, dim: int, n: float | None = None
) -> tuple[Tensor | None, float]:
    """A temperature per vector or, with `n`, a mass in [0, n], or one number for all."""
    value = steady(value, input)
    if isinstance(value, Tensor):
        shape = _layout.rest(input.shape, dim)
        return _checks.per_vector(name, value, input, shape, f"the shape of input without dimension {dim}"), 0.0
    return None, _checks.temperature(value) if n is None else _checks.mass(value, n)


def loss_arguments(
    input: Tensor,
    target: Tensor,
    k: float | Tensor | Literal["targets"],
    tau: float | Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    kind: str,
    reduction: str,
    samples: float | None = None,
) -> tuple[Tensor, Arguments]:
    """The logits to compute with, and everything else that the loss takes; of `samples` where these are not all."""
    input, target = _checks.labelled(input, target)
    input = autocast(input)
    target = _checks.target(target, input)
    classes = input.shape[1] if input.ndim > 1 else 1
    k_values, k, mass_kind = _loss_mass(k, input, classes, samples)
    tau_values = None
    tau = steady(tau, input)
    if isinstance(tau, Tensor):
        tau_values, tau = _checks.per_vector("tau", tau, input, (classes,), "the number of classes"), 0.0
    else:
        tau = _checks.temperature(tau)
    if weight is not None:
        weight = _checks.weight("weight", weight, input, (classes,))
    if sample_weight is not None:
        sample_weight = _checks.weight("sample_weight", sample_weight, input, _checks.sample_shape(input))
    arguments = Arguments(
        target,
        k_values,
        tau_values,
        weight,
        sample_weight,
        k,
        mass_kind,
        tau,
        _checks.integer("ignore_index", ignore_index),
        _checks.fraction("label_smoothing", label_smoothing),
        _checks.choice("kind", kind, KINDS),
        _checks.choice("reduction", reduction, REDUCTIONS),
    )
    return input, arguments


def _loss_mass(
    k: float | Tensor | Literal["targets"], input: Tensor, classes: int, samples: float | None
) -> tuple[Tensor | None, float, int]:
    """`k` as (numbers per class or None, number, the kind of mass)."""
    if isinstance(k, str):
        _checks.choice("k", k, {"targets": TARGETS})
        return None, 0.0, TARGETS
    if isinstance(k, Tensor):
        return _checks.per_vector("k", k, input, (classes,), "the number of classes"), 0.0, VALUE
    k = _checks.number("k", k, "a real number, a Tensor or 'targets'")
    if isinstance(k, (int, torch.SymInt)):
        samples = math.prod(_checks.sample_shape(input)) if samples is None else samples
        return None, _checks.mass(k, samples), VALUE
    return None, _checks.fraction("k", k), FRACTION
