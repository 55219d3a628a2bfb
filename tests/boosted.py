"""Small data for the classifiers of LightGBM and XGBoost, and what the two name differently."""

import warnings

import numpy as np


def made(classifier, **parameters):
    quiet = {"verbosity": -1} if classifier.__name__ == "LGBMClassifier" else {}
    return classifier(**{"n_estimators": 8, "n_jobs": 1, **quiet, **parameters})


def data(classes, n=600, seed=0, shares=None):
    rng = np.random.default_rng(seed)
    y = rng.choice(classes, n, p=shares)
    x = rng.normal(size=(n, 6)) + 1.5 * np.eye(classes, 6)[y]
    return x, y


def fitted_with_stopping(model, x, y, valid_x, valid_y, **more):
    """Trained until the loss of a validation set has not fallen for two rounds."""
    if type(model).__name__ == "XGBClassifier":
        return model.set_params(early_stopping_rounds=2).fit(x, y, eval_set=[(valid_x, valid_y)], **more)
    import lightgbm

    stopping = [lightgbm.early_stopping(2, verbose=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # eval_set is deprecated from 4.7 on, and before it there is no other
        return model.fit(x, y, eval_set=[(valid_x, valid_y)], callbacks=stopping, **more)


def margins_of(model, x, **more):
    return model.predict(
        x, **{"output_margin" if type(model).__name__ == "XGBClassifier" else "raw_score": True}, **more
    )


def best_iteration(model):
    """How many rounds predict."""
    return model.best_iteration + 1 if type(model).__name__ == "XGBClassifier" else model.best_iteration_
