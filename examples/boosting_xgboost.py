"""Boosted trees on the HyperSimplex loss with XGBoost: rare classes, costs, and native training.

    python examples/boosting_xgboost.py

A class of 2 % is to be found among two of 68 and 30 %. Each class is predicted as often as it occurs in the training
set, unless weights say that its errors cost more. Needs xgboost and scikit-learn.
"""

import numpy as np
import xgboost
from sklearn.datasets import make_classification
from sklearn.model_selection import train_test_split

from hypersimplex_ext.boosting import Objective, XGBClassifier

NAMES = np.array(["frequent", "common", "rare"])


def shown(what, predictions, test_y):
    """Print accuracy, how often the rare class is predicted, and how many of it are found."""
    rare = predictions == "rare"
    numbers = np.mean(predictions == test_y), rare.mean(), rare[test_y == "rare"].mean()
    print(f"{what:36}" + "".join(f"{100 * number:16.2f}" for number in numbers))


def main():
    """Train in each way and print what came of it."""
    features, classes = make_classification(
        8000, 10, n_informative=6, n_classes=3, weights=[0.68, 0.3, 0.02], class_sep=1.2, flip_y=0.02, random_state=0
    )
    parts = train_test_split(features, NAMES[classes], test_size=0.4, stratify=classes, random_state=0)
    x, test_x, y, test_y = parts
    x, valid_x, y, valid_y = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    print(f"{'':36}{'accuracy, %':>16}{'called rare, %':>16}{'rare found, %':>16}")
    settings = {"n_estimators": 100, "max_depth": 4, "n_jobs": 1}

    # XGBoost's own loss, which wants labels 0, 1, 2.
    theirs = xgboost.XGBClassifier(**settings).fit(x, np.searchsorted(np.sort(NAMES), y))
    shown("XGBoost's log loss", np.sort(NAMES)[theirs.predict(test_x)], test_y)

    # The same classifier on this loss; labels are strings.
    model = XGBClassifier(early_stopping_rounds=10, **settings).fit(x, y, eval_set=[(valid_x, valid_y)])
    shown("Fenchel-Young", model.predict(test_x), test_y)
    margins = model.predict(test_x, output_margin=True)
    shown("Fenchel-Young, without thresholds", model.classes_[margins.argmax(1)], test_y)

    # Errors on the rare class cost five times as much.
    weight = np.where(y == "rare", 5.0, 1.0)
    costly = XGBClassifier(**settings).fit(x, y, sample_weight=weight)
    shown("Fenchel-Young, rare class five times", costly.predict(test_x), test_y)

    # Native training, with the thresholds of the training set by hand.
    objective = Objective()
    order = {name: i for i, name in enumerate(model.classes_)}
    train = xgboost.DMatrix(x, [order[name] for name in y])
    parameters = {"num_class": 3, "max_depth": 4, "min_child_weight": 20, "nthread": 1}
    booster = xgboost.train(parameters, train, 100, obj=objective)
    thresholds = objective.thresholds(train.get_label(), booster.predict(train, output_margin=True))
    margins = booster.predict(xgboost.DMatrix(test_x), output_margin=True)
    shown("Fenchel-Young, native", model.classes_[objective.predict(margins, thresholds)], test_y)


if __name__ == "__main__":
    main()
