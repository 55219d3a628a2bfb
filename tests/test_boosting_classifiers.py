"""The classifiers: LightGBM's and XGBoost's own, at the thresholds of their training sets."""

import inspect
import pickle
import warnings

import joblib
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import check_estimator

from hypersimplex_ext.boosting import Objective

from .boosted import best_iteration, data, fitted_with_stopping, made, margins_of


@pytest.mark.parametrize("classes", [2, 4])
def test_it_predicts_at_the_thresholds_of_the_training_margins(classifier, classes):
    x, y = data(classes)
    model = made(classifier, tau=0.8).fit(x, y)
    objective, margins = Objective(tau=0.8), margins_of(model, x)
    assert model.objective_ == Objective(tau=0.8, threads=1)
    np.testing.assert_allclose(model.thresholds_, objective.thresholds(y, margins), atol=1e-6)
    scores = objective.scores(margins, model.thresholds_)
    assert np.array_equal(model.predict(x), objective.predict(margins, model.thresholds_))
    np.testing.assert_allclose(model.decision_function(x), scores - 0.5 if classes == 2 else scores)
    p = model.predict_proba(x)
    assert p.shape == (len(x), classes)
    np.testing.assert_allclose(p.sum(1), 1)
    assert np.array_equal(p.argmax(1), model.predict(x))
    counts = np.bincount(model.predict(x), minlength=classes)
    assert np.abs(counts - np.bincount(y)).max() < 0.1 * len(y)  # as often as each occurs
    assert model.score(x, y) > 0.75


def test_thresholds_are_those_of_the_best_iteration(classifier):
    x, y = data(3)
    rng = np.random.default_rng(1)
    wrong = np.where(rng.random(len(y)) < 0.4, rng.integers(0, 3, len(y)), y)
    model = fitted_with_stopping(made(classifier, n_estimators=200, learning_rate=0.5), x, wrong, *data(3, seed=2))
    assert best_iteration(model) < 50
    np.testing.assert_allclose(model.thresholds_, Objective().thresholds(wrong, margins_of(model, x)), atol=1e-6)
    short = made(classifier, n_estimators=best_iteration(model), learning_rate=0.5).fit(x, wrong)
    np.testing.assert_allclose(model.thresholds_, short.thresholds_, atol=1e-5)
    assert np.array_equal(model.predict(x), short.predict(x))


@pytest.mark.parametrize("labels", [np.array(["ham", "egg", "tea"]), np.array([7, -3, 40]), np.array([2.0, 5.0, 9.0])])
def test_labels_of_any_type(classifier, labels):
    x, y = data(3)
    given = np.sort(labels)[y]
    model = made(classifier).fit(x, given)
    assert np.array_equal(model.classes_, np.sort(labels))
    assert model.predict(x).dtype == labels.dtype
    assert np.array_equal(model.predict(x), np.sort(labels)[made(classifier).fit(x, y).predict(x)])
    assert model.score(x, given) > 0.75
    stopped = fitted_with_stopping(made(classifier), x, given, x[:100], given[:100])
    assert set(stopped.predict(x)) <= set(labels)
    with pytest.raises(ValueError, match=r"labels must be \[n\], of the classes"):
        fitted_with_stopping(made(classifier), x, given, x[:3], np.sort(labels)[[0, 1, 2]][::-1].astype("<U9") + "?")


def test_rare_classes_are_predicted_as_often_as_they_occur(classifier):
    shares = [0.6, 0.25, 0.1, 0.04, 0.01]
    (x, y), (test_x, test_y) = (data(5, n=3000, seed=seed, shares=shares) for seed in (0, 1))
    model = made(classifier, n_estimators=30, min_child_weight=20).fit(x, y)
    plain = margins_of(model, test_x).argmax(1)
    assert np.mean(model.predict(test_x) == test_y) > np.mean(plain == test_y)
    found = np.bincount(model.predict(test_x), minlength=5) / len(test_x)
    np.testing.assert_allclose(found, shares, atol=0.06)


def test_clones_pickles_and_dumps(classifier, tmp_path):
    x, y = data(3)
    model = made(classifier, tau=0.5, kind="squared", floor=0.3, k="targets", hessian="bound").fit(x, y)
    copy = clone(model)
    assert repr(sorted(copy.get_params().items())) == repr(sorted(model.get_params().items()))  # a nan among them
    assert not hasattr(copy, "thresholds_")
    assert copy.kind == "squared"
    joblib.dump(model, tmp_path / "model")
    for other in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model"), copy.fit(x, y)):
        assert np.array_equal(other.predict(x), model.predict(x))
        assert np.array_equal(other.predict_proba(x), model.predict_proba(x))
    assert "objective" not in model.get_params()


