"""The ways to train and to predict that are compared: losses, and how class indices come out of their logits."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from hypersimplex_ext import hypersimplex_loss, suggest_tau
from hypersimplex_ext.nn import HyperSimplexLoss

ARGMAX, RUNNING, CALIBRATED = "argmax", "running", "calibrated"


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train and to predict.

    Attributes:
        label: the name readers see.
        loss: number of classes -> module called as loss(logits [n, C], class indices [n]).
        predictions: the ways to predict of which each is reported; runs are compared by the first.
    """

    label: str
    loss: Callable[[int], nn.Module]
    predictions: tuple[str, ...] = (ARGMAX,)


def predict(way: str, loss: nn.Module, logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the predicted class indices [n] for logits [n, C].

    Args:
        way: `ARGMAX` of the logits; `RUNNING`, the loss's own `predict`; `CALIBRATED`, the same after `calibrate`.
        loss: as `Method.loss` made it.
        logits: what to predict from.
        x: logits of training samples, to calibrate with.
        y: their class indices.
    """
    if way == ARGMAX:
        return logits.argmax(dim=1)
    if way == CALIBRATED:
        loss = copy.deepcopy(loss)
        loss.calibrate(x, y)  # type: ignore[operator]
    labels: Tensor = loss.predict(logits)  # type: ignore[operator]
    return labels


class SoftmaxSquaredError(nn.Module):
    """Mean squared error between softmax probabilities and one-hot labels (the multi-class Brier score, over C)."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean over samples and classes for logits [n, C] and class indices [n]."""
        one_hot = functional.one_hot(target, logits.shape[1]).to(logits.dtype)
        return functional.mse_loss(logits.softmax(dim=1), one_hot)


class ModifiedHuber(nn.Module):
    r"""Each class against the rest by the modified Huber loss: the Fenchel-Young loss with a bias that is learned.

    .. math:: h(u, t) = \phi(u) - t u + t^2 / 2, \qquad \phi(u) = 0, u^2 / 2, u - 1/2

    for u below 0, in [0, 1] and above; the mean over samples and classes. The bias is that of the network's last layer.

    Args:
        normalisation: applied to the logits, or None.
        tau: divides the logits.
    """

    def __init__(self, normalisation: nn.Module | None = None, tau: float = 1.5) -> None:
        super().__init__()
        self.normalisation = normalisation or nn.Identity()
        self.tau = tau

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean over samples and classes for logits [n, C] and class indices [n]."""
        u = self.normalisation(logits) / self.tau
        inside = u.clamp(0, 1)
        one_hot = functional.one_hot(target, u.shape[1])
        return (inside * (u - inside / 2) - one_hot * (u - 0.5)).mean()

    def predict(self, logits: Tensor) -> Tensor:
        """Return the class indices [n] for logits [n, C]."""
        labels: Tensor = self.normalisation(logits).argmax(dim=1)
        return labels


class Fitzpatrick(HyperSimplexLoss):
    """The Fitzpatrick loss of the projection: twice the Fenchel-Young loss half-way between logits and labels.

    Its own thresholds are not those of the logits, so predictions are calibrated.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the mean over samples and classes for logits [n, C] and class indices [n]."""
        assert isinstance(self.tau, float)
        shifted = input + self.tau * functional.one_hot(target, input.shape[1])
        return 2 * hypersimplex_loss(shifted, target, k=self.k, tau=2 * self.tau, kind="fenchel_young")


class SuggestedTau(HyperSimplexLoss):
    """The loss at the temperature at which half of the first batch is active, the median over the classes."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss for logits [n, C] and class indices [n]."""
        if not self.num_batches_tracked.any():
            k = target.bincount(minlength=input.shape[1])
            self.tau = float(suggest_tau(input.detach(), k, 0.5, dim=0).nanmedian())
        value: Tensor = super().forward(input, target)
        return value


class Exponential(nn.Module):
    """Keeps a parameter that is learned positive."""

    def forward(self, logarithm: Tensor) -> Tensor:
        """Return the value."""
        return logarithm.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        """Return its logarithm."""
        return value.log()


def hypersimplex(
    label: str,
    k: Literal["targets"] | float,
    tau: float | Literal["learned", "suggested"],
    kind: str = "squared",
    predictions: tuple[str, ...] = (RUNNING, CALIBRATED, ARGMAX),
) -> Method:
    """Return the method that trains with `HyperSimplexLoss`."""

    def loss(num_classes: int) -> nn.Module:
        share = 1 / num_classes if k == "1/C" else k
        if tau == "suggested":
            return SuggestedTau(num_classes, k=share, kind=kind)
        if tau == "learned":
            learned = HyperSimplexLoss(num_classes, k=share, tau=nn.Parameter(torch.tensor(1.5)), kind=kind)
            return parametrize.register_parametrization(learned, "tau", Exponential())
        return HyperSimplexLoss(num_classes, k=share, tau=tau, kind=kind)

    return Method(label, loss, predictions)


BASELINE = "cross-entropy"

METHODS = {
    BASELINE: Method("cross-entropy", lambda num_classes: nn.CrossEntropyLoss()),
    "smoothed": Method("cross-entropy, smoothed", lambda num_classes: nn.CrossEntropyLoss(label_smoothing=0.1)),
    "hinge": Method("hinge", lambda num_classes: nn.MultiMarginLoss()),
    "mse": Method("MSE", lambda num_classes: SoftmaxSquaredError()),
    "huber": Method("modified Huber", lambda num_classes: ModifiedHuber()),
    "huber-normalised": Method(
        "modified Huber, batch-norm", lambda num_classes: ModifiedHuber(nn.BatchNorm1d(num_classes)), (RUNNING,)
    ),
    "hypersimplex-published": hypersimplex("HyperSimplex, as published", k=0.5, tau=1.5, predictions=(ARGMAX,)),
    "hypersimplex": hypersimplex("HyperSimplex, calibrated", k="targets", tau=1.5),
    "fenchel-young": hypersimplex("Fenchel-Young, calibrated", k="targets", tau=1.5, kind="fenchel_young"),
}
"""The methods that are compared by default."""

OTHERS = {
    "fitzpatrick": Method(
        "Fitzpatrick, calibrated", lambda num_classes: Fitzpatrick(num_classes, tau=1.5), (CALIBRATED, ARGMAX)
    )
}
_KINDS = {"hypersimplex": "squared", "fenchel-young": "fenchel_young"}
_SETTING = re.compile(r"k=(targets|1/C|\d+(\.\d+)?)|tau=(learned|suggested|\d+(\.\d+)?)")


@functools.cache
def method(name: str) -> Method:
    """Return the method of a name.

    Args:
        name: one of `METHODS` or `OTHERS`; or "hypersimplex" or "fenchel-young" with settings, as in
            "hypersimplex@k=0.5,tau=3": `k` is "targets", "1/C" or a share, `tau` a number, "learned" or "suggested".

    Raises:
        ValueError: there is none of that name.
    """
    known = METHODS | OTHERS
    if name in known:
        return known[name]
    base, _, settings = name.partition("@")
    values: dict[str, Any] = {"k": "targets", "tau": 1.5}
    for setting in settings.split(","):
        key, _, value = setting.partition("=")
        if base not in _KINDS or not _SETTING.fullmatch(setting):
            names = ", ".join([*known, *(f"{base}@k=K,tau=TAU" for base in _KINDS)])
            raise ValueError(f"loss: expected one of {names}; got {name!r}")
        values[key] = value if value in ("targets", "1/C", "learned", "suggested") else float(value)
    return hypersimplex(f"{known[base].label}, {settings.replace(',', ', ')}", kind=_KINDS[base], **values)
