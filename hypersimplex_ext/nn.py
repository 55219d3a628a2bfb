"""Modules: the loss with the thresholds that prediction needs; the layer and the end of a model are listed with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from . import _calibration, _checks, _loss_composed
from ._arguments import KINDS, REDUCTIONS, Statistics, loss_arguments
from ._layer import SoftBinaryArgmax
from ._loss_ops import average_thresholds, numbers_of_entries, thresholds_of
from ._memory import Remembering, Samples
from ._modules import is_traced, leaf, statistic
from ._prediction import Calibrated, Predictor
from ._shards import HeldGroup, group_of
from ._torch_private import LazyModule
from .functional import Proxy, loss_and_statistics

__all__ = ["Calibrated", "HyperSimplexLoss", "SoftBinaryArgmax"]

THRESHOLDS = {"running": 0, "batch": 1}  # those that a loss is evaluated with


class HyperSimplexLoss(LazyModule, Predictor, Remembering):
    r"""The HyperSimplex loss, with the thresholds that turn its logits into predictions.

    The loss is that of :func:`hypersimplex_ext.hypersimplex_loss`. It is blind to a shift of a class's logits, hence
    trains no offset between classes, and plain argmax over the classes compares logits with arbitrary offsets. What
    makes them comparable are the thresholds t_c of the projections, of which this module keeps a running average in
    training mode, as batch normalisation keeps its statistics:

    .. math:: \text{scores}_c = (x_c - T_c) / \tau_c, \qquad T \leftarrow (1 - m)\, T + m\, t

    with m = max(momentum, 1 / b) in the b-th batch of a class: a plain average over the first 1 / momentum batches, an
    exponential one from then on. A batch in which a class has no finite threshold, as it has none or only positives,
    does not count and leaves its average as it is.

    In eval mode the loss is that of every sample on its own, at the running thresholds: the value over a data set does
    not depend on how it is cut into batches. With the target t of an entry,

    .. math::
        u = (x_c - T_c) / \tau_c, \quad p = \mathrm{clip}(u, 0, 1), \qquad
        \text{squared: } (p - t)^2, \quad
        \text{Fenchel-Young: } \tfrac12 (u - t)^2 - \tfrac12 (u - p)^2

    It has no `k`. Its sum is the training loss where T are the batch's own thresholds, if, for Fenchel-Young, `k` is
    "targets"; with other thresholds the Fenchel-Young loss is larger. Before the first batch T is 0. Later a class that
    was in no batch is left out, as entries with `ignore_index` are.

    Args:
        num_classes: C; 1 for binary logits [n]. None takes it from the first input, as PyTorch's lazy modules do.
        k: As in :func:`hypersimplex_ext.hypersimplex_loss`.
        tau: Likewise; an `nn.Parameter` is learned, and kept positive by a parametrization, exp of its logarithm, say
            (`torch.nn.utils.parametrize`).
        kind: "squared" or "fenchel_young". The squared loss does not move entries that are saturated on the wrong side:
            keep `active_fraction` away from 0, or take Fenchel-Young, which has no such dead zone.
        weight: Class weights [C].
        ignore_index: Class index of samples, or dense or binary target of entries, to leave out.
        label_smoothing: In [0, 1].
        reduction: "mean", "sum" or "none".
        momentum: In (0, 1], or None for the plain average over all batches.
        weighted_mass: Whether a sample counts as often as its weight says in the projection and in `k` too, and so in
            the thresholds.
        memory: m, how many samples of earlier batches the loss is over as well, in training mode.
        eval_thresholds: What the loss compares with in eval mode: "running", or "batch" for the thresholds of the
            batch, as in training mode.
        group: As in :func:`hypersimplex_ext.hypersimplex_loss`: the loss, and the thresholds, are those of the samples
            of all processes in training mode. Copies of the module share it; it cannot be pickled, and is not in the
            state dict.
        gradient_divisor: Likewise.
        device: Device of the buffers.
        dtype: Dtype of `running_threshold`, by default that of new tensors; at least float32.

    With a memory the projections are over the batch and the last m samples before it, of which logits without a graph,
    targets and weights are kept in buffers: thresholds are steadier in small batches, and a class that a batch has no
    positives of has a gradient all the same. The gradient is that of the loss over all of these samples, in the rows of
    the batch. With reduction "mean" it is divided by the weight of the batch, not by that of all, so that a learning
    rate keeps its meaning. The value is that of the batch's own samples at the thresholds of all, in the form that it
    has in eval mode. `k` is a mass of batch and memory together, and a number of samples wants a memory that is full.
    Positions of [N, C, d1, ...] are samples. Of a batch larger than m the first m samples are kept.

    A `k` or `tau` without a gradient is copied into a buffer. `half()`, `float()` and the like never narrow a buffer:
    counts, temperatures, weights and thresholds keep their digits, unlike the statistics of PyTorch's batch-norm.
    NumPy's numbers and fractions become Python's.

    Raises:
        TypeError, ValueError: As :func:`hypersimplex_ext.hypersimplex_loss`, as far as it shows without an input: a
            setting is not of its type or out of range, a tensor has not one number per class, or `reduction` is "none"
            with a memory: the derivative of the batch's terms alone is not that of a loss.

    Attributes:
        running_threshold: T [C] in the units of the logits; a buffer, 0 before the first batch.
        num_batches_tracked: [C], int64: how many batches have gone into each average; a buffer.
        memory_logits, memory_labels, memory_targets, memory_weights: What is remembered, the newest first, if
            `memory` is not 0; buffers.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> criterion = HyperSimplexLoss(tau=0.5)
        >>> x, labels = torch.randn(8, 3, requires_grad=True), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
        >>> criterion(x, labels).backward()
        >>> criterion.predict(x).shape
        torch.Size([8])
    """

    running_threshold: Tensor
    num_batches_tracked: Tensor
    k: float | Tensor | Literal["targets"]
    tau: float | Tensor
    weight: Tensor | None

    def __init__(
        self,
        num_classes: int | None = None,
        k: float | Tensor | Literal["targets"] = "targets",
        tau: float | Tensor = 1.0,
        *,
        kind: str = "squared",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        momentum: float | None = 0.1,
        weighted_mass: bool = False,
        memory: int = 0,
        eval_thresholds: str = "running",
        group: Any = None,
        gradient_divisor: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _checks.choice("kind", kind, KINDS)
        _checks.choice("reduction", reduction, REDUCTIONS)
        if momentum is not None:
            momentum = _checks.number("momentum", momentum)
            if not 0 < momentum <= 1:
                raise ValueError(f"momentum must lie in (0, 1] or be None, got {momentum}")
        if num_classes is not None:
            num_classes = _checks.integer("num_classes", num_classes)
            if num_classes < 1:
                raise ValueError(f"num_classes must be at least 1 or None, got {num_classes}")
        self._keep("k", k if isinstance(k, Tensor) else _checks.share("k", k), device)
        self._keep("tau", tau if isinstance(tau, Tensor) else _checks.temperature(tau), device)
        if weight is not None:
            weight = _checks.tensor("weight", weight)
        self.register_buffer("weight", weight if weight is None or device is None else weight.to(device))
        self.kind = kind
        self.ignore_index = _checks.integer("ignore_index", ignore_index)
        self.label_smoothing = _checks.fraction("label_smoothing", label_smoothing)
        self.reduction = reduction
        self.momentum = momentum
        self._group = HeldGroup(group_of(group))
        if gradient_divisor is not None:
            gradient_divisor = _checks.positive("gradient_divisor", gradient_divisor, "a real number or None")
        self.gradient_divisor = gradient_divisor
        _checks.choice("eval_thresholds", eval_thresholds, THRESHOLDS)
        self.eval_thresholds = eval_thresholds
        self._dense_targets = False  # whether several classes were trained on dense targets
        self._last_state: Tensor | None = None  # of the loss in the last training step
        dtype = torch.promote_types(torch.get_default_dtype() if dtype is None else dtype, torch.float32)
        self.register_buffer("running_threshold", statistic(num_classes, device, dtype))
        self.register_buffer("num_batches_tracked", statistic(num_classes, device, torch.int64))
        self.weighted_mass = bool(weighted_mass)
        self.memory = _checks.integer("memory", memory)
        if self.memory < 0:
            raise ValueError(f"memory must be at least 0, got {memory}")
        if self.memory and reduction == "none":
            raise ValueError("reduction must be 'mean' or 'sum' with a memory, got 'none'")
        if self.memory and group is not None:
            raise ValueError(f"memory must be 0 with a group, got {memory}")
        if weighted_mass and group is not None:
            raise ValueError("weighted_mass must be False with a group, got True")
        self._make_memory(num_classes, device, dtype)
        if num_classes is not None:
            self._check_settings(num_classes)
            self.settle()

    def _check_settings(self, num_classes: int) -> None:
        """Raise where a tensor has not one number per class."""
        for name, value in (("k", self.k), ("tau", self.tau)):
            if isinstance(value, Tensor):
                _checks.per_vector(name, value, value, (num_classes,), "the number of classes")
        if self.weight is not None:
            _checks.weight("weight", self.weight, self.weight, (num_classes,))

    def initialize_parameters(self, input: Tensor, target: Tensor, *_arguments: Any, **_keywords: Any) -> None:
        """Take the number of classes from the first batch."""
        if self.has_uninitialized_params():
            input, _ = _checks.labelled(input, target)
            num_classes = input.shape[1] if input.ndim > 1 else 1
            self._check_settings(num_classes)
            with torch.no_grad():
                for buffer in (self.running_threshold, self.num_batches_tracked):
                    buffer.materialize((num_classes,))  # type: ignore[attr-defined]
                    buffer.zero_()
                self._size_memory(num_classes)

    def _sees_sizes(self, *arguments: Any) -> bool:
        return not any(is_traced(self, a) for a in arguments)  # by torch.fx, which sees none

    def reset_running_stats(self) -> None:
        """Forget the thresholds, what kind of targets they come from, and the samples in memory."""
        self.running_threshold.zero_()
        self.num_batches_tracked.zero_()
        self._forget()
        self._dense_targets = False

    def get_extra_state(self) -> Tensor:
        """What is saved beside the buffers: whether dense targets of several classes were trained on, and a float tau.

        Two numbers in float64, of which the second is 0 where tau is a tensor, which is saved by itself.
        """
        tau = 0.0 if isinstance(self.tau, Tensor) else self.tau
        return torch.tensor([self._dense_targets, tau], dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what `get_extra_state` gave, or did before it gave tau."""
        dense_targets, *taus = state.reshape(-1).tolist()
        self._dense_targets = bool(dense_targets)
        for tau in taus:
            if tau > 0 and not isinstance(self.tau, Tensor):
                self.tau = tau

    @torch.no_grad()
    def calibrate(
        self,
        model: Callable[[Any], Tensor] | Tensor,
        loader: Iterable[Any] | Tensor,
        sample_weight: Tensor | None = None,
    ) -> None:
        """Set the thresholds to those of a whole data set, exactly, in place of averages over the batches of training.

        Of use after training, above all in small batches, and wherever the statistics of batch-norm are computed anew:
        for the averaged weights of `torch.optim.swa_utils`, say. The logits of all samples are kept at a time, and
        nothing else of them. `k`, `tau` and all other settings are those of the loss; a `k` that counts counts samples
        of the data set. Every class with a finite threshold counts as having been in one batch, the others in none.

        Args:
            model: Makes logits of an input: a module is in eval mode meanwhile, whatever the modes of its parts were.
                Or logits, as the loss takes them.
            loader: Yields tuples or lists that begin with input and target, and weights if `weighted_mass`; tensors are
                moved to the device of the loss. Or, with logits, their targets.
            sample_weight: With logits, their weights, which matter if `weighted_mass`.

        Raises:
            TypeError: `loader` yields something else, or one of the two is a Tensor and the other is not.
            ValueError: `loader` yields nothing.
            TypeError, ValueError, IndexError: As the loss, for these logits and targets.

        Example:
            >>> criterion, x = HyperSimplexLoss(2), torch.tensor([[3.0, 0.0], [2.0, 4.0], [1.0, 5.0], [0.0, 6.0]])
            >>> criterion.calibrate(x, torch.tensor([0, 1, 1, 1]))
            >>> criterion.running_threshold
            tensor([2.0000, 1.5000])
        """
        device = self.running_threshold.device
        logits, target, s = _calibration.gathered(model, loader, sample_weight, self.weighted_mass, device)
        self.initialize_parameters(logits, target)
        self._check_classes(logits)
        state = self._compute(logits, target, s, "mean")[1]()
        self.reset_running_stats()
        self._track(state)
        self._dense_targets = target.shape == logits.shape and len(self.running_threshold) > 1

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The loss; in training mode this also updates `running_threshold` and `active_fraction`.

        In eval mode it is that of every sample on its own, unless `eval_thresholds` says otherwise.

        Args:
            input: Logits [n, C], [n] or [n, 1] (binary), [N, C, d1, ...], or [C] of a single sample.
            target: Class indices [n] or [N, d1, ...], or dense targets with the shape of `input`.
            sample_weight: Weights [n] or [N, d1, ...].
        """
        if isinstance(input, Proxy) and is_traced(self, input):
            traced: Tensor = leaf(self, input, target, sample_weight)
            return traced
        self._check_classes(input, single=getattr(target, "ndim", 1) == 0)
        if not self.training and self.eval_thresholds == "running":
            return self._loss_at(self.running_threshold, self._known(), input, target, sample_weight)
        batch = input, target, sample_weight
        remembering = self.training and self.memory > 0
        if remembering:
            input, target, sample_weight = samples = self._with_memory(*batch)
        loss, statistics = self._compute(input, target, sample_weight, self.reduction)
        if self.training:
            with torch.no_grad():
                self._last_state = statistics()
                self._track(self._last_state)
            if target.shape == input.shape and input.ndim > 1 and input.shape[1] > 1:
                self._dense_targets = True
            if remembering:
                loss = self._of_batch(loss, thresholds_of(self._last_state), samples, *batch)
                self._remember(samples)
        return loss

    @property
    def group(self) -> Any:
        """The process group over which the loss is, or None."""
        return self._group.group

    def _compute(
        self, input: Tensor, target: Tensor, sample_weight: Tensor | None, reduction: str
    ) -> tuple[Tensor, Statistics]:
        """The loss at the thresholds of these samples, and a function that returns its state."""
        return loss_and_statistics(
            input, target, self.k, self.tau, self.kind, self.weight, sample_weight, self.ignore_index,
            self.label_smoothing, reduction, self.weighted_mass, self.group, self.gradient_divisor,
        )  # fmt: skip

    def _of_batch(self, loss: Tensor, threshold: Tensor, samples: Samples, *batch: Any) -> Tensor:
        """The value that the batch has at these thresholds, with the gradient of the loss over batch and memory."""
        with torch.no_grad():
            value = self._loss_at(threshold, True, *batch)
            factor = self._share(samples) if self.reduction == "mean" else 1
        return value + ((loss - loss.detach()) * factor).to(value.dtype)

    def _loss_at(
        self, threshold: Tensor, known: Tensor | bool, input: Tensor, target: Tensor, sample_weight: Tensor | None
    ) -> Tensor:
        """The loss at given thresholds [C], of the classes that are `known`."""
        settings = self.weight, sample_weight, self.ignore_index, self.label_smoothing, self.kind, self.reduction
        logits, arguments = loss_arguments(input, target, "targets", self.tau, *settings)
        loss = _loss_composed.loss_at(threshold, known, logits, arguments)
        return loss.reshape(input.shape) if self.reduction == "none" else loss

    def _track(self, state: Tensor) -> None:
        """Move the running average towards the finite ones of these thresholds, without waiting for the device."""
        average_thresholds(state, self.running_threshold, self.num_batches_tracked, self.momentum)

    @property
    def active_fraction(self) -> Tensor | None:
        """The share of entries with 0 < p < 1 among those that took part in the last training step.

        A 0-d float32 tensor, or None before the first step. Only active entries have a gradient under the squared loss:
        close to 0, tau is too small for the scale of the logits; close to 1, the projection hardly decides and tau is
        large.
        """
        if self._last_state is None:
            return None
        active, taking_part = numbers_of_entries(self._last_state)
        fraction: Tensor = active.sum() / taking_part.sum()
        return fraction.float()

    def extra_repr(self) -> str:
        """The settings that are not the default."""
        return self._settings(
            num_classes=None if self.has_uninitialized_params() else self._classes(),
            k=self.k,
            tau=self.tau,
            kind=self.kind,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            momentum=self.momentum,
            weighted_mass=self.weighted_mass,
            memory=self.memory,
            eval_thresholds=self.eval_thresholds,
        )
