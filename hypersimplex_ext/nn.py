"""Modules: the projection as a layer, and the loss with the calibration that prediction needs."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer

from . import _checks, _folding
from ._modules import Module, is_traced, leaf, statistic
from ._torch_private import LazyModule
from .functional import KINDS, REDUCTIONS, SOLVERS, Proxy, loss_and_statistics, soft_binary_argmax

__all__ = ["HyperSimplexLoss", "SoftBinaryArgmax"]


class SoftBinaryArgmax(Module):
    """`soft_binary_argmax` as a layer; see :func:`hypersimplex_ext.soft_binary_argmax`.

    Args:
        k: Mass, the sum along `dim`: a number in [0, n] or a tensor that broadcasts to the other dimensions.
        tau: Temperature: a number in [2^-1022, inf) or a tensor like `k`. An `nn.Parameter` is learned.
        dim: The dimension to project along.
        solver: "threshold", or "pav" for the paper's sort and isotonic regression.

    A tensor without a gradient is copied into a buffer, which `half()` and the like never narrow.

    Raises:
        TypeError, ValueError: As :func:`hypersimplex_ext.soft_binary_argmax`, as far as it shows without an input.

    Example:
        >>> layer = SoftBinaryArgmax(k=1)
        >>> layer(torch.tensor([0.1, 1.6, 1.0]))
        tensor([0.0000, 0.8000, 0.2000])
    """

    k: float | Tensor
    tau: float | Tensor

    def __init__(
        self, k: float | Tensor, tau: float | Tensor = 1.0, dim: int = -1, *, solver: str = "threshold"
    ) -> None:
        super().__init__()
        self._keep("k", k if isinstance(k, Tensor) else _checks.number("k", k, "a real number or a Tensor"))
        self._keep("tau", tau if isinstance(tau, Tensor) else _checks.temperature(tau))
        self.dim = _checks.integer("dim", dim)
        _checks.choice("solver", solver, SOLVERS)
        self.solver = solver

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project `input`; entries where the bool `mask` is False take no part."""
        if isinstance(input, Proxy) and is_traced(self, input):
            result: Tensor = leaf(self, input, mask)
            return result
        return soft_binary_argmax(input, self.k, self.tau, self.dim, mask=mask, solver=self.solver)

    def extra_repr(self) -> str:
        """The settings that are not the default."""
        return self._settings(k=self.k, tau=self.tau, dim=self.dim, solver=self.solver)