def test_grid_search(classifier):
    x, y = data(2, n=300)
    given = np.array(["no", "yes"])[y]
    search = GridSearchCV(made(classifier, n_estimators=3), {"tau": [0.5, 1.0], "learning_rate": [0.3]}, cv=2)
    search.fit(x, given)
    assert search.best_score_ > 0.7
    assert search.best_estimator_.learning_rate == 0.3
    by_rank = GridSearchCV(made(classifier, n_estimators=3), {"floor": [0.1, 0.5]}, scoring="roc_auc", cv=2).fit(
        x, given
    )
    assert by_rank.best_score_ > 0.8


def test_weights_move_what_is_predicted(classifier):
    x, y = data(2)
    plain = made(classifier).fit(x, y)
    heavy = made(classifier).fit(x, y, sample_weight=np.where(y == 1, 5.0, 1.0))
    assert heavy.predict(x).mean() > plain.predict(x).mean() + 0.05
    np.testing.assert_allclose(
        made(classifier).fit(x, y, sample_weight=np.ones(len(y))).thresholds_, plain.thresholds_, atol=1e-6
    )
    if classifier.__name__ == "LGBMClassifier":
        by_class = made(classifier, class_weight={0: 1, 1: 5}).fit(x, y)
        assert np.array_equal(by_class.predict(x), heavy.predict(x))


def test_settings_after_training_change_no_prediction(classifier, tmp_path):
    x, y = data(2)
    model = made(classifier).fit(x, y)
    predictions, p = model.predict(x), model.predict_proba(x)
    model.set_params(tau=0.2, kind="squared", k=0.9)
    assert model.objective_ == Objective(threads=1)
    assert np.array_equal(model.predict(x), predictions)
    assert np.array_equal(model.predict_proba(x), p)
    if classifier.__name__ == "XGBClassifier":
        model.save_model(tmp_path / "model.json")
        model = classifier()
        model.load_model(tmp_path / "model.json")
        assert model.objective_ == Objective()
        assert np.array_equal(model.set_params(tau=0.2).predict_proba(x), p)


def test_leaves_and_contributions_are_the_library_s(classifier):
    x, y = data(2)
    model = made(classifier).fit(x, y)
    leaves = model.predict(x, pred_leaf=True) if classifier.__name__ == "LGBMClassifier" else model.apply(x)
    assert leaves.shape == (len(x), 8)
    if classifier.__name__ == "LGBMClassifier":
        np.testing.assert_allclose(model.predict(x, pred_contrib=True).sum(1), margins_of(model, x))
    assert model.feature_importances_.shape == (6,)


@pytest.mark.parametrize("classes", [2, 3])
def test_base_margins(classifier, classes):
    x, y = data(classes)
    start = np.random.default_rng(0).normal(size=y.shape if classes == 2 else (len(y), classes)).astype(np.float32)
    name = "init_score" if classifier.__name__ == "LGBMClassifier" else "base_margin"
    model = made(classifier, n_estimators=20).fit(x, y, **{name: start})
    predictions = model.predict(x, **{name: start})
    assert np.mean(predictions == y) > 0.7
    assert np.array_equal(model.predict_proba(x, **{name: start}).argmax(1), predictions)
    assert np.abs(np.bincount(predictions, minlength=classes) - np.bincount(y)).max() < 0.1 * len(y)
    with pytest.raises(ValueError, match=f"{name} must be given, as the model was trained on top of one"):
        model.predict(x)


def test_raw_scores_of_lightgbm_with_initial_ones():
    pytest.importorskip("lightgbm", reason="lightgbm is not installed")
    from hypersimplex_ext.boosting import LGBMClassifier

    x, y = data(3)
    start = np.random.default_rng(0).normal(size=(len(y), 3))
    model = made(LGBMClassifier).fit(x, y, init_score=start)
    for method in (model.predict, model.predict_proba):
        due = method(x, raw_score=True) + start
        np.testing.assert_allclose(method(x, raw_score=True, init_score=start), due)
        np.testing.assert_allclose(method(x, raw_score=True, init_score=start.ravel("F")), due)


@pytest.mark.parametrize("settings", [{"k": 1.0}, {"k": 0}, {}])
def test_masses_that_leave_nothing_to_tell(classifier, settings):
    x, y = data(3)
    w = None if settings else (y == 1).astype(float)
    with pytest.raises(ValueError, match="k and sample_weight must leave some class a part of the samples"):
        made(classifier, **settings).fit(x, y, sample_weight=w)


def test_linear_models_of_xgboost_get_no_weight_of_leaves():
    pytest.importorskip("xgboost", reason="xgboost is not installed")
    from hypersimplex_ext.boosting import XGBClassifier

    assert XGBClassifier().get_xgb_params()["min_child_weight"] == 20
    assert XGBClassifier(booster="gblinear").get_xgb_params()["min_child_weight"] is None


def test_sparse_features_missing_values_and_one_sample(classifier):
    x, y = data(2)
    x[np.abs(x) < 0.3] = 0
    assert made(classifier).fit(csr_matrix(x), y).score(csr_matrix(x), y) > 0.75
    x[::7, 0] = np.nan
    model = made(classifier).fit(x, y)
    assert model.score(x, y) > 0.75
    assert model.predict(x[:1]).shape == (1,)


