"""The objective in the native training of LightGBM and XGBoost, and given to their own scikit-learn estimators."""

import re
from pathlib import Path

import numpy as np
import pytest

from hypersimplex_ext.boosting import Objective

ROUNDS = 5


def data(classes, n=400, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5))
    y = np.digitize(x[:, 0] + 0.3 * rng.normal(size=n), np.linspace(-0.7, 0.7, classes - 1))
    return x, y, rng.random(n) + 0.5


class Recording(Objective):
    """An objective that keeps what it was given and returned, through copies."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    def __deepcopy__(self, memo):
        return self

    def __call__(self, first, second, sample_weight=None):
        result = super().__call__(first, second, sample_weight)
        self.calls.append((first.copy(order="K"), second, sample_weight, result))
        return result


def by_lightgbm(objective, x, y, weight=None, valid=None, **more):
    lightgbm = pytest.importorskip("lightgbm")
    parameters = {"objective": objective, "verbosity": -1, "num_threads": 1, "learning_rate": 0.3, **more}
    if y.max() > 1:
        parameters["num_class"] = int(y.max()) + 1
    train = lightgbm.Dataset(x, y, weight=weight)
    results = {}
    booster = lightgbm.train(
        parameters,
        train,
        ROUNDS,
        valid_sets=[lightgbm.Dataset(*valid, reference=train)] if valid else [],
        feval=[objective.loss, objective.error],
        callbacks=[lightgbm.record_evaluation(results)],
    )
    return (
        booster.predict(x, raw_score=True),
        {name: list(v) for name, v in results.get("valid_0", {}).items()},
        booster,
    )


def by_xgboost(objective, x, y, weight=None, valid=None, metric="loss", **more):
    xgboost = pytest.importorskip("xgboost")
    parameters = {"nthread": 1, "disable_default_eval_metric": True, "base_score": 0.5, **more}
    if y.max() > 1:
        parameters["num_class"] = int(y.max()) + 1
    train = xgboost.DMatrix(x, y, weight=weight)
    results = {}
    booster = xgboost.train(
        parameters,
        train,
        ROUNDS,
        obj=objective,
        evals=[(xgboost.DMatrix(*valid), "valid_0")] if valid else [],
        custom_metric=getattr(objective, metric),
        evals_result=results,
        verbose_eval=False,
    )
    return booster.predict(train, output_margin=True), results.get("valid_0", {}), booster


LIBRARIES = {"lightgbm": by_lightgbm, "xgboost": by_xgboost}
libraries = pytest.mark.parametrize("library", LIBRARIES)


@libraries
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_training_calls_with_all_that_it_has(library, classes, weighted):
    x, y, w = data(classes)
    objective = Recording(tau=0.7)
    LIBRARIES[library](objective, x, y, w if weighted else None)
    assert len(objective.calls) == ROUNDS
    for margins, _, sample_weight, (gradient, hessian) in objective.calls:
        assert sample_weight is None
        assert margins.shape == ((len(y),) if classes == 2 else (len(y), classes))
        due = Objective(tau=0.7)(y, margins, w.astype(np.float32) if weighted else None)
        for part, right in zip((gradient, hessian), due, strict=True):
            assert np.array_equal(part, right)
            assert part.strides == margins.strides  # as the library lays them out, so that it does not copy


@libraries
@pytest.mark.parametrize("classes", [2, 4])
def test_training_learns_and_its_metrics_are_those_of_the_objective(library, classes):
    x, y, _ = data(classes)
    test_x, test_y, _ = data(classes, seed=1)
    objective = Objective()
    margins, results, booster = LIBRARIES[library](objective, x, y, valid=(test_x, test_y))
    thresholds = objective.thresholds(y, margins)
    assert np.mean(objective.predict(margins, thresholds) == y) > (0.85 if classes == 2 else 0.7)
    if library == "lightgbm":
        of_test = booster.predict(test_x, raw_score=True)
        assert results["error"][-1] == pytest.approx(objective.error(test_y, of_test), abs=1e-12)
    else:
        of_test = booster.predict(pytest.importorskip("xgboost").DMatrix(test_x), output_margin=True)
    assert results["loss"][-1] == pytest.approx(objective.loss(test_y, of_test), rel=1e-4)
    assert results["loss"][-1] < results["loss"][0]


def test_xgboost_takes_the_error_for_a_metric():
    x, y, _ = data(2)
    margins, results, _ = by_xgboost(Objective(), x, y, valid=(x, y), metric="error")
    assert results["error"][-1] == pytest.approx(Objective().error(y, margins), abs=1e-6)


@libraries
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_their_own_estimators_take_it_too(library, classes, weighted):
    """LightGBM goes by the number of parameters, XGBoost by their names."""
    x, y, w = data(classes)
    w = w if weighted else None
    native, _, _ = LIBRARIES[library](Objective(tau=0.8), x, y, w)
    if library == "lightgbm":
        lightgbm = pytest.importorskip("lightgbm")
        model = lightgbm.LGBMClassifier(
            objective=Objective(tau=0.8), n_estimators=ROUNDS, learning_rate=0.3, n_jobs=1, verbosity=-1,
            min_child_samples=20,
        )  # fmt: skip
        margins = model.fit(x, y, sample_weight=w).predict(x, raw_score=True)
    else:
        xgboost = pytest.importorskip("xgboost")
        model = xgboost.XGBClassifier(objective=Objective(tau=0.8), n_estimators=ROUNDS, n_jobs=1)
        margins = model.fit(x, y, sample_weight=w).predict(x, output_margin=True)
    np.testing.assert_allclose(margins - margins[0], native - native[0], atol=1e-5)  # XGBoost's start differs


@libraries
def test_a_temperature_does_no_more_than_set_the_scale(library):
    x, y, _ = data(2)
    name, leaf = ("lambda_l2", {"min_sum_hessian_in_leaf": 0}) if library == "lightgbm" else ("lambda", {})
    margins = []
    for tau in (0.01, 1.0, 50.0):
        more = leaf if library == "lightgbm" else {"min_child_weight": 20 / tau**2}
        objective = Objective(tau=tau)
        scores, _, _ = LIBRARIES[library](objective, x, y, **{name: 1 / tau**2}, **more)
        margins.append(scores / tau if library == "lightgbm" else scores / tau - scores.mean() / tau)
    for other in margins[1:]:
        np.testing.assert_allclose(other - other.mean(), margins[0] - margins[0].mean(), atol=2e-3)


def test_labels_that_the_data_set_holds_are_checked():
    x, y, _ = data(2)
    for library in LIBRARIES.values():
        with pytest.raises(ValueError, match="labels must be integers from 0 to 1, got -1"):
            library(Objective(), x, -y)
        with pytest.raises(ValueError, match="labels must be of at least two classes, got 1 alone"):
            library(Objective(), x, np.ones_like(y))


def test_several_machines_are_refused():
    lightgbm = pytest.importorskip("lightgbm")
    x, y, _ = data(2)
    dataset = lightgbm.Dataset(x, y, params={"machines": "127.0.0.1:1,127.0.0.1:2", "verbosity": -1})
    dataset.params["num_threads"] = 1
    with pytest.raises(NotImplementedError, match="must be in one process, not over Dask"):
        Objective()(np.zeros(len(y)), dataset)


def test_workers_of_lightgbm_s_dask_module_are_refused():
    """They hand on labels and margins of their own rows, as its scikit-learn API does, and no data set."""
    worker = {"__name__": "lightgbm.dask", "objective": Objective()}
    exec("def train_part(*given):\n    return objective(*given)", worker)
    with pytest.raises(NotImplementedError, match="must be in one process, not over Dask"):
        worker["train_part"]([0, 1, 1], np.zeros(3))


def test_several_workers_of_xgboost_are_refused(monkeypatch):
    collective = pytest.importorskip("xgboost.collective")
    monkeypatch.setattr(collective, "get_world_size", lambda: 2)
    with pytest.raises(NotImplementedError, match="must be in one process, not over Dask"):
        Objective()([0, 1, 1], np.zeros(3))


def test_weights_beside_a_data_set_are_refused():
    xgboost = pytest.importorskip("xgboost")
    with pytest.raises(TypeError, match="sample_weight must be in the DMatrix, got it beside one"):
        Objective()(np.zeros(3), xgboost.DMatrix(np.ones((3, 1)), [0, 1, 1]), np.ones(3))


PAGE = (Path(__file__).parents[1] / "docs" / "boosting.md").read_text()


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_snippets_of_the_page(snippet):
    pytest.importorskip(re.match(r"import (\w+)", snippet)[1])
    x, y, _ = data(3)
    namespace = {"x": x, "y": y, "new_x": x}
    exec(snippet, namespace)
    assert np.mean(namespace["labels"] == y) > 0.75
