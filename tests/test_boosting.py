"""The objective of gradient boosting: derivatives, layouts, weights, errors; without either library."""

import pickle
import sys

import numpy as np
import pytest
import torch

from hypersimplex_ext import boosting, hypersimplex_loss
from hypersimplex_ext.boosting import Objective, check_objective

KINDS = ("fenchel_young", "squared")


def problem(classes, n=300, seed=0, dtype=np.float64, order="C"):
    """Labels and margins, of which some are saturated."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    y[:classes] = range(classes)
    x = rng.normal(size=n if classes == 2 else (n, classes)) + (y if classes == 2 else np.eye(classes)[y])
    return y.astype(np.float32), np.asarray(x, dtype, order=order)


def by_loss(y, x, w=None, **settings):
    """The gradient of `hypersimplex_loss`."""
    logits = torch.tensor(x, requires_grad=True)
    target = torch.tensor(y, dtype=torch.float64 if x.ndim == 1 else torch.int64)
    weight = None if w is None else torch.tensor(w)
    hypersimplex_loss(logits, target, sample_weight=weight, reduction="sum", **settings).backward()
    return logits.grad.numpy()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("classes", [2, 3, 17])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("tau", "k"), [(1.0, "targets"), (0.3, 0.4), (2.0, 30)])
def test_gradient_is_that_of_the_loss(kind, classes, order, weighted, tau, k):
    y, x = problem(classes, order=order)
    w = np.random.default_rng(1).random(len(y)) * 2 if weighted else None
    gradient, hessian = Objective(kind, tau, k)(y, x, w)
    due = by_loss(y, x, w, kind=kind, tau=tau, k=k, weighted_mass=weighted)
    np.testing.assert_allclose(gradient, due, rtol=0, atol=1e-11 / tau)
    for part in (gradient, hessian):
        assert part.dtype == x.dtype
        assert part.shape == x.shape
        assert part.strides == x.strides


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("tau", "k"), [(0.2, "targets"), (1.0, "targets"), (0.5, 0.3), (0.5, 80)])
def test_finite_differences(kind, classes, weighted, tau, k):
    y, x = problem(classes)
    w = np.random.default_rng(1).random(len(y)) * 2 if weighted else None
    objective = Objective(kind, tau, k, floor=0.05)
    found = check_objective(objective, y, x, w)
    assert found.entries > 40
    assert found.gradient < 1e-6
    assert found.hessian < 1e-4
    assert 0 < found.held < found.entries  # outside of the active set, by the floor


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_above_every_eigenvalue(kind):
    y, x = problem(2, n=40)
    objective, h = Objective(kind, tau=0.7, hessian="bound"), 1e-6
    columns = [objective(y, x + h * e)[0] - objective(y, x - h * e)[0] for e in np.eye(len(x))]
    hessian = np.stack(columns) / (2 * h)
    bound = objective(y, x)[1]
    assert np.ptp(bound) == 0
    assert np.linalg.eigvalsh((hessian + hessian.T) / 2).max() <= bound[0] * (1 + 1e-6)
    assert bound[0] == pytest.approx((2 if kind == "squared" else 1) / 0.7**2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_blind_to_a_shift_whatever_the_weights(kind):
    """Weights that were left out of the mass would let a shift lower the loss without end: no setting does that."""
    y, x = problem(3)
    w = np.random.default_rng(1).random(len(y)) * 2
    gradient, _ = Objective(kind)(y, x, w)
    np.testing.assert_allclose(gradient.sum(0), 0, atol=1e-11)
    np.testing.assert_allclose(Objective(kind)(y, x + 50, w)[0], gradient, atol=1e-11)
    with pytest.raises(TypeError, match="weighted_mass"):
        Objective(kind, weighted_mass=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 3])
def test_weights_are_numbers_of_copies(kind, classes):
    y, x = problem(classes, n=60)
    copies = np.random.default_rng(0).integers(0, 4, 60)
    copies[:classes] = 1
    rows = np.repeat(np.arange(60), copies)
    objective = Objective(kind)
    gradient, _ = objective(y, x, copies)
    expected, _ = objective(y[rows], x[rows])
    np.testing.assert_allclose(gradient[rows], expected * copies[rows].reshape(-1, *[1] * (x.ndim - 1)), atol=1e-11)
    np.testing.assert_allclose(objective.thresholds(y, x, copies), objective.thresholds(y[rows], x[rows]), atol=1e-11)
    assert objective.loss(y, x, copies) == pytest.approx(objective.loss(y[rows], x[rows]))
    assert objective.error(y, x, copies) == pytest.approx(objective.error(y[rows], x[rows]))


def test_the_diagonal_is_of_active_weights_alone():
    """One active sample beside another, and a heavy one that is saturated."""
    y, x, s = np.array([0, 1, 1, 0]), np.array([-9.0, 0.2, 9.0, 0.0]), np.array([1.0, 2.0, 50.0, 3.0])
    gradient, hessian = Objective(floor=0.01)(y, x, s)
    np.testing.assert_allclose(hessian, [0.01, 2 * (1 - 2 / 5), 0.5, 3 * (1 - 3 / 5)])
    assert (gradient == 0).tolist() == [True, False, True, False]


def test_weighted_thresholds_in_a_gap_are_its_middle():
    y, x = np.array([1, 0, 1, 0]), np.array([0.6, -0.2, -1.5, 1.0])  # of which steps end at the edge, by 1e-16
    for w in (None, np.ones(4), np.array([2, 5, 0.3, 0.3])):
        np.testing.assert_allclose(Objective(tau=0.5).thresholds(y, x, w), [-0.05], atol=1e-12)
    rng = np.random.default_rng(0)
    for tau in (0.01, 0.1, 0.5, 2.0):
        for _ in range(100):
            x, y = rng.normal(size=8).round(1), rng.permutation([0, 0, 0, 1, 1, 1, 0, 1])
            due = Objective(tau=tau).thresholds(y, x)
            np.testing.assert_allclose(Objective(tau=tau).thresholds(y, x, np.ones(8)), due, atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("hessian", ["diagonal", "bound"])
def test_float32_and_ties(weighted, hessian):
    """From a start at one value all samples are active."""
    y, x = problem(2)
    w = np.ones(len(y)) if weighted else None
    gradient, h = Objective(hessian=hessian)(y, np.zeros(len(y), np.float32), w)
    assert gradient.dtype == h.dtype == np.float32
    np.testing.assert_allclose(gradient, y.mean() - y, atol=1e-6)
    np.testing.assert_allclose(h, 1 if hessian == "bound" else 1 - 1 / len(y), atol=1e-6)
    wide, narrow = (Objective(hessian=hessian)(y, x.astype(t), w)[0] for t in (np.float64, np.float32))
    np.testing.assert_allclose(wide, narrow, atol=1e-6)


def test_the_floor_is_a_share_of_the_bound():
    y, x = problem(2)
    for kind, bound in (("fenchel_young", 4), ("squared", 8)):
        hessian = Objective(kind, tau=0.5, floor=0.25)(y, 50 * x)[1]
        assert hessian.min() == pytest.approx(0.25 * bound)
        assert np.ptp(Objective(kind, tau=0.5, floor=1.0)(y, x)[1]) == pytest.approx(0)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_results_do_not_depend_on_threads(classes, weighted, set_threads):
    y, x = problem(classes, n=70_000, order="F")
    w = np.random.default_rng(1).random(len(y)) if weighted else None
    results = []
    for threads, own in ((1, None), (2, None), (2, 1), (5, 3)):
        set_threads(threads)
        results.append(Objective(threads=own)(y, x, w))
        assert torch.get_num_threads() == threads
    for result in results[1:]:
        for part, due in zip(result, results[0], strict=True):
            assert np.array_equal(part, due)


def test_layouts_read_only_memory_and_kinds_of_labels():
    y, x = problem(3)
    due = Objective()(y, x)[0]
    fixed = x.copy()
    fixed.flags.writeable = False
    wide = np.empty((len(x), 7))
    wide[:, 1:7:2] = x
    for margins in (fixed, wide[:, 1:7:2], x[::-1].copy()[::-1], x.astype(">f8").astype(np.float64)):
        assert np.array_equal(Objective()(y, margins)[0], due)
    packed = np.zeros(len(y), [("y", np.int64), ("w", np.float32)])
    packed["y"] = y
    for labels in (y.astype(np.uint8), y.astype(np.int16), y.tolist(), y[:, None], packed["y"]):
        assert np.array_equal(Objective()(labels, x)[0], due)
    binary, margins = problem(2)
    column = Objective()(binary.astype(bool), margins[:, None])[0]
    assert column.shape == (len(binary), 1)
    assert np.array_equal(column[:, 0], Objective()(binary, margins)[0])


@pytest.mark.parametrize("objective", [Objective(), Objective(hessian="bound")])
def test_large_results_lie_as_the_margins_do(objective):
    rng = np.random.default_rng(0)
    wide, y = rng.normal(size=(60_000, 12)), rng.integers(10, size=60_000)
    x = wide[:, :10]
    due = objective(y[:500], x[:500].copy())  # of few, for which nothing is done in blocks
    for margins in (x, np.ascontiguousarray(x), np.asfortranarray(x)):
        for result in objective(y, margins):
            assert result.flags.f_contiguous == margins.flags.f_contiguous
            assert result.flags.c_contiguous != margins.flags.f_contiguous
    gradient, hessian = objective(np.tile(y[:500], 120), np.tile(x[:500], (120, 1)))
    np.testing.assert_allclose(gradient, np.tile(due[0], (120, 1)), atol=1e-12)
    np.testing.assert_allclose(hessian, np.tile(due[1], (120, 1)), atol=0.02)  # 1 - 1 / n_A, of more


def test_predictions():
    y, x = problem(4, n=2000)
    objective = Objective(tau=0.5)
    thresholds = objective.thresholds(y, x)
    scores = objective.scores(x, thresholds)
    assert np.array_equal(objective.predict(x, thresholds), scores.argmax(1))
    assert np.mean(objective.predict(x, thresholds) != y) == pytest.approx(objective.error(y, x))
    p = objective.predict_proba(x, thresholds)
    np.testing.assert_allclose(p.sum(1), 1)
    assert np.array_equal(p.argmax(1), scores.argmax(1))
    y, x = problem(2, n=2000)
    thresholds = objective.thresholds(y, x)
    p = objective.predict_proba(x, thresholds)
    assert p[:, 1].sum() == pytest.approx(y.sum())  # the projection of the batch
    assert np.array_equal(objective.predict(x, thresholds), p.argmax(1))
    with pytest.raises(ValueError, match=r"thresholds must have shape \[1\]"):
        objective.predict(x, [0.0, 1.0])


def test_the_loss_is_the_mean():
    y, x = problem(3)
    value = hypersimplex_loss(torch.tensor(x), torch.tensor(y).long(), kind="fenchel_young")
    assert Objective().loss(y, x) == pytest.approx(value.item())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("k", ["targets", 0.3, 1, 0, 300])
def test_the_metric_is_blind_to_a_shift_and_never_negative(kind, weighted, k):
    """Else early stopping would wait for a shift of margins, which predicts nothing, to end."""
    y, x = problem(2)
    w = np.ones(len(y)) if weighted else None
    values = [Objective(kind, k=k).loss(y, x + shift, w) for shift in (0, 5, -50)]
    assert 0 < values[0] < np.inf
    np.testing.assert_allclose(values, values[0], rtol=1e-9)
    assert values[0] == pytest.approx(Objective(kind, k=k).loss(y, x))


def test_the_metric_of_a_class_without_samples():
    y, x = problem(3)
    for w in (None, np.ones(len(y))):
        wide = np.concatenate((x, x[:, :1]), 1)
        assert Objective().loss(y, wide, w) * 4 == pytest.approx(Objective().loss(y, x, w) * 3)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"kind": "hinge"}, ValueError, "kind must be one of"),
        ({"tau": 0}, ValueError, r"tau must lie in \(0, inf\), got 0"),
        ({"tau": 1e-20}, ValueError, r"tau must lie in \[1e-18, 1e\+18\], as 1 / tau\^2 is kept in float32, got 1e-20"),
        ({"tau": "1"}, TypeError, "tau must be a real number"),
        ({"k": 1.5}, ValueError, r"k must lie in \[0, 1\], got 1.5"),
        ({"k": -1}, ValueError, "k must be at least 0, got -1"),
        ({"k": "all"}, ValueError, "k must be one of 'targets'"),
        ({"hessian": "exact"}, ValueError, "hessian must be one of 'diagonal', 'bound'"),
        ({"floor": 0}, ValueError, r"floor must lie in \(0, inf\), got 0"),
        ({"floor": 1.5}, ValueError, r"floor must lie in \(0, 1\], got 1.5"),
        ({"threads": 0}, ValueError, "threads must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range(settings, error, message):
    with pytest.raises(error, match=message):
        Objective(**settings)


X = np.linspace(-1, 1, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0, 1, 0, 1, 0, np.nan], X), ValueError, "labels must be integers from 0 to 1, got nan"),
        (([0, 1, 0, 1, 0, 2], X), ValueError, "labels must be integers from 0 to 1, got 2"),
        (([0, 1, 0, 1, 0, -1], X), ValueError, "labels must be integers from 0 to 1, got -1"),
        (([0, 1, 0, 1, 0, 0.5], X), ValueError, "labels must be integers from 0 to 1, got 0.5"),
        (([0, 1, 0, 1, 0, np.inf], X), ValueError, "labels must be integers from 0 to 1, got inf"),
        (([0, 1, 2, 1, 0, 3], np.ones((6, 3))), ValueError, "labels must be integers from 0 to 2, got 3"),
        (([0, 1, 2, 1, 0, np.nan], np.ones((6, 3))), ValueError, "labels must be integers from 0 to 2, got nan"),
        (([0, 1, 2, 1, 0, 0.5], np.ones((6, 3))), ValueError, "labels must be integers from 0 to 2, got 0.5"),
        (([0, 1, 0], X), ValueError, r"labels must have shape \[6\], one per sample, got \[3\]"),
        ((list("abcabc"), X), TypeError, "labels must be numbers 0, 1, ..., got <U1"),
        (([0, 1] * 3, np.ones((2, 3, 1))), ValueError, r"margins must have shape \[n\] or \[n, C\]"),
        (([], np.ones(0)), ValueError, "margins must have at least one sample, got none"),
        (([0, 1] * 3, np.ones(6, int)), TypeError, "margins must be float32 or float64, got int64"),
        (([0, 1] * 3, torch.ones(6)), TypeError, "margins must be a NumPy array, got a Tensor"),
        (([0, 1] * 3, np.where(X > 0.9, np.nan, X)), ValueError, "margins must be numbers, got nan in 1 of 6 entries"),
        (([0, 1] * 3, X, [1, 1, 1, 1, 1, -1]), ValueError, "sample_weight must be finite, at least 0 .* got -1"),
        (([0, 1] * 3, X, [1, 1, 1, 1, 1, np.nan]), ValueError, "sample_weight must be finite, at least 0 .* got nan"),
        (([0, 1] * 3, X, [0] * 6), ValueError, "sample_weight must be .* got zeros"),
        (([0, 1] * 3, X, [1, 1]), ValueError, r"sample_weight must have shape \[6\], one per sample, got \[2\]"),
    ],
)
def test_bad_input(arguments, error, message):
    for call in (Objective(), Objective().loss, Objective().error, Objective().thresholds):
        with pytest.raises(error, match=message):
            call(*arguments)


@pytest.mark.parametrize("x", [X, np.outer(X, [1, -1, 2])])
def test_one_class_alone_teaches_nothing_but_can_be_evaluated(x):
    with pytest.raises(ValueError, match="labels must be of at least two classes, got 1 alone"):
        Objective()([1] * 6, x)
    for w in (None, np.ones(6)):
        assert Objective().loss([1] * 6, x, w) == pytest.approx(0, abs=1e-12)
        assert Objective().error([1] * 6, x, w) == 0


def test_a_mass_out_of_range_of_the_batch():
    with pytest.raises(ValueError, match=r"k must lie in \[0, 6\].* got 7"):
        Objective(k=7)([0, 1] * 3, X)


def test_a_nan_in_weighted_margins():
    with pytest.raises(ValueError, match="margins must be numbers, got nan in 1 of 6"):
        Objective()([0, 1] * 3, np.where(X > 0.9, np.nan, X), [1, 2] * 3)


@pytest.mark.parametrize("infinite", [np.inf, -np.inf])
def test_infinite_margins(infinite):
    y, x = [0, 1] * 3, np.where(X > 0.9, infinite, X)
    assert np.isfinite(Objective()(y, x)[0]).all()
    for call in (Objective(), Objective().loss, Objective().thresholds):
        with pytest.raises(ValueError, match=f"margins must be finite beside sample_weight, got {infinite}"):
            call(y, x, [1, 2] * 3)


def test_what_cannot_be_served_is_refused_with_the_reason():
    class Collection:
        __module__ = "dask.array.core"

    with pytest.raises(NotImplementedError, match="compares all samples"):
        Objective()(Collection(), X)
    for method in ("calc_ders_range", "calc_ders_multi"):
        with pytest.raises(NotImplementedError, match="CatBoost hands a custom loss the training set in blocks"):
            getattr(Objective(), method)([], [], [])

    class Foreign:
        def get_label(self):
            return X

    with pytest.raises(TypeError, match="must be LightGBM's Dataset or XGBoost's DMatrix, got Foreign"):
        Objective()(X, Foreign())


def test_the_checker_finds_wrong_derivatives():
    y, x = problem(2)

    def logloss(y, x):
        return float(np.logaddexp(0, np.where(y > 0, -x, x)).sum())

    def right(y, x):
        p = 1 / (1 + np.exp(-x))
        return p - y, p * (1 - p)

    assert check_objective(right, y, x, loss=logloss).held == 0
    check_objective(Objective(), y, x, (np.arange(len(y)) % 7 > 0).astype(float), entries=len(y))
    with pytest.raises(AssertionError, match=r"the Hessian at sample .* must be positive, got 0"):
        check_objective(lambda y, x: (np.ones(len(x)), np.zeros(len(x))), y, x)
    with pytest.raises(AssertionError, match="the gradient at sample"):
        check_objective(lambda y, x: (2 * right(y, x)[0], right(y, x)[1] * 2), y, x, loss=logloss)
    with pytest.raises(AssertionError, match=r"the Hessian at sample .* must be at least"):
        check_objective(lambda y, x: (right(y, x)[0], right(y, x)[1] / 2), y, x, loss=logloss)
    with pytest.raises(AssertionError, match="must have the shape of the margins"):
        check_objective(lambda y, x: (right(y, x)[0][:, None], right(y, x)[1]), y, x, loss=logloss)


def test_copies_are_equal():
    objective = Objective("squared", tau=2, threads=3)
    assert pickle.loads(pickle.dumps(objective)) == objective
    assert {objective: 1}[pickle.loads(pickle.dumps(objective))] == 1
    assert repr(objective).startswith("Objective(kind='squared', tau=2.0, k='targets', hessian='diagonal', floor=0.1")
    assert objective != Objective("squared")


@pytest.mark.parametrize(("name", "package"), [("LGBMClassifier", "lightgbm"), ("XGBClassifier", "xgboost")])
def test_a_missing_library_is_named(monkeypatch, name, package):
    """`test_boosting_processes.py` has that neither is imported before it is asked for."""
    monkeypatch.delitem(vars(boosting), name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    assert name in dir(boosting)
    with pytest.raises(ImportError, match=f"{name} needs {package}: pip install {package}"):
        getattr(boosting, name)


def test_a_classifier_that_there_is_not():
    with pytest.raises(AttributeError, match="CatBoostClassifier"):
        boosting.CatBoostClassifier  # noqa: B018