@pytest.mark.parametrize("own", [True, False])
def test_training_goes_on_from_a_model(classifier, own):
    name = "xgb_model" if classifier.__name__ == "XGBClassifier" else "init_model"
    x, y = data(2)
    first = made(classifier if own else classifier.__base__, n_estimators=4).fit(x, y)
    second = made(classifier, n_estimators=4).fit(x, y, **{name: first})
    np.testing.assert_allclose(second.thresholds_, Objective().thresholds(y, margins_of(second, x)), atol=1e-6)
    if own:
        whole = made(classifier, n_estimators=8).fit(x, y)
        np.testing.assert_allclose(second.thresholds_, whole.thresholds_, atol=1e-5)


def test_a_saved_model_of_xgboost_keeps_thresholds_and_labels(tmp_path):
    pytest.importorskip("xgboost", reason="xgboost is not installed")
    import xgboost

    from hypersimplex_ext.boosting import XGBClassifier

    x, y = data(3)
    model = XGBClassifier(n_estimators=5, tau=0.5, kind="squared").fit(x, np.array(["a", "b", "c"])[y])
    model.save_model(tmp_path / "model.json")
    other = XGBClassifier()
    other.load_model(tmp_path / "model.json")
    assert np.array_equal(other.predict(x), model.predict(x))
    assert (other.tau, other.kind) == (0.5, "squared")
    xgboost.XGBClassifier(n_estimators=2).fit(x, y).save_model(tmp_path / "theirs.json")
    with pytest.raises(ValueError, match="without thresholds"):
        XGBClassifier().load_model(tmp_path / "theirs.json")


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"tau": -1}, ValueError, r"tau must lie in \(0, inf\), got -1"),
        ({"k": 2.5}, ValueError, r"k must lie in \[0, 1\], got 2.5"),
        ({"k": 10**6}, ValueError, r"k must lie in \[0, 600\].* got 1000000"),
        ({"kind": "hinge"}, ValueError, "kind must be one of"),
        ({"scale_pos_weight": 3}, ValueError, "scale_pos_weight must be left alone"),
    ],
)
def test_settings_that_cannot_be_served(classifier, parameters, error, message):
    with pytest.raises(error, match=message):
        made(classifier, **parameters).fit(*data(2))


def test_bad_input(classifier):
    x, y = data(2)
    with pytest.raises(ValueError, match="y must have at least two classes, got one class: "):
        made(classifier).fit(x, np.ones(len(y)))
    with pytest.raises(ValueError, match="NaN"):
        made(classifier).fit(x, np.where(y == 1, np.nan, 0))
    with pytest.raises(
        ValueError, match=r"sample_weight must be finite, at least 0|Weights? must be|weights? should be|non-negative"
    ):
        made(classifier).fit(x, y, sample_weight=np.where(y == 1, -1.0, 1.0))
    with pytest.raises(TypeError, match="objective must be left alone: kind, tau"):
        made(classifier, objective="binary")
    for name in ("objective", "application"):
        with pytest.raises(TypeError, match=f"{name} must be left alone"):
            made(classifier).set_params(**{name: None})
    model = made(classifier).fit(x, y)
    name, value = ("num_iteration", 3) if classifier.__name__ == "LGBMClassifier" else ("iteration_range", (0, 3))
    for method in (model.predict, model.predict_proba, model.decision_function):
        with pytest.raises(ValueError, match=f"{name} must be left alone, as thresholds are those of the best"):
            method(x, **{name: value})
    assert margins_of(model, x, **{name: value}).shape == y.shape


def test_threads_of_the_library_are_those_of_the_objective(classifier, set_threads):
    set_threads(2)
    x, y = data(2)
    models = [made(classifier, n_estimators=2, n_jobs=n_jobs).fit(x, y) for n_jobs in (1, 2)]
    assert [model.objective_.threads for model in models] == [1, 2]
    np.testing.assert_allclose(models[0].thresholds_, models[1].thresholds_, atol=1e-6)
    assert torch.get_num_threads() == 2


def failing(estimator):
    """The names of scikit-learn's checks that an estimator fails."""
    if "on_fail" not in inspect.signature(check_estimator).parameters:
        pytest.skip("scikit-learn's checks stop at the first failure before 1.6")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(estimator, on_fail=None, on_skip=None)
    assert len(results) > 40
    return {result["check_name"] for result in results if result["status"] not in ("passed", "skipped")}


def test_scikit_learn_s_checks_find_no_more_than_in_the_library_s_own(classifier):
    theirs = classifier.__base__
    ours, due = (failing(made(each, n_estimators=20)) for each in (classifier, theirs))
    assert ours <= due
    if classifier.__name__ == "XGBClassifier":
        assert len(ours) < len(due)  # it takes labels of any type
