"""Modules: the projection as a layer, and the loss with the calibration that prediction needs."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer

from . import _checks
from .functional import KINDS, REDUCTIONS, SOLVERS, loss_and_statistics, soft_binary_argmax

__all__ = ["HyperSimplexLoss", "SoftBinaryArgmax"]


def _attach(module: torch.nn.Module, name: str, value: Any) -> None:
    """Keep a setting; a tensor that is no parameter becomes a buffer, so that it moves and is saved with the module."""
    if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter):
        module.register_buffer(name, value)
    else:
        setattr(module, name, value)


def _shown(value: Any) -> str:
    return f"Tensor{list(value.shape)}" if isinstance(value, Tensor) else repr(value)


class SoftBinaryArgmax(torch.nn.Module):
    """`soft_binary_argmax` as a layer; see :func:`hypersimplex_ext.soft_binary_argmax`.

    Args:
        k: Mass, the sum along `dim`: a number in [0, n] or a tensor that broadcasts to the other dimensions.
        tau: Temperature: a number in [2^-1022, inf) or a tensor like `k`. An `nn.Parameter` is learned.
        dim: The dimension to project along.
        solver: "threshold", or "pav" for the paper's sort and isotonic regression.

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
        _attach(self, "k", k if isinstance(k, Tensor) else _checks.number("k", k, "a real number or a Tensor"))
        _attach(self, "tau", tau if isinstance(tau, Tensor) else _checks.temperature(tau))
        self.dim = dim
        _checks.choice("solver", solver, SOLVERS)
        self.solver = solver

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project `input`; entries where the bool `mask` is False take no part."""
        return soft_binary_argmax(input, self.k, self.tau, self.dim, mask=mask, solver=self.solver)

    def extra_repr(self) -> str:
        """The settings."""
        solver = "" if self.solver == "threshold" else f", solver={self.solver!r}"
        return f"k={_shown(self.k)}, tau={_shown(self.tau)}, dim={self.dim}{solver}"


class HyperSimplexLoss(LazyModuleMixin, torch.nn.Module):
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
        ignore_index: Class index of samples to leave out.
        label_smoothing: In [0, 1].
        reduction: "mean", "sum" or "none".
        momentum: m in (0, 1], or None for the plain average over all batches.
        device: Device of the buffers.
        dtype: Dtype of `running_threshold`.

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
        if momentum is not None and not 0 < _checks.number("momentum", momentum) <= 1:
            raise ValueError(f"momentum must lie in (0, 1] or be None, got {momentum}")
        if num_classes is not None and _checks.integer("num_classes", num_classes) < 1:
            raise ValueError(f"num_classes must be at least 1 or None, got {num_classes}")
        _attach(self, "k", k)
        _attach(self, "tau", tau if isinstance(tau, Tensor) else _checks.temperature(tau))
        self.register_buffer("weight", weight)
        self.kind = kind
        self.ignore_index = _checks.integer("ignore_index", ignore_index)
        self.label_smoothing = _checks.fraction("label_smoothing", label_smoothing)
        self.reduction = reduction
        self.momentum = momentum
        self._last_step: tuple[Tensor, int | Tensor] | None = None  # active entries per class, entries that took part
        dtype = torch.get_default_dtype() if dtype is None else dtype
        uninitialized: Any = UninitializedBuffer  # its signature is not annotated
        self.register_buffer("running_threshold", uninitialized(device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", uninitialized(device=device, dtype=torch.int64))
        if num_classes is not None:
            self._materialize(num_classes)
            self._initialize_hook.remove()
            self._load_hook.remove()
            del self._initialize_hook, self._load_hook

    def _materialize(self, num_classes: int) -> None:
        with torch.no_grad():
            for buffer in (self.running_threshold, self.num_batches_tracked):
                buffer.materialize((num_classes,))  # type: ignore[attr-defined]
                buffer.zero_()

    def initialize_parameters(self, input: Tensor, *_arguments: Any, **_keywords: Any) -> None:
        """Take the number of classes from the first input."""
        if self.has_uninitialized_params():
            _checks.logits(input)
            self._materialize(input.shape[1] if input.ndim > 1 else 1)

    def _replicate_for_data_parallel(self) -> Any:
        if self.has_uninitialized_params():
            return super()._replicate_for_data_parallel()
        return torch.nn.Module._replicate_for_data_parallel(self)  # type: ignore[no-untyped-call]

    def reset_running_stats(self) -> None:
        """Forget the thresholds."""
        self.running_threshold.zero_()
        self.num_batches_tracked.zero_()

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The loss; in training mode this also updates `running_threshold` and `active_fraction`.

        Args:
            input: Logits [n, C], [n] (binary) or [N, C, d1, ...].
            target: Class indices [n] or [N, d1, ...], or dense targets with the shape of `input`.
            sample_weight: Weights [n] or [N, d1, ...].
        """
        self._check_classes(input)
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
                dense = target.shape == input.shape
                samples = input.numel() // len(self.running_threshold) if dense else (target != self.ignore_index).sum()
                self._last_step = active, samples * len(self.running_threshold)
        return loss

    def _check_classes(self, input: Tensor) -> None:
        _checks.logits(input)
        if isinstance(self.running_threshold, UninitializedBuffer):
            raise ValueError("the number of classes is not known yet: give num_classes, or call the loss once")
        due, came = len(self.running_threshold), input.shape[1] if input.ndim > 1 else 1
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

    def _per_class(self, value: Any, logits: Tensor) -> Any:
        """Numbers per class so that they broadcast against the logits."""
        if not isinstance(value, Tensor):
            return value
        return value.reshape(-1, *(1,) * (logits.ndim - 2)) if logits.ndim > 1 else value.reshape(())

    def scores(self, logits: Tensor) -> Tensor:
        """(x - running_threshold) / tau: logits made comparable across classes, in their shape.

        An entry is in the upper half of its class's projection where its score is at least 1/2, so for multi-label
        targets `scores(logits) >= 0.5` is the prediction.
        """
        self._check_classes(logits)
        scores: Tensor = logits - self._per_class(self.running_threshold, logits)
        scores = scores / self._per_class(self.tau, logits)
        return scores.to(logits.dtype)

    def predict(self, logits: Tensor) -> Tensor:
        """Labels, int64: the class with the largest score, [n] or [N, d1, ...].

        With one class, binary: 1 where the score is at least 1/2, else 0, in the shape of `logits`.
        """
        scores = self.scores(logits)
        return (scores >= 0.5).long() if len(self.running_threshold) == 1 else scores.argmax(1)

    @torch.no_grad()
    def fold_into(self, linear: torch.nn.Module) -> None:
        """Move the calibration into the layer that makes the logits, so that its plain output predicts.

        Afterwards `output.argmax(1)`, for binary `output >= 0`, is what :meth:`predict` gave before and, as
        `running_threshold` is reset to match, still gives. The loss is unchanged. Thresholds go into the bias, which is
        made if missing. Where `tau` differs from class to class, weight and bias are divided by it, and `tau` becomes
        1.

        Args:
            linear: The last layer, with `weight` [C, ...] and `bias` [C] or None, such as `nn.Linear` or a convolution.
                It is changed in place.

        Raises:
            TypeError: `linear` has no weight or bias.
            ValueError: Its number of outputs is not C.
        """
        layer: Any = linear
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or not hasattr(layer, "bias"):
            raise TypeError(f"linear must be a layer with weight and bias, got {type(layer).__name__}")
        classes = len(self.running_threshold)
        if weight.shape[0] != classes:
            raise ValueError(f"linear must have {classes} outputs, got weight of shape {list(weight.shape)}")
        if layer.bias is None:
            layer.bias = torch.nn.Parameter(weight.new_zeros(classes))
        layer.bias -= self.running_threshold
        self.running_threshold.zero_()
        if isinstance(self.tau, Tensor) and self.tau.numel() > 1:
            weight /= self.tau.reshape(-1, *(1,) * (weight.ndim - 1))
            layer.bias /= self.tau
            self.tau.fill_(1.0)
        if classes == 1:  # a score of 1/2 becomes an output of 0
            layer.bias -= self.tau / 2
            self.running_threshold -= self.tau / 2

    def extra_repr(self) -> str:
        """The settings that differ from what is usual."""
        classes = None if self.has_uninitialized_params() else len(self.running_threshold)
        parts = [f"num_classes={classes}", f"k={_shown(self.k)}", f"tau={_shown(self.tau)}", f"kind={self.kind!r}"]
        parts += [f"reduction={self.reduction!r}", f"momentum={self.momentum}"]
        return ", ".join(parts)
