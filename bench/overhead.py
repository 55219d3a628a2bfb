"""Where the time of a small loss goes: its parts, each timed alone.

The parts are measured apart, with all that they need in the caches; in a call they wait for memory and for each other,
and what they do not account for is the last line.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from bench.cases import Case
from bench.clocks import HostClock
from hypersimplex_ext import _loss, _ops, hypersimplex_loss

_ROUNDS = 5


def parts(case: Case) -> dict[str, float]:
    """Return the seconds of each part of forward and backward of the loss, and "everything", which is measured too."""
    x, _, classes = case.draw()
    leaf = x.detach().requires_grad_()
    arguments = _loss.Arguments(
        classes, None, None, None, None, 0.0, _loss.TARGETS, 1.0, -100, 0.0, _loss.SQUARED, _loss.MEAN
    )
    value: Tensor
    value, state = _ops.loss_forward(x, *arguments)
    grad = torch.ones_like(value)
    out: Tensor = torch.empty_like(x)
    *_, call = _ops._loss_call(x, classes, arguments[5:])
    threads = torch.get_num_threads()
    places = x.data_ptr(), classes.data_ptr(), 0, 0, 0, 0, state.data_ptr()

    class Nothing(Function):
        """What autograd takes for a function that does nothing."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x, classes, state)
            return value

        @staticmethod
        def backward(ctx: Any, _: Tensor) -> Tensor:
            assert len(ctx.saved_tensors) == 3
            return out

    times = {
        "core, forward": lambda: call.kernels.forward(*places, value.data_ptr(), threads),
        "core, backward": lambda: call.kernels.backward(*places, grad.data_ptr(), out.data_ptr(), threads),
        "autograd": lambda: torch.autograd.grad(Nothing.apply(leaf), leaf),  # type: ignore[no-untyped-call]
        "allocation": lambda: (_ops._loss_forward_fake(x), torch.empty_like(x)),
        "operator, forward": lambda: _ops.loss_forward(x, *arguments),
        "operator, backward": lambda: _ops.loss_backward(grad, state, x, *arguments),
        "without gradient": lambda: hypersimplex_loss(x, classes),
        "everything": lambda: torch.autograd.grad(hypersimplex_loss(leaf, classes), leaf),
    }
    clock = HostClock()
    found = {name: float("inf") for name in times}
    for _ in range(_ROUNDS):
        for name, function in times.items():
            calls = clock.calls(clock.time(function, 1))
            found[name] = min(found[name], clock.time(function, calls) / calls)
    core = found["core, forward"] + found["core, backward"]
    operators = found["operator, forward"] + found["operator, backward"]
    checks = found["without gradient"] - found["operator, forward"]
    return {
        "core": core,
        "allocation": found["allocation"],
        "dispatch": operators - core - found["allocation"],
        "checks and route": checks,
        "autograd": found["autograd"],
        "not accounted for": found["everything"] - operators - checks - found["autograd"],
        "everything": found["everything"],
    }
