"""LightGBM's classifier with the HyperSimplex loss, which predicts at the thresholds of its training set."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import numpy as np

from . import _classifiers, _scores
from ._arrays import Array
from ._objective import Objective

_lightgbm: Any = importlib.import_module("lightgbm")
_Base: Any = _lightgbm.LGBMClassifier
_predict: Any = _lightgbm.LGBMModel.predict  # which knows nothing of labels

_RANK_METRICS = ("auc", "auc_mu", "average_precision")
_METRIC = ("metric", "metrics", "metric_types")
_IGNORED = ("scale_pos_weight", "is_unbalance", "unbalance", "unbalanced_sets")  # by LightGBM, beside an objective


class LGBMClassifier(_Base):  # type: ignore[misc]
    """`lightgbm.LGBMClassifier`, trained on the HyperSimplex loss of the whole training set.

    Everything is as there, except that the objective is :class:`Objective` with the first settings below, and that
    `predict`, `predict_proba` and `decision_function` use thresholds, those of the training set's margins at the best
    iteration.

    Args:
        kind: As :class:`Objective` takes it, like the four that follow.
        tau: Likewise.
        k: Likewise; in metrics of evaluation sets an int is its share of the training set.
        hessian: Likewise.
        floor: Likewise.
        **parameters: Those of `lightgbm.LGBMClassifier` but `objective`, and LightGBM's own.

    Attributes:
        thresholds_: [C], binary [1], in the units of the margins.
        objective_: The objective that it was trained on, whatever the settings are since.

    Metrics of `eval_metric`, for early stopping and the like: "loss", the default, the mean of the loss over an
    evaluation set; "error", the share of wrong labels at the thresholds of that set; LightGBM's "auc",
    "average_precision" and "auc_mu"; functions, which are given raw margins. `init_score` is handed to `predict` and
    the others too, where the model was trained on one.

    Example:
        >>> from sklearn.datasets import load_breast_cancer
        >>> x, y = load_breast_cancer(return_X_y=True)
        >>> model = LGBMClassifier(n_estimators=20, n_jobs=1, verbosity=-1).fit(x[::2], y[::2])
        >>> bool(model.score(x[1::2], y[1::2]) > 0.9)
        True
    """

    def __init__(
        self,
        *,
        kind: str = "fenchel_young",
        tau: float = 1.0,
        k: float | str = "targets",
        hessian: str = "diagonal",
        floor: float = 0.1,
        **parameters: Any,
    ) -> None:
        _classifiers.refuse_objective(parameters)
        super().__init__(**parameters)
        self.kind = kind
        self.tau = tau
        self.k = k
        self.hessian = hessian
        self.floor = floor

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """As LightGBM's, without `objective`."""
        parameters: dict[str, Any] = super().get_params(deep)
        parameters.pop("objective", None)
        return parameters

    def set_params(self, **parameters: Any) -> LGBMClassifier:
        """As LightGBM's, but for `objective`, which raises."""
        _classifiers.refuse_objective(parameters)
        super().set_params(**parameters)
        return self

    @property
    def objective_(self) -> Objective:
        """The objective that it was trained on."""
        return self._trained_on

    def _process_params(self, stage: str) -> dict[str, Any]:
        """What LightGBM is given, without what it does not know."""
        parameters: dict[str, Any] = super()._process_params(stage)
        for name in _classifiers.SETTINGS:
            parameters.pop(name, None)
        parameters["objective"] = _classifiers.objective_of(self) if stage == "fit" else "None"
        # With an objective that is not its own, LightGBM fails where its filter leaves no feature to split.
        parameters.setdefault("feature_pre_filter", False)
        if parameters["metric"] in ("binary", "multiclass", "binary_logloss", "multi_logloss"):
            parameters["metric"] = "None"  # LightGBM's default, which would take margins for probabilities
        return parameters

    def fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        sample_weight: Any = None,
        init_score: Any = None,
        eval_set: Any = None,
        *,
        eval_metric: Any = None,
        **others: Any,
    ) -> LGBMClassifier:
        """As LightGBM's, with `eval_metric` as above.

        Raises:
            ValueError: `y` has one class alone, a setting is out of its range, or a parameter or metric cannot be
                served with this loss.
        """
        objective = _classifiers.objective_of(self)
        _classifiers.check_labels(y)
        for name in _IGNORED:
            if self.get_params().get(name) not in (None, False, 1):
                raise ValueError(
                    f"{name} must be left alone, as LightGBM ignores it beside an objective: use class_weight"
                )
        _check_metric_parameter(self.get_params())
        evaluated = eval_set is not None or others.get("eval_X") is not None
        classes = np.unique(np.asarray(y))
        if others.get("eval_y") is not None:  # which LightGBM does not encode
            others["eval_y"] = _classifiers.encoded(others["eval_y"], classes)
        for _, labels in [eval_set] if isinstance(eval_set, tuple) else eval_set or []:
            _classifiers.encoded(labels, classes)  # raises for others, which LightGBM takes for one of them
        weight = _classifiers.weights_with_classes(sample_weight, self.class_weight, y)
        if evaluated or eval_metric is not None:
            own = partial(_Metric, _classifiers.evaluating(objective, weight, len(y)))
            eval_metric = _classifiers.metrics("loss" if eval_metric is None else eval_metric, own, _RANK_METRICS)
        super().fit(
            X, y, sample_weight=sample_weight, init_score=init_score, eval_set=eval_set, eval_metric=eval_metric,
            **others,
        )  # fmt: skip
        self._on_init_score = init_score is not None
        self._trained_on: Objective = objective
        codes = _classifiers.encoded(y, classes)
        self.thresholds_: Array = _classifiers.finite(objective.thresholds(codes, self._margins(X, init_score), weight))
        return self

    def _margins(self, X: Any, init_score: Any, **options: Any) -> Array:  # noqa: N803
        """Raw scores [n] or [n, C] to predict with: with the initial ones."""
        if init_score is None and getattr(self, "_on_init_score", False):
            raise ValueError("init_score must be given, as the model was trained on top of one, got None")
        return self._raw_scores(X, init_score, **options)

    def _raw_scores(self, X: Any, init_score: Any, **options: Any) -> Array:  # noqa: N803
        """Raw scores, with the initial ones if they are given."""
        margins: Array = _predict(self, X, raw_score=True, **options)
        if init_score is None:
            return margins
        start = np.asarray(init_score, np.float64)
        shape = margins.shape[::-1] if start.ndim == 1 and margins.ndim > 1 else margins.shape
        if start.size != margins.size:
            raise ValueError(f"init_score must have shape {list(margins.shape)}, got {list(start.shape)}")
        return margins + (start.reshape(shape).T if shape != margins.shape else start.reshape(shape))

    def _scores(self, X: Any, init_score: Any, options: dict[str, Any]) -> Array:  # noqa: N803
        _classifiers.refuse_iterations(options, ("start_iteration", "num_iteration"))
        margins = self._margins(X, init_score, **options)
        return self.objective_.scores(margins, self.thresholds_)

    def decision_function(self, X: Any, *, init_score: Any = None, **options: Any) -> Array:  # noqa: N803
        """Scores (x - T) / tau of margins x at thresholds T: [n, C], or binary, minus 1/2, [n], above 0 for class 1."""
        return _scores.decision(self._scores(X, init_score, options))

    def predict(self, X: Any, raw_score: bool = False, *, init_score: Any = None, **options: Any) -> Any:  # noqa: N803
        """Labels [n], at the thresholds of the training set; or what LightGBM's other options ask for."""
        if raw_score:
            return self._raw_scores(X, init_score, **options)
        if options.get("pred_leaf") or options.get("pred_contrib"):
            return _predict(self, X, **options)
        labels = _scores.labels(self._scores(X, init_score, options))
        return self.classes_[labels]

    def predict_proba(self, X: Any, raw_score: bool = False, *, init_score: Any = None, **options: Any) -> Any:  # noqa: N803
        """Probabilities [n, C]: binary the clipped score, else the distribution nearest to the scores."""
        if raw_score or options.get("pred_leaf") or options.get("pred_contrib"):
            return self.predict(X, raw_score, init_score=init_score, **options)
        return _scores.probabilities(self._scores(X, init_score, options))


def _check_metric_parameter(parameters: dict[str, Any]) -> None:
    """Raise for metrics among the parameters of LightGBM, beside `eval_metric`, that would take margins for more."""
    for alias in _METRIC:
        given = parameters.get(alias) or []
        for name in given.split(",") if isinstance(given, str) else given:
            if name not in (*_RANK_METRICS, "None"):
                served = ", ".join(map(repr, _RANK_METRICS))
                raise ValueError(f"{alias} must be one of {served}, others go to eval_metric of fit, got {name!r}")


class _Metric:
    """A metric as LightGBM's scikit-learn API calls one, by the number of its parameters."""

    def __init__(self, objective: Objective, name: str) -> None:
        self.objective, self.name = objective, name

    def __call__(self, labels: Array, margins: Array, weight: Array | None) -> tuple[str, float, bool]:
        return self.name, getattr(self.objective, self.name)(labels, margins, weight), False
