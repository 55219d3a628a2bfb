"""What the two classifiers share: settings, metrics by name, and what follows from scores."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ._arrays import Array
from ._objective import Objective

SETTINGS = ("kind", "tau", "k", "hessian", "floor")
_ERRORS = ("error", "binary_error", "multi_error", "merror")


def _sklearn(utility: str) -> Any:
    return importlib.import_module(f"sklearn.utils.{utility}")


def objective_of(estimator: Any) -> Objective:
    """The objective of an estimator's settings."""
    return Objective(**{name: getattr(estimator, name) for name in SETTINGS}, threads=threads_of(estimator.n_jobs))


def threads_of(n_jobs: int | None) -> int | None:
    """How many threads `n_jobs` allows, as joblib counts; None where it leaves that to the library."""
    if not n_jobs:
        return None
    return n_jobs if n_jobs > 0 else max((os.cpu_count() or 1) + 1 + n_jobs, 1)


def refuse_objective(parameters: dict[str, Any]) -> None:
    """Raise for an objective, by any name that LightGBM has for it: it is what the settings say."""
    for name in ("objective", "objective_type", "app", "application", "loss"):
        if name in parameters:
            raise TypeError(f"{name} must be left alone: {', '.join(SETTINGS)} say which objective it is")


def check_labels(y: Any) -> None:
    """Raise for a nan and for one class alone. All else is checked by those who encode labels."""
    labels = _column(y)
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError("y must be labels, got NaN or infinity")
    if labels.ndim == 1 and len(labels) and (labels == labels[0]).all():
        raise ValueError(f"y must have at least two classes, got one class: {labels[0]!r}")


def flat(y: Any) -> Array:
    """Labels [n].

    Raises:
        ValueError: They are no classes, or have more than one dimension.
    """
    labels: Array = _sklearn("validation").column_or_1d(y, warn=True)
    _sklearn("multiclass").check_classification_targets(labels)
    return labels


def _column(y: Any) -> Array:
    labels = np.asarray(y)
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def encoded(y: Any, classes: Array) -> Any:
    """Labels, or a tuple of some for each evaluation set, as indices of classes.

    Raises:
        ValueError: A label is none of the classes.
    """
    if isinstance(y, tuple):
        return tuple(encoded(one, classes) for one in y)
    labels = _column(y)
    codes = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    if labels.ndim != 1 or not np.array_equal(classes[codes], labels):
        raise ValueError(f"labels must be [n], of the classes {classes.tolist()}, got {labels.tolist()[:5]}...")
    return codes


def weights_with_classes(sample_weight: Any, class_weight: Any, y: Any) -> Any:
    """The weights of samples, times those of their classes."""
    if class_weight is None:
        return sample_weight
    of_classes: Array = _sklearn("class_weight").compute_sample_weight(class_weight, y)
    return of_classes if sample_weight is None else of_classes * np.asarray(sample_weight)


def evaluating(objective: Objective, sample_weight: Any, samples: int) -> Objective:
    """The objective for metrics of evaluation sets, where a number k means its share of the training set's mass."""
    settings = objective.settings
    if not isinstance(settings.k, int):
        return objective
    mass = samples if sample_weight is None else float(np.sum(sample_weight))
    share = settings.k / mass if settings.k < mass else 1.0  # training raises where it is more
    return Objective(**settings._replace(k=share)._asdict(), threads=objective.threads)


def metrics(given: Any, own: Callable[[str], Any], others: tuple[str, ...]) -> list[Any]:
    """Metrics by name: `own` of the objective's; functions, and those `others` that go by the order of margins, as is.

    Raises:
        ValueError: One of them would take margins for probabilities, or is none.
    """

    def served(name: Any) -> Any:
        if callable(name) or name in others:
            return name
        if name == "loss" or name in _ERRORS:
            return own("loss" if name == "loss" else "error")
        names = ", ".join(map(repr, ("loss", "error", *others)))
        raise ValueError(f"eval_metric must be one of {names}, or a function of labels and margins, got {name!r}")

    return [served(name) for name in (given if isinstance(given, (list, tuple)) else [given])]


def finite(thresholds: Array) -> Array:
    """Thresholds, of which some must be finite to tell samples apart."""
    if not np.isfinite(thresholds).any():
        raise ValueError(
            f"k and sample_weight must leave some class a part of the samples, got thresholds {thresholds.tolist()}"
        )
    return thresholds


def refuse_iterations(options: dict[str, Any], names: tuple[str, ...]) -> None:
    """Raise for iterations other than the best: thresholds are of its margins."""
    for name in names:
        if options.get(name) not in (None, 0):
            raise ValueError(
                f"{name} must be left alone, as thresholds are those of the best iteration, got {options[name]}: take "
                "raw margins of others, and Objective.thresholds of those of the training set"
            )
