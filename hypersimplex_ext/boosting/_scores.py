"""What margins and thresholds say of samples: scores, labels, probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._prediction import _nearest_distribution
from ._arrays import Array


def scores(margins: Array, thresholds: Any, tau: float) -> Array:
    """(x - T) / tau in float64, [n] or [n, C]."""
    thresholds = np.asarray(thresholds, np.float64)
    classes = margins.shape[1] if margins.ndim > 1 else 1
    if thresholds.shape != (classes,):
        raise ValueError(f"thresholds must have shape [{classes}], one per class, got {list(thresholds.shape)}")
    result: Array = (margins.astype(np.float64) - thresholds) / tau
    return result


def decision(s: Array) -> Array:
    """Scores, of which the binary are shifted so that class 1 is above 0."""
    return s - 0.5 if s.ndim == 1 else s


def labels(s: Array) -> Array:
    """Class indices [n]; of equal scores the first class.

    A binary score of 1/2 is class 0, as scikit-learn has it of a decision of 0; :meth:`nn.HyperSimplexLoss.predict`
    says 1.
    """
    found: Array = s > 0.5 if s.ndim == 1 else s.argmax(1)
    return found.astype(np.int64)


def probabilities(s: Array) -> Array:
    """[n, C]: of a binary score, clipped to [0, 1]; of classes, the distribution that is nearest to their scores."""
    if s.ndim == 1:
        p: Array = s.clip(0, 1)
        return np.stack((1 - p, p), 1)
    return _nearest_distribution(torch.from_numpy(s)).numpy()
