"""The objective, which both libraries call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch

from .. import _checks
from .._arguments import KINDS
from . import _arrays, _derivatives, _libraries, _scores
from ._arrays import Array
from ._derivatives import Settings

_T = TypeVar("_T")

HESSIANS = {"diagonal": 0, "bound": 1}
LEAST, MOST = 1e-18, 1e18  # of temperatures
_CATBOOST = (
    "CatBoost hands a custom loss the training set in blocks of rows, and on a GPU entry by entry: a loss that "
    "compares all samples cannot be expressed there. Use LightGBM or XGBoost"
)


class Objective:
    r"""The HyperSimplex loss of a whole training set, for LightGBM and XGBoost.

    One object serves four interfaces, binary and multiclass (with labels 0, ..., C - 1, and `num_class` for C > 2):

    - `lightgbm.train({"objective": objective}, dataset)`
    - `xgboost.train(parameters, dmatrix, obj=objective)`
    - `lightgbm.LGBMClassifier(objective=objective)`
    - `xgboost.XGBClassifier(objective=objective)`

    The last two predict wrong labels, as they know nothing of thresholds: use the classifiers of this module, which do.
    After native training `thresholds` takes them from the margins of the training set, for `predict` and the like.

    With z = x / tau and p the projection of the margins x of a class over all samples, of mass k, and targets t,

    .. math::
        \text{Fenchel-Young:}\quad g_i &= (p_i - t_i) / \tau \\
        \text{squared:}\quad g_i &= 2 (r_i - \bar r_A) / \tau \;\text{ on } A, \quad r = p - t

    are the gradients of the loss, summed as boosting wants it, where A holds the entries with 0 < p < 1. On A the
    diagonal of the Hessian is b (1 - 1 / n_A), with n_A entries in A and b = 1 / tau^2, or 2 / tau^2 for the squared
    loss; elsewhere it is 0. Leaves of samples that are not in A would grow without bound; so it is kept at `floor` b at
    least. With weights a sample counts as often as its weight says, in the mass too: they move what is predicted, as
    with the libraries' own losses.

    Args:
        kind: "fenchel_young" or "squared". The squared loss, the paper's, does not move samples that are saturated on
            the wrong side.
        tau: Temperature in the units of the margins. Trees find the scale of their margins themselves, so that tau
            does no more than to set it: with tau, the libraries' sums of Hessians, and with them the weight of
            `min_child_weight` and `reg_lambda`, change by 1 / tau^2.
        k: Mass of each class: "targets", the number of its samples; a float, a share of all; an int, this number,
            in metrics of other sets too, which may be smaller: take a float there.
        hessian: "diagonal", or "bound", b everywhere, with which a full step cannot raise a Fenchel-Young loss.
        floor: The least diagonal as a share of b, in (0, 1].
        threads: How many threads to use at most; None for as many as PyTorch has.

    Raises:
        TypeError: `tau`, `floor`, `k` or `threads` is no number.
        ValueError: A setting is out of its range.

    Calling it raises TypeError or ValueError by name for margins, labels or weights that cannot be meant: a nan, an
    infinite margin beside weights, one class alone, other labels than 0, ..., C - 1, negative weights, other shapes;
    and NotImplementedError where training is spread over workers.

    Example:
        >>> objective = Objective()
        >>> gradient, hessian = objective(np.array([0, 1, 1]), np.array([0.2, 0.0, 0.6]))
        >>> gradient.round(2)
        array([ 0.6, -0.6,  0. ])
    """

    def __init__(
        self,
        kind: str = "fenchel_young",
        tau: float = 1.0,
        k: float | str = "targets",
        hessian: str = "diagonal",
        floor: float = 0.1,
        *,
        threads: int | None = None,
    ) -> None:
        _checks.choice("kind", kind, KINDS)
        _checks.choice("hessian", hessian, HESSIANS)
        share = _checks.positive("floor", floor, "a real number")
        if share > 1:
            raise ValueError(f"floor must lie in (0, 1], got {share}")
        if threads is not None and _checks.integer("threads", threads) < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        mass, temperature = _checks.share("k", k), _checks.positive("tau", tau, "a real number")
        if not LEAST <= temperature <= MOST:
            raise ValueError(f"tau must lie in [{LEAST:g}, {MOST:g}], as 1 / tau^2 is kept in float32, got {tau}")
        self.settings = Settings(kind, temperature, mass, hessian, share)
        self.threads = threads

    @property
    def tau(self) -> float:
        """The temperature."""
        return self.settings.tau

    def __call__(self, first: Any, second: Any, sample_weight: Any = None) -> tuple[Array, Array]:
        """Gradient and Hessian in the shape, dtype and layout of the margins.

        Args:
            first: Labels, or the margins in native training.
            second: Margins, or LightGBM's Dataset or XGBoost's DMatrix in native training.
            sample_weight: Beside labels: weights [n]. It bears the name that XGBoost gives it, and is the third, where
                LightGBM has it; there is no fourth, and no other name, that they could fill.
        """
        labels, margins, weight, _ = _libraries.given(first, second, sample_weight)
        with _at_most(self.threads):
            x = _arrays.margins(margins)
            target, s = _arrays.labels(labels, x, to_train=True), _arrays.weights(weight, x)
            found = _derivatives.derivatives(x, target, s, self.settings)
        shape = np.shape(margins)  # [n, 1] too
        return found.gradient.numpy().reshape(shape), found.hessian.numpy().reshape(shape)

    def loss(self, first: Any, second: Any, sample_weight: Any = None) -> Any:
        """The mean of the loss over samples and classes, a metric: arguments as in a call, all samples at once.

        It is taken at the thresholds of these margins, so that a shift of them does not change it, whatever `k`.

        A float; in native training what the library wants of a metric (LightGBM's `feval`, XGBoost's `custom_metric`).
        """
        value, library = self._evaluated(_derivatives.loss_at_own_thresholds, first, second, sample_weight)
        return _libraries.metric("loss", value, library)

    def error(self, first: Any, second: Any, sample_weight: Any = None) -> Any:
        """The share of wrong labels at the thresholds of these very margins: a metric, as :meth:`loss`."""
        labels, margins, weight, library = _libraries.given(first, second, sample_weight)
        wrong = self.predict(margins, self.thresholds(labels, margins, weight)) != np.asarray(labels).reshape(-1)
        s = _arrays.weights(weight, _arrays.margins(margins))
        return _libraries.metric("error", float(np.average(wrong, weights=s)), library)

    def thresholds(self, first: Any, second: Any, sample_weight: Any = None) -> Array:
        """The thresholds [C] of the projections (binary: [1]), in float64.

        For prediction those of the training set: arguments as in a call, with the margins that the model predicts for
        it. A class without samples has +inf, and is never predicted.

        Example:
            >>> Objective().thresholds(np.array([0, 1, 1, 0]), np.array([0.2, 0.5, 0.6, 0.1]))
            array([-0.15])
        """
        return self._evaluated(_derivatives.thresholds, first, second, sample_weight)[0].numpy()

    def _evaluated(
        self, evaluate: Callable[..., _T], first: Any, second: Any, sample_weight: Any
    ) -> tuple[_T, str | None]:
        """What a function says of margins, labels and weights, and the library that these are from."""
        labels, margins, weight, library = _libraries.given(first, second, sample_weight)
        with _at_most(self.threads):
            x = _arrays.margins(margins)
            return evaluate(x, _arrays.labels(labels, x), _arrays.weights(weight, x), self.settings), library

    def scores(self, margins: Any, thresholds: Any) -> Array:
        """(x - T) / tau, margins made comparable across classes; a binary label is 1 where it exceeds 1/2."""
        return _scores.scores(_arrays.margins(margins).numpy(), thresholds, self.settings.tau)

    def predict(self, margins: Any, thresholds: Any) -> Array:
        """Labels 0, ..., C - 1 in int64, [n]: whether the score exceeds 1/2, or the class with the largest."""
        return _scores.labels(self.scores(margins, thresholds))

    def predict_proba(self, margins: Any, thresholds: Any) -> Array:
        """Probabilities [n, C], of two classes in the binary case; see :meth:`nn.HyperSimplexLoss.predict_proba`."""
        return _scores.probabilities(self.scores(margins, thresholds))

    def __repr__(self) -> str:
        settings = self.settings._asdict() | ({} if self.threads is None else {"threads": self.threads})
        return f"Objective({', '.join(f'{name}={value!r}' for name, value in settings.items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Objective) and (self.settings, self.threads) == (other.settings, other.threads)

    def __hash__(self) -> int:
        return hash((self.settings, self.threads))

    def calc_ders_range(self, *_arguments: Any) -> NoReturn:
        """What CatBoost calls in place of the object."""
        raise NotImplementedError(_CATBOOST)

    calc_ders_multi = calc_ders_range


@contextlib.contextmanager
def _at_most(threads: int | None) -> Iterator[None]:
    """No more threads of PyTorch's than this, for a while."""
    before = torch.get_num_threads()
    if threads is None or threads >= before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