class HyperSimplexLoss(LazyModule, Module):
    r"""The HyperSimplex loss, with the thresholds that turn its logits into predictions.

    The loss is that of :func:`hypersimplex_ext.hypersimplex_loss`. It is blind to a shift of a class's logits, hence
    trains no offset between classes, and plain argmax over the classes compares logits with arbitrary offsets. What
    makes them comparable are the thresholds t_c of the projections, of which this module keeps a running average in
    training mode, as batch normalisation keeps its statistics:

    .. math:: \text{scores}_c = (x_c - T_c) / \tau_c, \qquad T \leftarrow (1 - m)\, T + m\, t

    The first threshold of a class is taken whole, not averaged with the initial 0. A batch in which a class has no
    finite threshold, as it has none or only positives, leaves its average as it is.

    Args:
        num_classes: C; 1 for binary logits [n]. None takes it from the first input, as PyTorch's lazy modules do.
        k: As in :func:`hypersimplex_ext.hypersimplex_loss`.
        tau: Likewise; an `nn.Parameter` is learned.
        kind: "squared" or "fenchel_young".
        weight: Class weights [C].
        ignore_index: Class index of samples, or dense or binary target of entries, to leave out.
        label_smoothing: In [0, 1].
        reduction: "mean", "sum" or "none".
        momentum: m in (0, 1], or None for the plain average over all batches.
        device: Device of the buffers.
        dtype: Dtype of `running_threshold`, by default that of new tensors; at least float32.

    A `k` or `tau` without a gradient is copied into a buffer. `half()`, `float()` and the like never narrow a buffer:
    counts, temperatures, weights and thresholds keep their digits, unlike the statistics of PyTorch's batch-norm.
    NumPy's numbers and fractions become Python's.

    Raises:
        TypeError, ValueError: As :func:`hypersimplex_ext.hypersimplex_loss`, as far as it shows without an input: a
            setting is not of its type or out of range, or a tensor has not one number per class.

    Attributes:
        running_threshold: T [C] in the units of the logits; a buffer, 0 before the first batch.
        num_batches_tracked: [C], int64: how many batches have gone into each average; a buffer.

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
        self._dense_targets = False  # whether several classes were trained on dense targets
        self._last_step: tuple[Tensor, Tensor] | None = None  # active entries per class, entries that took part
        dtype = torch.promote_types(torch.get_default_dtype() if dtype is None else dtype, torch.float32)
        self.register_buffer("running_threshold", statistic(num_classes, device, dtype))
        self.register_buffer("num_batches_tracked", statistic(num_classes, device, torch.int64))
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

    def _sees_sizes(self, *arguments: Any) -> bool:
        return not any(is_traced(self, a) for a in arguments)  # by torch.fx, which sees none

    def reset_running_stats(self) -> None:
        """Forget the thresholds, and what kind of targets they come from."""
        self.running_threshold.zero_()
        self.num_batches_tracked.zero_()
        self._dense_targets = False

    def get_extra_state(self) -> Tensor:
        """Whether dense targets of several classes were trained on: a bool that is saved with the buffers."""
        return torch.tensor(self._dense_targets, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what `get_extra_state` gave."""
        self._dense_targets = bool(state)

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The loss; in training mode this also updates `running_threshold` and `active_fraction`.

        Args:
            input: Logits [n, C], [n] or [n, 1] (binary), [N, C, d1, ...], or [C] of a single sample.
            target: Class indices [n] or [N, d1, ...], or dense targets with the shape of `input`.
            sample_weight: Weights [n] or [N, d1, ...].
        """
        if isinstance(input, Proxy) and is_traced(self, input):
            traced: Tensor = leaf(self, input, target, sample_weight)
            return traced
        self._check_classes(input, single=getattr(target, "ndim", 1) == 0)
        loss, statistics = loss_and_statistics(
            input,
            target,
            self.k,
            self.tau,
            self.kind,
            self.weight,
            sample_weight,
            self.ignore_index,
            self.label_smoothing,
            self.reduction,
        )
        if self.training:
            with torch.no_grad():
                threshold, active = statistics()
                self._track(threshold)
                classes = len(self.running_threshold)
                entries = (target != self.ignore_index).sum()
                if target.shape != input.shape:
                    entries = entries * classes
                elif classes > 1:
                    self._dense_targets = True
                self._last_step = active, entries
        return loss

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

    def _track(self, threshold: Tensor) -> None:
        """Move the running average towards the finite ones of these thresholds, without waiting for the device."""
        finite = threshold.isfinite()
        batches = self.num_batches_tracked.add_(finite)
        rate = 1 / batches if self.momentum is None else torch.where(batches > 1, self.momentum, 1.0)
        step = torch.where(finite, rate * (threshold - self.running_threshold), 0.0)
        self.running_threshold.add_(step.to(self.running_threshold.dtype))

    @property
    def active_fraction(self) -> Tensor | None:
        """The share of entries with 0 < p < 1 among those that took part in the last training step.

        A 0-d float32 tensor, or None before the first step. Only active entries have a gradient under the squared loss:
        close to 0, tau is too small for the scale of the logits; close to 1, the projection hardly decides and tau is
        large.
        """
        if self._last_step is None:
            return None
        active, entries = self._last_step
        return (active.sum() / entries).float()

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
        return logits.to(dtype) - self.running_threshold.to(dtype).reshape(per_class), tau

    def scores(self, logits: Tensor) -> Tensor:
        """(x - running_threshold) / tau: logits made comparable across classes, in their shape.

        An entry is in the upper half of its class's projection where its score is at least 1/2, so for multi-label
        targets `scores(logits) >= 0.5` is the prediction. Scores are float64 where the logits, `running_threshold` or
        a tensor `tau` are, else float32: in half types their order would be lost.
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
        if len(self.running_threshold) == 1:
            multilabel = True
        elif multilabel is None and self._dense_targets:
            raise ValueError(
                "training saw dense targets, which can hold several labels per sample: ask for predict(logits, "
                "multilabel=True), 0 or 1 for every class, or predict(logits, multilabel=False), one class per sample"
            )
        if multilabel:
            return (margins >= tau / 2).long()
        if isinstance(tau, Tensor):
            margins = margins / (tau / tau.min())  # at least 1
        return margins.argmax(min(logits.ndim - 1, 1))

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
            ValueError: Its number of outputs is not C, which may not be known yet, or the result overflows.
        """
        classes, tau = self._classes(), self.tau
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
        )
