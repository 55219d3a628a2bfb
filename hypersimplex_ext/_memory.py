"""Samples of earlier batches, which stand behind those of a batch when the loss projects them.

The projection then is that of n + m samples. Only the n of the batch have a graph, so the gradient is that of the loss
over all, restricted to the rows of the batch. (The derivative of the batch's own terms would not do: it is not blind
to a shift of the logits, and training with it can diverge.) X. Wang and others, "Cross-Batch Memory for Embedding
Learning", 2020.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _checks
from ._modules import Module, statistic


class Samples(NamedTuple):
    """Samples with what the loss takes of them."""

    logits: Tensor  # [n, C]
    target: Tensor  # class indices [n] int64, or dense [n, C]
    weight: Tensor  # [n]


class Remembering(Module):
    """A loss that remembers the last `memory` samples. A place that is not yet filled holds an ignored target.

    Class indices and dense targets have a buffer each, of which the one that the last batch did not use is void.
    """

    memory: int
    ignore_index: int
    weight: Tensor | None
    memory_logits: Tensor  # [m, C], the newest first
    memory_labels: Tensor  # [m] int64
    memory_targets: Tensor  # [m, C]
    memory_weights: Tensor  # [m]

    def _make_memory(self, num_classes: int | None, device: Any, dtype: torch.dtype) -> None:
        if self.memory:
            entries = None if num_classes is None else (self.memory, num_classes)
            self.register_buffer("memory_logits", statistic(entries, device, dtype))
            self.register_buffer("memory_labels", statistic(self.memory, device, torch.int64))
            self.register_buffer("memory_targets", statistic(entries, device, dtype))
            self.register_buffer("memory_weights", statistic(self.memory, device, dtype))
            if num_classes is not None:
                self._forget()

    def _size_memory(self, num_classes: int) -> None:
        if self.memory:
            for buffer in (self.memory_logits, self.memory_targets):
                buffer.materialize((self.memory, num_classes))  # type: ignore[attr-defined]
            self._forget()

    def _forget(self) -> None:
        if self.memory:
            self.memory_logits.zero_()
            self.memory_weights.zero_()
            self.memory_labels.fill_(self.ignore_index)
            self.memory_targets.fill_(self.ignore_index)

    def _with_memory(self, input: Tensor, target: Tensor, sample_weight: Tensor | None) -> Samples:
        """The samples of the batch, and behind them those that are remembered."""
        input, target = _checks.labelled(input, target)
        if sample_weight is not None:
            sample_weight = _checks.weight("sample_weight", sample_weight, input, _checks.sample_shape(input)).flatten()
        x, t = _checks.by_sample(input, target)
        t = _checks.target(t, x)
        s = torch.ones_like(self.memory_weights[:1]).expand(len(x)) if sample_weight is None else sample_weight
        remembered = self.memory_labels if t.ndim == 1 else self.memory_targets
        # Copied, as what is remembered changes before the backward.
        return Samples(
            torch.cat((x, self.memory_logits)), torch.cat((t, remembered)), torch.cat((s, self.memory_weights))
        )

    def _remember(self, samples: Samples) -> None:
        """Keep the first of these samples, which are the newest."""
        used, void = self.memory_labels, self.memory_targets
        if samples.target.ndim > 1:
            used, void = void, used
        void.fill_(self.ignore_index)
        for buffer, values in zip((self.memory_logits, used, self.memory_weights), samples, strict=True):
            buffer.copy_(values[: self.memory].detach())

    def _share(self, samples: Samples) -> Tensor:
        """By how much a mean over the batch outweighs one over all samples: sums of w_c s_i over what takes part."""
        taking_part = (samples.target != self.ignore_index).reshape(len(samples.target), -1)
        importance = torch.where(taking_part, samples.weight.unsqueeze(1), 0.0)  # [n, C] or [n, 1]
        if self.weight is not None:
            importance = importance * self.weight
        of_batch = importance[: -self.memory].sum()
        return torch.where(of_batch > 0, importance.sum() / of_batch, 0.0)
