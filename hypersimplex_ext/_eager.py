"""Eager calls of the public functions: which of them may go to the kernels as they are, once they passed the checks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._autograd import Operator
from ._calls import VectorCall, remember, vector_call
from ._torch_private import direct, in_forward_mode

_HALF = {torch.float16, torch.bfloat16}


def autocast(input: Tensor) -> Tensor:
    """Under autocast compute in float32, as PyTorch's softmax and losses do."""
    if input.dtype not in _HALF:
        return input
    device = input.device.type
    return input.float() if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) else input


def plain(input: Any, *others: Tensor) -> bool:
    """Whether a call with these tensors may go to the kernels as it is, once it has passed the checks."""
    kind = type(input)
    alone = (kind is Tensor or kind is torch.nn.Parameter) and direct(input, *others)
    return alone and not in_forward_mode() and (input.dtype not in _HALF or autocast(input) is input)


def signature_of(input: Any, function: Any, *settings: Any) -> tuple[Any, ...] | None:
    """Of a call with one tensor, if it is plain; types come before values in `settings`."""
    if not plain(input):
        return None
    return (function, input.dtype, input.device, input.shape, input.stride(), *settings)


def prepare(signature: tuple[Any, ...] | None, input: Tensor, *arguments: Any) -> None:
    """Remember a call that passed the checks; `arguments` follow the tensor, the dimension comes last."""
    if signature is not None:
        call = vector_call(input, arguments[-1])
        if call is not None:
            remember(signature, Prepared(call, arguments))


class Prepared(NamedTuple):
    """A call of one signature."""

    call: VectorCall
    arguments: tuple[Any, ...]  # behind the tensor

    def directly(self, operator: Operator, x: Tensor) -> Any:
        """The result of the operator for `x`."""
        return operator.directly(self.call, x, *self.arguments)
