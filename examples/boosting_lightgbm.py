"""Boosted trees on the HyperSimplex loss with LightGBM: the classifier, tuning, and native training.

    python examples/boosting_lightgbm.py

The data are handwritten digits. The whole training set is one batch of the loss: each class has a threshold among the
margins of all samples, and predictions compare margins with these thresholds. Needs lightgbm and scikit-learn.
"""

import lightgbm
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, train_test_split

from hypersimplex_ext.boosting import LGBMClassifier, Objective, check_objective

SETTINGS = {"learning_rate": 0.1, "num_leaves": 15, "verbosity": -1}


def shown(what, predictions, test_y):
    """Print the accuracy of predictions."""
    print(f"{what:44}{100 * np.mean(predictions == test_y):8.2f}")


def main():
    """Train in each way and print what came of it."""
    images, labels = load_digits(return_X_y=True)
    x, test_x, y, test_y = train_test_split(images, labels, test_size=0.3, stratify=labels, random_state=0)
    x, valid_x, y, valid_y = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    print(f"{'':44}{'accuracy, %':>11}")

    # LightGBM's own loss, for comparison.
    theirs = lightgbm.LGBMClassifier(n_estimators=60, n_jobs=1, **SETTINGS).fit(x, y)
    shown("LightGBM's log loss", theirs.predict(test_x), test_y)

    # The same classifier on this loss, stopped by it: what LightGBM's takes, this one takes too.
    model = LGBMClassifier(n_estimators=60, n_jobs=1, early_stopping_round=10, **SETTINGS)
    model.fit(x, y, **validation(valid_x, valid_y))
    shown("Fenchel-Young", model.predict(test_x), test_y)
    shown("Fenchel-Young, without thresholds", model.predict(test_x, raw_score=True).argmax(1), test_y)

    # Rankings want scores, not probabilities, which are cut off at 0 and 1.
    areas = [roc_auc_score(test_y == c, model.decision_function(test_x)[:, c]) for c in range(10)]
    print(f"{'mean area under the curve, %':44}{100 * np.mean(areas):8.2f}")

    # Settings of the loss are parameters of the classifier.
    small = LGBMClassifier(n_estimators=10, n_jobs=1, **SETTINGS)
    search = GridSearchCV(small, {"kind": ["fenchel_young", "squared"], "tau": [0.5, 2.0]}, cv=2).fit(x, y)
    print(f"{'best of a small grid':44}{search.best_params_}")

    # Native training: the objective, metrics by name, and the thresholds of the training set by hand.
    objective = Objective()
    found = check_objective(objective, y, model.predict(x, raw_score=True))
    print(f"{'gradient off by, relative':44}{found.gradient:8.0e}")
    parameters = {"objective": objective, "num_class": 10, "num_threads": 1, **SETTINGS}
    booster = lightgbm.train(parameters, lightgbm.Dataset(x, y), 60, feval=[objective.loss, objective.error])
    thresholds = objective.thresholds(y, booster.predict(x, raw_score=True))
    shown("Fenchel-Young, native", objective.predict(booster.predict(test_x, raw_score=True), thresholds), test_y)


def validation(x, y):
    """Name an evaluation set as this version of LightGBM does."""
    version = tuple(map(int, lightgbm.__version__.split(".")[:2]))
    return {"eval_X": x, "eval_y": y} if version >= (4, 7) else {"eval_set": [(x, y)]}


if __name__ == "__main__":
    main()
