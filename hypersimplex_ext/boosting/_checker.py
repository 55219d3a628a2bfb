"""Gradient and Hessian of an objective against finite differences, on the data that it is meant for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import functional
from . import _arrays
from ._arrays import Array
from ._objective import Objective

_STEP = 1e-5


class Differences(NamedTuple):
    """By how much derivatives are off, relative to the largest, and what was looked at."""

    gradient: float
    hessian: float
    entries: int  # that were checked
    skipped: int  # at a kink, where there is no derivative
    held: int  # Hessians above the second derivative, as a floor or a bound has it


def check_objective(
    objective: Callable[..., Any],
    labels: Any,
    margins: Any,
    sample_weight: Any = None,
    *,
    loss: Callable[..., float] | None = None,
    entries: int = 64,
    scale: float | None = None,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Differences:
    """Compare what an objective returns with central differences, at some entries drawn at random.

    It serves any objective `f(labels, margins)` or `f(labels, margins, sample_weight)`, these of this package and your
    own, for any number of classes. A batch-coupled loss has a Hessian that is not diagonal; its diagonal is compared.

    Args:
        objective: :class:`Objective`, or a function that returns gradient and Hessian in the shape of the margins.
        labels: [n], as training hands them over.
        margins: [n] or [n, C]. They are taken as float64. Those of a model in training tell more than zeros do.
        sample_weight: [n], or None.
        loss: The sum that is minimised, `loss(labels, margins)` or with weights, to compare the gradient with. For an
            :class:`Objective` it is known; without one, the gradient is not checked.
        entries: How many margins to look at.
        scale: Of the margins, of which a step is a small part. None: `tau`, or 1.
        tolerance: Of differences, relative to the largest gradient or Hessian among these entries.
        seed: Of the draw.

    Returns:
        The differences. Entries with a kink within a step are skipped. A Hessian that lies above the second derivative
        counts as held up by a floor or a bound, and no error.

    Raises:
        AssertionError: Shapes differ, a gradient is off, or a Hessian lies below the second derivative or is not
            positive (0 is right where the gradient is 0); it names the entry.

    Example:
        >>> y, x = np.arange(40) % 2, np.linspace(-1, 1, 40)
        >>> found = check_objective(Objective(tau=0.5), y, x)
        >>> found.gradient < 1e-6, found.entries
        (True, 40)
    """
    x = np.array(margins, np.float64, order="K")
    weights = () if sample_weight is None else (np.asarray(sample_weight),)
    if isinstance(objective, Objective):
        loss = loss or _loss_of(objective)
        scale = scale or objective.tau
    gradient, hessian = (np.asarray(part) for part in objective(labels, x, *weights))
    for name, part in (("gradient", gradient), ("Hessian", hessian)):
        _require(
            part.shape == x.shape, f"the {name} must have the shape of the margins {list(x.shape)}, got {part.shape}"
        )
        _require(np.isfinite(part).all(), f"the {name} must be finite")
    chosen = np.random.default_rng(seed).choice(x.size, min(entries, x.size), replace=False)
    places = [tuple(int(i) for i in np.unravel_index(place, x.shape)) for place in chosen]
    step = _STEP * (scale or 1.0)
    largest = max(float(abs(gradient[place])) for place in places) or 1.0
    found, steepest, skipped = [], 0.0, 0
    for place in places:
        sides = [_moved(x, place, h) for h in (-step, step)]
        below, above = (float(np.asarray(objective(labels, side, *weights)[0])[place]) for side in sides)
        middle = float(gradient[place])
        if abs(above - 2 * middle + below) > tolerance * _STEP * largest + 0.01 * abs(above - below):
            skipped += 1
            continue
        second = (above - below) / (2 * step)
        first = middle
        if loss is not None:
            low, high = (float(loss(labels, side, *weights)) for side in sides)
            first = (high - low) / (2 * step)
        found.append((place, middle, first, float(hessian[place]), second))
        steepest = max(steepest, abs(second), abs(float(hessian[place])))
    return _judged(found, largest, steepest or 1.0, skipped, tolerance)


def _judged(
    found: list[tuple[tuple[int, ...], float, float, float, float]],
    largest: float,
    steepest: float,
    skipped: int,
    tolerance: float,
) -> Differences:
    off, low, held = 0.0, 0.0, 0
    for place, gradient, first, hessian, second in found:
        at = f"at sample {place[0]}" + "".join(f", class {c}" for c in place[1:])
        error = float(abs(gradient - first) / largest)
        _require(error <= tolerance, f"the gradient {at} must be {first:.7g}, got {gradient:.7g}")
        missing = (second - hessian) / steepest
        _require(missing <= tolerance, f"the Hessian {at} must be at least {second:.7g}, got {hessian:.7g}")
        idle = gradient == hessian == 0  # as of a sample without weight
        _require(hessian > 0 or idle, f"the Hessian {at} must be positive, got {hessian:.7g}")
        held += missing < -tolerance
        off, low = max(off, error), max(low, abs(missing) if missing >= -tolerance else 0.0)
    return Differences(off, low, len(found), skipped, held)


def _moved(x: Array, place: tuple[int, ...], by: float) -> Array:
    moved: Array = x.copy(order="K")
    moved[place] += by
    return moved


def _loss_of(objective: Objective) -> Callable[..., float]:
    """The sum that an objective differentiates."""

    def total(labels: Any, margins: Any, sample_weight: Any = None) -> float:
        x = _arrays.margins(margins)
        weight, settings = _arrays.weights(sample_weight, x), objective.settings
        value = functional.hypersimplex_loss(
            x, _arrays.labels(labels, x), settings.k, settings.tau, kind=settings.kind, sample_weight=weight,
            reduction="sum", weighted_mass=True,
        )  # fmt: skip
        return value.item()

    return total


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise AssertionError(message)
