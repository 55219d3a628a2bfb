"""Where the time of a small loss goes: forward and backward without anything, and what each part adds to them.

    autograd      a node that saves the tensors of the loss and computes nothing, and the engine
    core          both kernels, with the way from Python into them
    allocation    of loss, state and gradient
    call          what else this package does for a call that it knows
    checks        whether it knows the call

What takes microseconds must be timed in its place: alone, with all that it needs in the caches, a part takes about half
the time that it adds to a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from bench.speed.cases import Case
from bench.speed.clocks import HostClock
from hypersimplex_ext import _loss, _loss_ops, hypersimplex_loss
from hypersimplex_ext._arguments import MEAN, SQUARED, TARGETS, Arguments

_ROUNDS = 15


def parts(case: Case) -> dict[str, float]:
    """Return the seconds of each part of forward and backward of the loss, and of everything, which they add up to."""
    x, _, classes = case.draw()
    leaf = x.detach().requires_grad_()
    arguments = Arguments(classes, None, None, None, None, 0.0, TARGETS, 1.0, -100, 0.0, SQUARED, MEAN)
    call = _loss.fused_call(leaf, arguments)
    assert call is not None
    kernels, threads = call.kernels, torch.get_num_threads()
    kept: list[Tensor] = [torch.empty_like(t) for t in (call.loss, call.state, x)]

    def node(computes: bool, allocates: bool) -> Callable[[], tuple[Tensor, ...]]:
        class Node(Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor, tensors: _loss_ops.LossTensors) -> Tensor:
                ctx.save_for_backward(*tensors)
                loss = torch.empty_like(kept[0]) if allocates else kept[0]
                if computes:
                    kernels.forward(tensors, loss, threads)
                return loss

            @staticmethod
            def backward(ctx: Any, grad: Tensor) -> Any:
                tensors = ctx.saved_tensors
                out = torch.empty_like(kept[2]) if allocates else kept[2]
                if computes:
                    kernels.backward(tensors, grad, out, threads)
                return out, None

        apply: Callable[..., Tensor] = super(Function, Node).apply

        def both() -> tuple[Tensor, ...]:
            state = torch.empty_like(kept[1]) if allocates else kept[1]
            return torch.autograd.grad(apply(leaf, (leaf, state, *_loss.tensors(arguments))), leaf)

        return both

    steps: dict[str, Callable[[], object]] = {
        "autograd": node(computes=False, allocates=False),
        "core": node(computes=True, allocates=False),
        "allocation": node(computes=True, allocates=True),
        "call": lambda: torch.autograd.grad(_loss.fused(leaf, call, *_loss.tensors(arguments))[0], leaf),
        "checks": lambda: torch.autograd.grad(hypersimplex_loss(leaf, classes), leaf),
    }
    clock = HostClock()
    found = dict.fromkeys(steps, float("inf"))
    for _ in range(_ROUNDS):
        for name, function in steps.items():
            calls = clock.calls(clock.time(function, 1))
            found[name] = min(found[name], clock.time(function, calls) / calls)
    times = [0.0, *found.values()]
    added = {name: time - before for name, time, before in zip(steps, times[1:], times[:-1], strict=True)}
    return {**added, "everything": times[-1]}
