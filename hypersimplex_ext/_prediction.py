"""What the thresholds of a loss are good for: scores, probabilities, labels, and the layer they are folded into."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer

from . import _checks, _folding
from ._modules import Module, is_traced, leaf
from .functional import Proxy


class Predictor(Module):
    """A module with a threshold T_c for every class: a sample's score for class c is (x_c - T_c) / tau_c.

    A class without a threshold, as it was in no batch, scores -inf and is never predicted. Before the first batch no
    class has one, and T = 0 serves for all.
    """

    running_threshold: Tensor
    num_batches_tracked: Tensor
    tau: float | Tensor
    _dense_targets: bool  # whether several classes were trained on dense targets

    def _classes(self) -> int:
        if isinstance(self.running_threshold, UninitializedBuffer):
            raise ValueError("the number of classes is not known yet: give num_classes, or call the loss once")
        return len(self.running_threshold)

    def _check_classes(self, input: Tensor, single: bool = False) -> None:
        """Raise unless the logits have C classes; `single` allows [C]."""
        _checks.logits(input)
        due = self._classes()
        came = input.shape[1] if input.ndim > 1 else len(input) if single and due > 1 else 1
        if came != due:
            raise ValueError(f"input must have {due} classes, got shape {list(input.shape)}")

    def _known(self) -> Tensor:
        """The classes that have a threshold, bool [C]: before the first batch all, with 0."""
        tracked = self.num_batches_tracked > 0
        return tracked | ~tracked.any()

    def _margins(self, logits: Tensor) -> tuple[Tensor, Tensor | float]:
        """The logits minus their thresholds, and tau so that it broadcasts against them; in float32 at least."""
        self._check_classes(logits, single=True)
        per_class = (-1, *(1,) * (logits.ndim - 2))
        dtype = torch.promote_types(self.running_threshold.dtype, logits.dtype)
        tau = self.tau
        if isinstance(tau, Tensor):
            dtype = torch.promote_types(dtype, tau.dtype)
            tau = _checks.per_vector("tau", tau, logits, self.running_threshold.shape, "the number of classes")
            tau = tau.to(dtype).reshape(per_class)
        margins = logits.to(dtype) - self.running_threshold.to(dtype).reshape(per_class)
        return margins.masked_fill(~self._known().reshape(per_class), -torch.inf), tau

    def _by_class(self, multilabel: bool | None, method: str) -> bool:
        """Whether every class is decided on its own."""
        if len(self.running_threshold) == 1:
            return True
        if multilabel is None and self._dense_targets:
            raise ValueError(
                f"training saw dense targets, which can hold several labels per sample: ask for {method}(logits, "
                f"multilabel=True), every class on its own, or {method}(logits, multilabel=False), one class per sample"
            )
        return bool(multilabel)

    def scores(self, logits: Tensor) -> Tensor:
        """(x - running_threshold) / tau: logits made comparable across classes, in their shape.

        An entry is in the upper half of its class's projection where its score is at least 1/2, so for multi-label
        targets `scores(logits) >= 0.5` is the prediction. Scores are float64 where the logits, `running_threshold` or
        a tensor `tau` are, else float32: in half types their order would be lost. A class that was in none of the
        batches so far, though others were, scores -inf.
        """
        margins, tau = self._margins(logits)
        return margins / tau

    def predict(self, logits: Tensor, *, multilabel: bool | None = None) -> Tensor:
        """Labels, int64: the class with the largest score, [n], [N, d1, ...] or [].

        With one class, binary: 1 where the score is at least 1/2, else 0, in the shape of `logits`. Scores are compared
        as wide as :meth:`scores` has them, and without a division that could overflow.

        Args:
            logits: [n, C], [n] (binary), [N, C, d1, ...], or [C] of a single sample.
            multilabel: True for any number of labels per sample: for every class 1 or 0 as in the binary case, in the
                shape of `logits`. False for one label per sample. None for what the module was trained on, if this was
                class indices: dense targets can be either.

        Raises:
            ValueError: The module was trained on dense targets of several classes, and `multilabel` is None.
        """
        margins, tau = self._margins(logits)
        if self._by_class(multilabel, "predict"):
            return (margins >= tau / 2).long()
        if isinstance(tau, Tensor):
            margins = margins / (tau / tau.min())  # at least 1
        return margins.argmax(min(logits.ndim - 1, 1))

    def predict_proba(self, logits: Tensor, *, multilabel: bool | None = None) -> Tensor:
        r"""Probabilities of the classes, in the shape of `logits` and the dtype of :meth:`scores`.

        Of every class on its own, binary or multi-label, the probability is the score clipped to [0, 1], which is what
        the projection gives an entry. Of exclusive classes the probabilities are the distribution nearest to the scores
        s, which are lowered by a common amount so that what stays above 0 sums to 1 (Martins and Astudillo,
        "From Softmax to Sparsemax", 2016):

        .. math:: \arg\min_q \|q - s\|^2 \quad\text{over}\quad q \ge 0,\ \sum_c q_c = 1

        so their largest is the class that :meth:`predict` gives. Where scores are probabilities, they stay as they are.

        Args:
            logits: As :meth:`predict` takes them.
            multilabel: Likewise.

        Raises:
            ValueError: As :meth:`predict`.

        Example:
            >>> from hypersimplex_ext.nn import HyperSimplexLoss
            >>> HyperSimplexLoss(3).eval().predict_proba(torch.tensor([[0.5, 0.3, -2.0], [4.0, 1.0, 0.0]]))
            tensor([[0.6000, 0.4000, 0.0000],
                    [1.0000, 0.0000, 0.0000]])
        """
        scores = self.scores(logits)
        return scores.clamp(0, 1) if self._by_class(multilabel, "predict_proba") else _nearest_distribution(scores)

    def calibration(self, *, probabilities: bool = False, multilabel: bool | None = None) -> Calibrated:
        """A module for the end of a model, after which a plain argmax is right; see :class:`Calibrated`."""
        return Calibrated(self, probabilities=probabilities, multilabel=multilabel)

    @torch.no_grad()
    def fold_into(self, linear: torch.nn.Module) -> None:
        """Move the calibration into the layer that makes the logits, so that its plain output predicts.

        Afterwards `output.argmax(1)`, for binary `output >= 0`, is up to rounding what :meth:`predict` gave before and,
        as `running_threshold` is reset to match, still gives. The loss is unchanged. Thresholds go into the bias, which
        is made if missing. Where `tau` differs from class to class, weight and bias are divided by it, also in other
        layers that share them, and `tau` becomes 1: a buffer, which is the module's own, in place; a learned `tau` by
        a new parameter, which an optimizer has to be given if training goes on.

        Args:
            linear: The last layer, whose output is the logits: `nn.Linear`, `nn.Bilinear`, a convolution or transposed
                convolution, in float32 or float64. It is changed in place; after an error nothing is. Its weight may be
                computed, as by weight norm or pruning, unless it has to be divided.

        Raises:
            TypeError: `linear` is no such layer, such as one with a forward of its own; or what has to be changed is
                not a plain parameter, or of a half type, which would round the thresholds.
            ValueError: Its number of outputs is not C, which may not be known yet, or the result overflows; or a class
                was in none of the batches so far, though others were: no bias keeps it from ever being predicted.
        """
        classes, tau = self._classes(), self.tau
        known = self._known()
        if not known.all():
            missing = (~known).nonzero().flatten().tolist()
            raise ValueError(f"every class must have a threshold to fold, but {missing} were in no batch")
        shift, rest, scale = self.running_threshold, torch.zeros_like(self.running_threshold), None
        if classes == 1:  # a score of 1/2 becomes an output of 0
            shift, rest = shift + tau / 2, rest - tau / 2
        others = [(self.running_threshold, rest)]
        if isinstance(tau, Tensor) and tau.numel() > 1:
            scale = _checks.per_vector("tau", tau, shift, (classes,), "the number of classes")
            if not tau.requires_grad:
                others.append((tau, torch.ones_like(tau)))
        _folding.fold(linear, classes, shift, scale, others)
        if scale is not None and self.tau.requires_grad:  # type: ignore[union-attr]
            self.tau = torch.nn.Parameter(torch.ones_like(self.tau))  # type: ignore[arg-type]


def _nearest_distribution(scores: Tensor) -> Tensor:
    """The Euclidean projection of each sample's scores [C], [n, C] or [N, C, d...] onto the simplex, by sorting.

    Written out, and not `soft_binary_argmax(scores, 1)`, so that an exported model needs no operator of this package.
    """
    dim = min(scores.ndim - 1, 1)
    above = scores - scores.amax(dim, keepdim=True)  # the result does not depend on a shift
    ordered = above.sort(dim, descending=True).values
    excess = ordered.cumsum(dim) - 1
    rank = torch.arange(1, scores.shape[dim] + 1, device=scores.device).reshape(-1, *(1,) * (scores.ndim - dim - 1))
    support = (rank * ordered > excess).sum(dim, keepdim=True).clamp(min=1)  # how many stay above 0; 1 if nan
    return (above - excess.gather(dim, support - 1) / support).clamp(min=0)


class Calibrated(torch.nn.Module):
    """The end of a model: logits in, calibrated scores or probabilities out, so that a plain argmax predicts.

    It holds the loss itself and reads its thresholds at every call. So it is right during training and after it, and
    stays so however the two are moved, converted, copied together or loaded: there is one set of thresholds. A state
    dict of what holds both lists them under both names. Copied or exported without the loss, it takes along its state
    at that time. The loss is to be given the logits, not these scores.

    Made by :meth:`HyperSimplexLoss.calibration`.

    Args:
        loss: The :class:`HyperSimplexLoss` that the model is trained with.
        probabilities: Give :meth:`HyperSimplexLoss.predict_proba` in place of :meth:`HyperSimplexLoss.scores`.
        multilabel: As `predict_proba` takes it.

    Example:
        >>> from hypersimplex_ext.nn import HyperSimplexLoss
        >>> network, loss = torch.nn.Linear(6, 3), HyperSimplexLoss(3)
        >>> _ = loss(network(torch.randn(20, 6)), torch.arange(20) % 3)  # a step of training
        >>> model = torch.nn.Sequential(network, loss.calibration())
        >>> x = torch.randn(5, 6)
        >>> torch.equal(model(x).argmax(1), loss.predict(network(x)))
        True
    """

    def __init__(self, loss: Predictor, *, probabilities: bool = False, multilabel: bool | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.probabilities = probabilities
        self.multilabel = multilabel

    def forward(self, logits: Tensor) -> Tensor:
        """Scores or probabilities in the shape of the logits."""
        if isinstance(logits, Proxy) and is_traced(self, logits):
            traced: Tensor = leaf(self, logits)
            return traced
        if self.probabilities:
            return self.loss.predict_proba(logits, multilabel=self.multilabel)
        return self.loss.scores(logits)

    def extra_repr(self) -> str:
        """What it gives."""
        shown = ["probabilities=True"] * self.probabilities
        return ", ".join(shown if self.multilabel is None else [*shown, f"multilabel={self.multilabel}"])
