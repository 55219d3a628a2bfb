"""Gradient boosting with the HyperSimplex loss: objectives and classifiers for LightGBM and XGBoost.

The whole training set is the batch. Neither library is imported before it is needed: `LGBMClassifier` needs LightGBM,
`XGBClassifier` XGBoost, `Objective` and `check_objective` none of the two.
"""

from __future__ import annotations

import importlib
from typing import Any

from ._checker import Differences, check_objective
from ._objective import Objective

__all__ = ["Differences", "LGBMClassifier", "Objective", "XGBClassifier", "check_objective"]

_ESTIMATORS = {"LGBMClassifier": ("lightgbm", "._lightgbm"), "XGBClassifier": ("xgboost", "._xgboost")}


def __getattr__(name: str) -> Any:
    """The classifiers, made when they are first asked for, as they are subclasses of their libraries' own."""
    if name not in _ESTIMATORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    library, module = _ESTIMATORS[name]
    for needed in (library, "sklearn"):
        try:
            importlib.import_module(needed)
        except ImportError as error:
            package = {"sklearn": "scikit-learn"}.get(needed, needed)
            raise ImportError(f"{name} needs {package}: pip install {package} ({error})") from error
    estimator = getattr(importlib.import_module(module, __name__), name)
    globals()[name] = estimator
    return estimator


def __dir__() -> list[str]:
    """With the classifiers, made or not."""
    return sorted({*globals(), *_ESTIMATORS})
