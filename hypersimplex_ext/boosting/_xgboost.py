"""XGBoost's classifier with the HyperSimplex loss, which predicts at the thresholds of its training set."""

from __future__ import annotations

import importlib
import json
from functools import partial
from typing import Any

import numpy as np

from . import _classifiers, _derivatives, _scores
from ._arrays import Array
from ._objective import Objective

_xgboost: Any = importlib.import_module("xgboost")
_Base: Any = _xgboost.XGBClassifier
_predict: Any = _xgboost.XGBModel.predict  # which knows nothing of labels

_ACTIVE_IN_LEAF = 20
_RANK_METRICS = ("auc", "aucpr")
_ATTRIBUTE = "hypersimplex_ext"  # of a booster, under which a saved model keeps what prediction needs


class XGBClassifier(_Base):  # type: ignore[misc]
    """`xgboost.XGBClassifier`, trained on the HyperSimplex loss of the whole training set.

    Everything is as there, except that the objective is :class:`Objective` with the first settings below, that labels
    may be of any type, that `predict`, `predict_proba` and `decision_function` use thresholds, those of the training
    set's margins at the best iteration, and that `min_child_weight` is by default the Hessian of 20 active samples,
    20 / tau^2 or 40 / tau^2 for the squared loss: at XGBoost's own default of 1, leaves are fitted to single samples.

    Args:
        kind: As :class:`Objective` takes it, like the four that follow.
        tau: Likewise.
        k: Likewise; in metrics of evaluation sets an int is its share of the training set.
        hessian: Likewise.
        floor: Likewise.
        **parameters: Those of `xgboost.XGBClassifier` but `objective`, and XGBoost's own.

    Attributes:
        thresholds_: [C], binary [1], in the units of the margins.
        objective_: The objective that it was trained on, whatever the settings are since.
        classes_: The labels.

    Metrics of `eval_metric`, for early stopping and the like: "loss", the default, the mean of the loss over an
    evaluation set; "error", the share of wrong labels at the thresholds of that set; XGBoost's "auc" and "aucpr";
    functions, which are given raw margins. The last one stops training, and all before it must be XGBoost's own.
    `base_margin` is handed to `predict` and the others too, where the model was trained on one. A model that is saved
    and loaded keeps thresholds, settings and, if JSON can hold them, labels.

    Example:
        >>> from sklearn.datasets import load_breast_cancer
        >>> x, y = load_breast_cancer(return_X_y=True)
        >>> model = XGBClassifier(n_estimators=20, n_jobs=1).fit(x[::2], y[::2])
        >>> bool(model.score(x[1::2], y[1::2]) > 0.9)
        True
    """

    objective: Any  # known in training alone
    eval_metric: Any
    _metric_names: tuple[str, ...] = ()  # likewise

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

    def __sklearn_tags__(self) -> Any:
        """As XGBoost's, without labels of several classes at once."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = False
        return tags

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """As XGBoost's, without `objective`."""
        parameters: dict[str, Any] = super().get_params(deep)
        parameters.pop("objective", None)
        return parameters

    def set_params(self, **parameters: Any) -> XGBClassifier:
        """As XGBoost's, but for `objective`, which raises."""
        _classifiers.refuse_objective(parameters)
        super().set_params(**parameters)
        return self

    def get_xgb_params(self) -> dict[str, Any]:
        """What XGBoost is given, without what it does not know; and no metric that takes margins for probabilities."""
        parameters: dict[str, Any] = super().get_xgb_params()
        for name in _classifiers.SETTINGS:
            parameters.pop(name, None)
        if parameters.get("min_child_weight") is None and self.booster != "gblinear":  # which has no leaves
            parameters["min_child_weight"] = _ACTIVE_IN_LEAF * _derivatives.bound(
                _classifiers.objective_of(self).settings
            )
        parameters.pop("eval_metric", None)
        if self._metric_names:
            parameters["eval_metric"] = list(self._metric_names)
        return parameters | {"disable_default_eval_metric": True}

    @property
    def objective_(self) -> Objective:
        """The objective that it was trained on."""
        return self._trained_on

    @property
    def classes_(self) -> Array:
        """The labels [C]."""
        labels: Array = self._labels if hasattr(self, "_labels") else super().classes_
        return labels

    def fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        *,
        sample_weight: Any = None,
        base_margin: Any = None,
        eval_set: Any = None,
        verbose: Any = False,
        **others: Any,
    ) -> XGBClassifier:
        """As XGBoost's, with labels of any type.

        Raises:
            ValueError: `y` has one class alone, a nan or more than one dimension; a setting is out of its range; or a
                parameter or metric cannot be served with this loss.
        """
        objective = _classifiers.objective_of(self)
        _classifiers.check_labels(y)
        if self.scale_pos_weight not in (None, 1):
            raise ValueError(
                f"scale_pos_weight must be left alone, as XGBoost ignores it beside an objective: use sample_weight, "
                f"got {self.scale_pos_weight}"
            )
        labels = _classifiers.flat(y)
        classes = np.unique(labels)
        codes = _classifiers.encoded(labels, classes)
        if eval_set is not None:
            eval_set = [(x, codes if own is y else _classifiers.encoded(own, classes)) for x, own in eval_set]
        given = self.eval_metric
        own = partial(getattr, _classifiers.evaluating(objective, sample_weight, len(codes)))
        metrics = _classifiers.metrics("loss" if given is None else given, own, _RANK_METRICS)
        if any(map(callable, metrics[:-1])):
            raise ValueError(
                "eval_metric must have none but XGBoost's own before the last, as XGBoost evaluates those first and "
                f"takes one other, got {given!r}"
            )
        # XGBoost before 3.1 takes a function as a metric or a list of names, but not both in a list.
        self._metric_names = tuple(metric for metric in metrics if not callable(metric))
        self.eval_metric = next(filter(callable, metrics), None)
        self.objective = objective
        self.__dict__.pop("_labels", None)  # in training classes are 0, 1, ...
        try:
            super().fit(
                X, codes, sample_weight=sample_weight, base_margin=base_margin, eval_set=eval_set, verbose=verbose,
                **others,
            )  # fmt: skip
        finally:
            self.eval_metric = given
            self.objective = None
            del self._metric_names
        self._labels = classes
        self._on_base_margin = base_margin is not None
        self._trained_on: Objective = objective
        margins = self._margins(X, base_margin)
        self.thresholds_: Array = _classifiers.finite(objective.thresholds(codes, margins, sample_weight))
        return self

    def _margins(self, X: Any, base_margin: Any, **options: Any) -> Array:  # noqa: N803
        """Raw scores [n] or [n, C], with the base margin."""
        if base_margin is None and getattr(self, "_on_base_margin", False):
            raise ValueError("base_margin must be given, as the model was trained on top of one, got None")
        margins: Array = _predict(self, X, output_margin=True, base_margin=base_margin, **options)
        return margins

    def _scores(self, X: Any, base_margin: Any, options: dict[str, Any]) -> Array:  # noqa: N803
        self.get_booster()  # raises before it is trained
        _classifiers.refuse_iterations(options, ("iteration_range",))
        return self.objective_.scores(self._margins(X, base_margin, **options), self.thresholds_)

    def decision_function(self, X: Any, *, base_margin: Any = None, **options: Any) -> Array:  # noqa: N803
        """Scores (x - T) / tau of margins x at thresholds T: [n, C], or binary, minus 1/2, [n], above 0 for class 1."""
        return _scores.decision(self._scores(X, base_margin, options))

    def predict(
        self,
        X: Any,  # noqa: N803
        *,
        output_margin: bool = False,
        base_margin: Any = None,
        **options: Any,
    ) -> Any:
        """Labels [n], at the thresholds of the training set; or raw margins."""
        if output_margin:
            return _predict(self, X, output_margin=True, base_margin=base_margin, **options)
        labels = _scores.labels(self._scores(X, base_margin, options))
        return self.classes_[labels]

    def predict_proba(
        self,
        X: Any,  # noqa: N803
        validate_features: bool = True,
        base_margin: Any = None,
        **options: Any,
    ) -> Array:
        """Probabilities [n, C]: binary the clipped score, else the distribution nearest to the scores."""
        options["validate_features"] = validate_features
        return _scores.probabilities(self._scores(X, base_margin, options))

    def save_model(self, fname: Any) -> None:
        """As XGBoost's, with thresholds, settings and, if JSON can hold them, labels."""
        labels = self._labels.tolist()
        kept = {
            "thresholds": self.thresholds_.tolist(),
            "settings": self.objective_.settings._asdict(),
            "labels": labels if all(isinstance(label, (str, int, float, bool)) for label in labels) else None,
            "on_base_margin": self._on_base_margin,
        }
        self.get_booster().set_attr(**{_ATTRIBUTE: json.dumps(kept)})
        super().save_model(fname)

    def load_model(self, fname: Any) -> None:
        """As XGBoost's.

        Raises:
            ValueError: The model was not saved by this class.
        """
        super().load_model(fname)
        text = self.get_booster().attr(_ATTRIBUTE)
        if text is None:
            raise ValueError(
                f"fname must be a model saved by {type(self).__module__}, got {fname!r}, without thresholds"
            )
        kept = json.loads(text)
        self.objective = None
        for name, value in kept["settings"].items():
            setattr(self, name, value)
        self._trained_on = _classifiers.objective_of(self)
        self.thresholds_ = np.array(kept["thresholds"], np.float64)
        labels = kept["labels"]
        self._labels = np.arange(self.n_classes_) if labels is None else np.array(labels)
        self._on_base_margin = kept["on_base_margin"]
