"""Metrics of the two classifiers, on their evaluation sets."""

import inspect
import warnings

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hypersimplex_ext.boosting import Objective

from .boosted import best_iteration, data, fitted_with_stopping, made, margins_of


@pytest.mark.parametrize("metric", ["loss", "error", "auc"])
def test_metrics_by_name(classifier, metric):
    x, y = data(2)
    valid = data(2, seed=1)
    lightgbm = classifier.__name__ == "LGBMClassifier"
    model = made(classifier) if lightgbm else made(classifier, eval_metric=metric)
    model = fitted_with_stopping(model, x, y, *valid, **({"eval_metric": metric} if lightgbm else {}))
    results = model.evals_result_["valid_0"] if lightgbm else model.evals_result()["validation_0"]
    assert list(results) == [metric]
    margins = margins_of(model, valid[0])
    due = roc_auc_score if metric == "auc" else getattr(Objective(), metric)
    assert results[metric][best_iteration(model) - 1] == pytest.approx(due(valid[1], margins), abs=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("metric", ["loss", "error"])
def test_a_number_as_mass_is_a_share_of_evaluation_sets(classifier, weighted, metric):
    (x, y), valid = data(2), data(2, n=100, seed=1)
    w = np.where(y == 1, 2.0, 1.0) if weighted else None
    share = 200 / (len(y) if w is None else w.sum())
    lightgbm = classifier.__name__ == "LGBMClassifier"
    model = made(classifier, k=200) if lightgbm else made(classifier, k=200, eval_metric=metric)
    model = fitted_with_stopping(model, x, y, *valid, sample_weight=w, **({"eval_metric": metric} if lightgbm else {}))
    results = model.evals_result_["valid_0"] if lightgbm else model.evals_result()["validation_0"]
    due = getattr(Objective(k=share), metric)(valid[1], margins_of(model, valid[0]))
    assert results[metric][best_iteration(model) - 1] == pytest.approx(due, abs=1e-4)


def test_several_metrics_and_parameters_after_training(classifier):
    x, y = data(2)
    lightgbm, metrics = classifier.__name__ == "LGBMClassifier", ["auc", "error"]
    model = made(classifier) if lightgbm else made(classifier, eval_metric=metrics)
    valid = data(2, seed=1)
    model = fitted_with_stopping(model, x, y, *valid, **({"eval_metric": metrics} if lightgbm else {}))
    results = model.evals_result_["valid_0"] if lightgbm else model.evals_result()["validation_0"]
    assert list(results) == metrics  # of which the last one stops with XGBoost
    predictions = model.predict(x)
    assert np.array_equal(model.set_params(learning_rate=0.2, n_jobs=1).predict(x), predictions)


def test_no_metric():
    core = pytest.importorskip("xgboost.core", reason="xgboost is not installed")
    from hypersimplex_ext.boosting import XGBClassifier

    x, y = data(2)
    model = XGBClassifier(n_estimators=2, n_jobs=1, eval_metric=[]).fit(x, y, eval_set=[(x, y)])
    assert model.eval_metric == []
    with pytest.raises(core.XGBoostError, match="No evaluation result"):  # not that of XGBoost's default metric either
        model.evals_result()


@pytest.mark.parametrize("metrics", [["loss", "auc"], ["loss", "error"], ["auc", "error", "aucpr"]])
def test_metrics_that_xgboost_would_put_in_another_order(metrics):
    pytest.importorskip("xgboost", reason="xgboost is not installed")
    from hypersimplex_ext.boosting import XGBClassifier

    x, y = data(2)
    with pytest.raises(ValueError, match="eval_metric must have none but XGBoost's own before the last"):
        XGBClassifier(eval_metric=metrics).fit(x, y, eval_set=[(x, y)])


def test_metrics_that_take_margins_for_probabilities_are_refused(classifier):
    x, y = data(2)
    model, more = made(classifier), {"eval_metric": "logloss"}
    if classifier.__name__ == "XGBClassifier":
        model, more = made(classifier, **more), {}
    with pytest.raises(ValueError, match=r"eval_metric must be one of 'loss', 'error', 'auc'.* got 'logloss'"):
        model.fit(x, y, **more)


@pytest.mark.parametrize("name", ["metric", "metrics", "metric_types"])
def test_the_metrics_among_the_parameters_of_lightgbm(name):
    pytest.importorskip("lightgbm", reason="lightgbm is not installed")
    from hypersimplex_ext.boosting import LGBMClassifier

    x, y = data(2)
    for given in ("binary_logloss", "auc,cross_entropy", ["auc", "l2"], "error"):
        with pytest.raises(ValueError, match=rf"{name} must be one of 'auc', 'auc_mu', .* others go to eval_metric"):
            made(LGBMClassifier, **{name: given}).fit(x, y)
    model = fitted_with_stopping(made(LGBMClassifier, **{name: "auc,average_precision"}), x, y, *data(2, seed=1))
    assert set(model.evals_result_["valid_0"]) == {"auc", "average_precision", "loss"}
    model = fitted_with_stopping(made(LGBMClassifier, **{name: "None"}), x, y, *data(2, seed=1))
    assert set(model.evals_result_["valid_0"]) == {"loss"}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("given", ["eval_set", "eval_X"])
def test_weights_and_initial_margins_of_evaluation_sets(classifier, classes, given):
    """With labels that are strings."""
    (x, y), (valid_x, valid_y) = data(classes), data(classes, n=200, seed=1)
    names, w = np.array(["egg", "ham", "tea"]), np.random.default_rng(0).random(200).astype(np.float32)
    start = np.random.default_rng(1).normal(size=(800, classes)[: classes - 1]).astype(np.float32)
    lightgbm = classifier.__name__ == "LGBMClassifier"
    if given == "eval_X" and "eval_X" not in inspect.signature(classifier.__base__.fit).parameters:
        pytest.skip("LightGBM's, from 4.7 on")
    sets = {"eval_set": [(valid_x, names[valid_y])]}
    if given == "eval_X":
        sets = {"eval_X": valid_x, "eval_y": names[valid_y]}
    weights, at_first, started = (
        ("eval_sample_weight", "eval_init_score", "init_score")
        if lightgbm
        else ("sample_weight_eval_set", "base_margin_eval_set", "base_margin")
    )
    more = {weights: [w], at_first: [start[600:]], started: start[:600]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eval_set is deprecated in LightGBM
        model = made(classifier).fit(x, names[y], **sets, **more)
    (results,) = (model.evals_result_ if lightgbm else model.evals_result()).values()
    due = Objective().loss(valid_y, margins_of(model, valid_x, **{started: start[600:]}), w)
    assert results["loss"][-1] == pytest.approx(due, rel=1e-5)


def test_a_metric_of_the_user_gets_raw_margins(classifier):
    x, y = data(3)
    seen = []

    def largest(labels, margins, weight=None):
        seen.append(margins.shape)
        return (
            ("largest", float(margins.max()), True) if classifier.__name__ == "LGBMClassifier" else float(margins.max())
        )

    if classifier.__name__ == "LGBMClassifier":
        fitted_with_stopping(made(classifier), x, y, x, y, eval_metric=largest)
    else:
        made(classifier, eval_metric=largest).fit(x, y, eval_set=[(x, y)])
    assert set(seen) == {(len(x), 3)}


@pytest.mark.parametrize("classes", [2, 3])
def test_an_evaluation_set_of_one_class(classifier, classes):
    x, y = data(classes)
    model = fitted_with_stopping(made(classifier), x, y, x[y == 1], y[y == 1])
    assert model.score(x, y) > 0.5
