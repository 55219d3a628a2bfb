"""What LightGBM and XGBoost hand to an objective or a metric, told apart without importing either."""

from __future__ import annotations

import inspect
import sys
from typing import Any, NamedTuple

from ._arrays import WHOLE_BATCH

LIGHTGBM, XGBOOST = "lightgbm", "xgboost"


class Given(NamedTuple):
    """What a call has given: all of NumPy, as it came."""

    labels: Any
    margins: Any
    sample_weight: Any
    library: str | None  # whose data set it was taken from, if any


def given(first: Any, second: Any, sample_weight: Any) -> Given:
    """(labels, margins, weights) of scikit-learn's APIs, or (margins, data set) of native training."""
    library = _library_of(second)
    if library is None:
        _refuse_workers(None)
        return Given(first, second, sample_weight, None)
    if sample_weight is not None:
        raise TypeError(f"sample_weight must be in the {type(second).__name__}, got it beside one")
    _refuse_workers(second)
    return Given(second.get_label(), first, second.get_weight(), library)


def _library_of(data: Any) -> str | None:
    """The library of a data set, be it of a class that is derived from its own."""
    if not hasattr(data, "get_label"):
        return None
    names = (kind.__module__.partition(".")[0] for kind in type(data).__mro__)
    found = next((name for name in names if name in (LIGHTGBM, XGBOOST)), None)
    if found is None:
        raise TypeError(f"the data set must be LightGBM's Dataset or XGBoost's DMatrix, got {type(data).__name__}")
    return found


def _refuse_workers(data: Any) -> None:
    """Raise where each of several workers calls with rows of its own."""
    xgboost = sys.modules.get("xgboost.collective")
    settings = getattr(data, "params", None) or {}
    alone = settings.get("num_machines", settings.get("num_machine", 1)) in (1, "1")
    alone &= not any(settings.get(name) for name in ("machines", "workers", "nodes"))
    if not alone or (xgboost is not None and xgboost.get_world_size() > 1) or _called_by("lightgbm.dask"):
        raise NotImplementedError(f"training must be in one process, not over Dask, MPI or Spark: {WHOLE_BATCH}")


def _called_by(module: str) -> bool:
    """Whether a function of this module has led to the call; LightGBM hands its workers' objectives no data set."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") != module:
        frame = frame.f_back
    return frame is not None


def metric(name: str, value: float, library: str | None) -> Any:
    """A value to minimise, as the library takes it."""
    if library == LIGHTGBM:
        return name, value, False
    return (name, value) if library == XGBOOST else value
