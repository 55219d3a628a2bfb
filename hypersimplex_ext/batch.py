"""Batches that do not fit into memory, with the exact gradient of a loss that couples all samples of the batch.

Adding up the losses of micro-batches gives another loss, as each is projected on its own. But the loss sees only the
logits [n, C], which are small beside the activations that lead to them. So the model runs twice: first without a graph,
for the logits of all micro-batches, from which the loss and its gradient in the logits are computed at once; then with
a graph, one micro-batch at a time, each going backward with its rows of that gradient. The price is the first pass.

For contrastive losses this is known as GradCache: L. Gao, Y. Zhang, J. Han, J. Callan, "Scaling Deep Contrastive
Learning Batch Size under Memory Limited Setup", RepL4NLP 2021, arXiv 2101.06983.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

__all__ = ["two_pass_backward"]


def two_pass_backward(
    model: torch.nn.Module,
    loss: Callable[..., Tensor],
    micro_batches: Iterable[Sequence[Any]],
    *,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """The loss of a large batch and its backward, in the memory of one micro-batch's activations.

    Gradients are added to `.grad` of all parameters, those of `loss` too, as by one backward of the whole batch. Held
    in memory are the inputs and targets, all logits and their gradient, a copy of the model's buffers, and the graph of
    one micro-batch.

    Both passes see the same: random numbers, of the CPU's generator and of those of the CUDA devices in use; buffers;
    and the caller's autocast, in which forward passes and loss run, but no backward. Afterwards all is as after one
    pass: the random state, the model's buffers and those of `loss` have moved once.

    Args:
        model: Gives the logits, one tensor [m, ...] of a floating dtype. It runs twice on each micro-batch and must do
            the same both times: it must not change its inputs, keep anything that it computed from its parameters, have
            a state other than its buffers, or draw from other generators (a `torch.Generator` of its own, NumPy's).
            Only shape and dtype of the logits are compared, as more would make the host wait for the device.
        loss: Called once, `loss(logits, target, ...)`, with the rows of all micro-batches together, such as
            :class:`hypersimplex_ext.nn.HyperSimplexLoss`. It gives a scalar.
        micro_batches: Tuples or lists (input, target, ...) that together are the batch; gone through once, so that a
            generator will do, and a DataLoader does not shuffle again. `input` is what the model is called with: a
            tuple or list for its arguments, a mapping for keywords, anything else for its one argument. `target` and
            whatever else the loss takes, such as sample weights, are tensors with one row per row of logits. Sizes of
            micro-batches may differ.
        scaler: Scales the gradients as `scaler.scale(loss).backward()` does; the value returned is not scaled.

    Returns:
        The loss's value, a tensor without dimensions and without a graph.

    Layers that couple samples themselves, such as batch normalisation, see one micro-batch at a time in both passes:
    the gradient is then that of the model run on micro-batches, with the loss over all of its logits.

    With `DistributedDataParallel` or FSDP, `model` is what they return, and gradients are reduced once, with the last
    micro-batch. Processes may have different numbers of micro-batches, but under FSDP or with layers that communicate
    in their forward.

    Raises:
        TypeError: `model` is no module, a micro-batch is no tuple or list, the logits are not one tensor of a floating
            dtype, a target is no tensor, or the loss's value is none.
        ValueError: There is no micro-batch, or one lacks a target; numbers of rows, or shape, dtype or device in one
            micro-batch and another, do not go together; the value is no scalar or has no gradient in the logits; the
            logits have no gradient in the model (a frozen one); or the model is lazy and has not been called yet.
        RuntimeError: Gradients are switched off, as in `torch.no_grad()`, or the logits of the two passes differ in
            shape or dtype.

    Whatever is raised before the second pass, by the model or the loss too, leaves the parameters of the model without
    a new gradient and its buffers as they were. In the second pass it leaves the gradients of a part of the batch.

    Equivalent to (with the activations of the whole batch in memory)::

        rows = [(model(input), *others) for input, *others in micro_batches]
        value = loss(*map(torch.cat, zip(*rows)))
        value.backward()

    Example:
        >>> from hypersimplex_ext.nn import HyperSimplexLoss
        >>> model, loss = torch.nn.Linear(4, 3), HyperSimplexLoss(num_classes=3)
        >>> x, labels = torch.randn(100, 4), torch.arange(100) % 3
        >>> value = two_pass_backward(model, loss, zip(x.split(32), labels.split(32)))
        >>> value.shape, model.weight.grad.shape
        (torch.Size([]), torch.Size([3, 4]))
    """
    _check_model(model)
    devices = _cuda_devices(model)
    runs: list[tuple[Any, list[Tensor]]] = []  # inputs, and the random states before them
    rows: list[list[Tensor]] = []  # logits, targets, ...
    with _buffers_put_back(model):
        for micro_batch in micro_batches:
            input, *others = _parts(micro_batch, len(rows))
            runs.append((input, _random_states(devices)))
            with torch.no_grad():  # not inference_mode: its tensors cannot enter a graph, as the loss's input does
                logits = _logits(model, input).clone()  # a view would keep all of what it is a view of
            rows.append(_checked_rows([logits, *others], rows[0] if rows else None, len(rows)))
    if not rows:
        raise ValueError("micro_batches must hold at least one micro-batch, got none")
    torch.clear_autocast_cache()  # weights that were cast in the first pass have no graph; the second would use them
    value, gradients = _value_and_gradients(loss, rows, scaler)
    with torch.random.fork_rng(devices, device_type="cuda"):  # forked from the state after one pass
        for number, ((input, states), gradient) in enumerate(zip(runs, gradients, strict=True), start=1):
            _set_random_states(devices, states)
            with contextlib.nullcontext() if number == len(runs) else _not_reduced(model):
                _backward(model, input, gradient)
    return value


def _check_model(model: object) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not torch.is_grad_enabled():
        raise RuntimeError("two_pass_backward computes gradients, but they are switched off, as in torch.no_grad()")
    if any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        raise ValueError("model must have been called: it has parameters or buffers that wait for the first call")


# ---- the first pass: logits, and what the second has to repeat ----


def _parts(micro_batch: object, number: int) -> Sequence[Any]:
    if not isinstance(micro_batch, (tuple, list)):
        raise TypeError(f"micro_batches must hold tuples (input, target, ...), got {type(micro_batch).__name__}")
    if len(micro_batch) < 2:
        raise ValueError(f"micro-batch {number} must hold input and target, got {len(micro_batch)} of them")
    return micro_batch


def _logits(model: torch.nn.Module, input: Any) -> Tensor:
    if isinstance(input, (tuple, list)):
        logits = model(*input)
    elif isinstance(input, Mapping):
        logits = model(**input)
    else:
        logits = model(input)
    if not isinstance(logits, Tensor):
        raise TypeError(f"model must return its logits, one Tensor, got {type(logits).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"model must return logits of a floating dtype, got {logits.dtype}")
    if logits.ndim == 0:
        raise ValueError("model must return logits with one row per sample, got shape []")
    return logits


def _checked_rows(rows: list[Any], first: list[Tensor] | None, number: int) -> list[Tensor]:
    """Logits, target and the rest of a micro-batch, where they fit each other and those of the first one."""
    names = ["logits", "target", *(f"part {i}" for i in range(2, len(rows)))]
    if first is not None and len(rows) != len(first):
        raise ValueError(f"micro-batch {number} must hold {len(first)} parts like the first, got {len(rows)}")
    for name, part, due in zip(names, rows, first or rows, strict=True):
        if not isinstance(part, Tensor):
            raise TypeError(f"{name} of micro-batch {number} must be a Tensor, got {type(part).__name__}")
        if part.ndim == 0 or len(part) != len(rows[0]):
            raise ValueError(
                f"{name} of micro-batch {number} must have {len(rows[0])} rows, one per row of the logits, "
                f"got shape {list(part.shape)}"
            )
        if (part.shape[1:], part.dtype, part.device) != (due.shape[1:], due.dtype, due.device):
            raise ValueError(f"{name} of micro-batch {number} must be {_kind(due)} like the first, got {_kind(part)}")
    return rows


def _kind(t: Tensor) -> str:
    return f"{t.dtype} {['n', *t.shape[1:]]} on {t.device}".replace("'", "")


@contextlib.contextmanager
def _buffers_put_back(model: torch.nn.Module) -> Iterator[None]:
    """Undo what is done to the buffers of a model.

    The next pass starts where this one did, so it sees the same buffers at each micro-batch, and moves them for good.
    `DistributedDataParallel` copies the buffers of the first process to the others when a step begins: that is undone
    too, and it does so again.
    """
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    wrappers = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    pending = [wrapper.require_forward_param_sync for wrapper in wrappers]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, copy in buffers:
                setattr(module, name, buffer.copy_(copy))  # be it that the module put another tensor in its place
        for wrapper, due in zip(wrappers, pending, strict=True):
            wrapper.require_forward_param_sync = due


def _cuda_devices(model: torch.nn.Module) -> list[torch.device]:
    """Those of the parameters, and the current one, where parameters that lie on the host may be needed."""
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        devices.add(torch.device("cuda", torch.cuda.current_device()))
    return list(devices)


def _random_states(devices: list[torch.device]) -> list[Tensor]:
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]


def _set_random_states(devices: list[torch.device], states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.cuda.set_rng_state(state, device)


# ---- the loss ----


def _value_and_gradients(
    loss: Callable[..., Tensor], rows: list[list[Tensor]], scaler: torch.amp.GradScaler | None
) -> tuple[Tensor, Sequence[Tensor]]:
    """The value, and its gradient in the logits of each micro-batch; that in the loss's own parameters is added."""
    logits, *others = map(torch.cat, zip(*rows, strict=True))
    logits.requires_grad_()
    value = loss(logits, *others)
    if not isinstance(value, Tensor):
        raise TypeError(f"loss must return a Tensor, got {type(value).__name__}")
    if value.ndim:
        raise ValueError(f"loss must return a scalar, got shape {list(value.shape)}")
    if value.requires_grad:
        with _autocast_off(value):
            (value if scaler is None else scaler.scale(value)).backward()  # type: ignore[no-untyped-call]
    if logits.grad is None:
        raise ValueError("loss must return a value with a gradient in the logits")
    return value.detach(), logits.grad.split([len(first) for first, *_ in rows])  # type: ignore[no-untyped-call]


# ---- the second pass ----


def _backward(model: torch.nn.Module, input: Any, gradient: Tensor) -> None:
    """Run the model with a graph, which is gone when this returns, and go backward."""
    logits = _logits(model, input)
    if (logits.shape, logits.dtype) != (gradient.shape, gradient.dtype):
        raise RuntimeError(f"model must do the same in both passes, got {_kind(gradient)} and {_kind(logits)}")
    if not logits.requires_grad:
        raise ValueError("model must have a parameter that requires a gradient and that the logits depend on")
    with _autocast_off(logits):
        logits.backward(gradient)  # type: ignore[no-untyped-call]


def _autocast_off(t: Tensor) -> torch.autocast:
    """For a backward, which has the dtypes of its forward: autocast would narrow what a model keeps wide on purpose."""
    return torch.autocast(t.device.type, enabled=False)


@contextlib.contextmanager
def _not_reduced(model: torch.nn.Module) -> Iterator[None]:
    """Gradients stay in their process."""
    no_sync = getattr(model, "no_sync", None)  # DistributedDataParallel and FullyShardedDataParallel
    set_sync = getattr(model, "set_requires_gradient_sync", None)  # fully_shard
    if no_sync is not None:
        with no_sync():
            yield
    elif set_sync is not None:
        set_sync(False)
        try:
            yield
        finally:
            set_sync(True)
    else:
        yield
