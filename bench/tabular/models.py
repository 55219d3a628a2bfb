"""What is compared: each library with its own logarithmic loss and with ours, and what they are tuned over."""

from __future__ import annotations

import dataclasses
import time
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.tabular.data import Table

Array = npt.NDArray[Any]

LIBRARIES = ("lightgbm", "xgboost")
OBJECTIVES = {"logloss": "", "fenchel-young": "fenchel_young", "squared": "squared"}
BASELINE = "logloss"

LABELS = {"logloss": "log loss, built in", "fenchel-young": "Fenchel-Young", "squared": "squared"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """The settings that determine one run; equal settings mean the same run.

    Attributes:
        data: name of the table.
        rows: how many rows of it at most; 0 for all.
        library: one of `LIBRARIES`.
        objective: one of `OBJECTIVES`.
        preset: one of `PRESETS`.
        seed: of split, model and sampling.
        min_weight: least sum of Hessians in a leaf, in units of the Hessian of one active sample (b), or 1 for the
            built-in loss, of which a sample has 1/4 at most.
        scale: tau; for the built-in loss, which has none, the penalty on leaf values is multiplied by its square, as
            tau does no more to the others.
    """

    data: str
    rows: int
    library: str
    objective: str
    preset: str
    seed: int
    min_weight: float
    scale: float


@dataclasses.dataclass(frozen=True)
class Preset:
    """Parameters that all objectives share, by LightGBM's names, and the grid of the others.

    Attributes:
        parameters: of the trees.
        rounds: at most.
        patience: rounds without a better validation loss before training ends.
        min_weights: to choose from.
        scales: likewise.
    """

    parameters: dict[str, Any]
    rounds: int
    patience: int
    min_weights: tuple[float, ...]
    scales: tuple[float, ...]


PRESETS = {
    "default": Preset({"num_leaves": 31, "learning_rate": 0.1, "max_bin": 255}, 300, 20, (0.1, 5, 20), (0.5, 1, 2)),
    "paper": Preset(
        {
            "num_leaves": 250,
            "learning_rate": 0.1,
            "max_bin": 255,
            "subsample": 0.8,
            "colsample_bytree": 0.8,
            "min_child_samples": 1,
        },
        1000,
        10,
        (100,),
        (0.001,),
    ),
}
"""The second is the paper's, for LightGBM."""


def trained(setting: Setting, table: Table, threads: int) -> tuple[Any, float]:
    """Return the model of a setting, early stopped by its own loss on the validation rows, and the seconds it took."""
    preset = PRESETS[setting.preset]
    model = _lightgbm(setting, preset, threads) if setting.library == "lightgbm" else _xgboost(setting, preset, threads)
    x, y = table.x, table.y
    valid = [(x["validation"], y["validation"])]
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # LightGBM says that eval_set has another name now
        if setting.library == "lightgbm":
            import lightgbm

            stopping = [lightgbm.early_stopping(preset.patience, verbose=False)]
            model.fit(x["train"], y["train"], eval_set=valid, callbacks=stopping)
        else:
            model.fit(x["train"], y["train"], eval_set=valid, verbose=False)
    return model, time.perf_counter() - start


def _own(setting: Setting) -> dict[str, Any]:
    """The settings of our objectives."""
    kind = OBJECTIVES[setting.objective]
    return {"kind": kind, "tau": setting.scale} if kind else {}


def _weights(setting: Setting, penalty: float) -> dict[str, Any]:
    """The least Hessian of a leaf, and the penalty of its value.

    The paper's are numbers as the library takes them, for every objective. Elsewhere a sample's Hessian is 1 for all.
    """
    if setting.preset == "paper":
        return {"min_child_weight": setting.min_weight, "reg_lambda": penalty}
    if setting.objective == BASELINE:
        return {"min_child_weight": setting.min_weight / 4, "reg_lambda": penalty * setting.scale**2}
    bound = (2 if setting.objective == "squared" else 1) / setting.scale**2
    return {"min_child_weight": setting.min_weight * bound, "reg_lambda": penalty}


def _lightgbm(setting: Setting, preset: Preset, threads: int) -> Any:
    import lightgbm

    from hypersimplex_ext import boosting

    kind: Any = lightgbm.LGBMClassifier if setting.objective == BASELINE else boosting.LGBMClassifier
    weights = _weights(setting, penalty=1.0 if setting.preset != "paper" else 0.0)
    sampled = {"subsample_freq": 1} if "subsample" in preset.parameters else {}
    return kind(
        n_estimators=preset.rounds, random_state=setting.seed, n_jobs=threads, verbosity=-1, **preset.parameters,
        **sampled, **weights, **_own(setting),
    )  # fmt: skip


def _xgboost(setting: Setting, preset: Preset, threads: int) -> Any:
    import xgboost

    from hypersimplex_ext import boosting

    kind: Any = xgboost.XGBClassifier if setting.objective == BASELINE else boosting.XGBClassifier
    parameters = {name: value for name, value in preset.parameters.items() if name != "min_child_samples"}
    parameters["max_leaves"] = parameters.pop("num_leaves")
    return kind(
        n_estimators=preset.rounds, random_state=setting.seed, n_jobs=threads, grow_policy="lossguide", max_depth=0,
        early_stopping_rounds=preset.patience, **parameters, **_weights(setting, penalty=1.0), **_own(setting),
    )  # fmt: skip


def rounds_of(model: Any, library: str) -> int:
    """How many rounds a model predicts with."""
    return int(model.best_iteration_) if library == "lightgbm" else int(model.best_iteration) + 1


_MIXED = 0.01


def judged(model: Any, x: Any, y: Array, classes: int, own: bool) -> dict[str, float]:
    """Accuracy, area under the curve and log score of predictions.

    The area is that of scores without clipping, for several classes the mean over them, each against all others. The
    log score is of probabilities to which a hundredth of the uniform distribution is mixed, for every objective, as
    those of ours may be 0.
    """
    from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

    p = np.asarray(model.predict_proba(x), np.float64)
    scores = np.asarray(model.decision_function(x)) if own else p
    if classes == 2:
        area = roc_auc_score(y, scores if scores.ndim == 1 else scores[:, 1])
    else:
        area = float(np.mean([roc_auc_score(y == c, scores[:, c]) for c in np.unique(y)]))
    mixed = (1 - _MIXED) * p[np.arange(len(y)), y] + _MIXED / classes
    accuracy = float(np.mean(np.asarray(model.predict(x)) == y))
    return {"accuracy": accuracy, "auc": float(area), "log_score": float(np.log(mixed).mean())}
