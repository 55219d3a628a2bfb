"""The logits and targets of a whole data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from . import _checks


def gathered(
    model: Callable[[Any], Tensor] | Tensor,
    loader: Iterable[Any] | Tensor,
    sample_weight: Tensor | None,
    weighted: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits [n, C] of all samples, class indices [n] or dense targets [n, C], and weights [n].

    Args:
        model: What makes logits, called in eval mode; or logits.
        loader: What yields inputs with targets; or, with logits, the targets.
        sample_weight: The weights that go with logits.
        weighted: Whether `loader` yields weights too that are wanted.
        device: Where the inputs go.
    """
    if isinstance(model, Tensor) or isinstance(loader, Tensor):
        if not isinstance(model, Tensor):
            raise TypeError(f"model must be a Tensor of logits beside targets, got {type(model).__name__}")
        return *_checks.by_sample(model, loader), None if sample_weight is None else sample_weight.flatten()
    if sample_weight is not None:
        raise TypeError("sample_weight must be among what loader yields, or go with logits, got it beside a loader")
    parts = [
        (*_checks.by_sample(logits, target), *(s.flatten() for s in weights[:weighted]))
        for logits, target, *weights in _outputs(model, loader, device)
    ]
    if not parts:
        raise ValueError("loader must yield at least one batch, got none")
    logits, targets, *weights = (torch.cat(of_batches) for of_batches in zip(*parts, strict=True))
    return logits, targets, weights[0] if weights else None


def _outputs(model: Callable[[Any], Tensor], loader: Iterable[Any], device: torch.device) -> list[tuple[Any, ...]]:
    """The logits of every batch with what goes with them; the model has its modes back afterwards."""
    modes = {m: m.training for m in model.modules()} if isinstance(model, torch.nn.Module) else {}
    if isinstance(model, torch.nn.Module):
        model.eval()
    try:
        return [(model(input), *others) for input, *others in (_moved(batch, device) for batch in loader)]
    finally:
        for module, training in modes.items():
            module.training = training


def _moved(batch: Any, device: torch.device) -> tuple[Any, ...]:
    """The input, the target and what may follow, on the device."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise TypeError(f"loader must yield tuples (input, target), got {type(batch).__name__}")
    return tuple(t.to(device) if isinstance(t, Tensor) else t for t in batch)
