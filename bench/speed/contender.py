"""What takes part in a comparison, and how it is prepared."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.speed.cases import Case

OURS = "hypersimplex_ext"
COPY = "x.clone()"
CROSS_ENTROPY = "F.cross_entropy"
ALONG_ROWS = "the same along rows"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A case made ready.

    Attributes:
        forward: computes the output.
        both: computes the output and the gradient in the input, and returns the gradient.
        to_tensor: makes a tensor of what either returns.
    """

    forward: Callable[[], Any]
    both: Callable[[], Any]
    to_tensor: Callable[[Any], Tensor] = lambda result: result


Prepare = Callable[[Case, Tensor, Tensor, Tensor], Prepared]


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something that takes part.

    Attributes:
        prepare: (case, input, gradient of the output, classes) -> the case made ready.
        package: the distribution it needs beside torch, where it has one.
        module: the module that has to be there.
        same: whether it computes the same thing as this package, so that its results have to agree.
        applies: whether it can do a case.
    """

    prepare: Prepare
    package: str | None = None
    module: str | None = None
    same: Callable[[Case], bool] = lambda case: True
    applies: Callable[[Case], bool] = lambda case: True

    @property
    def present(self) -> bool:
        """Whether its package is installed."""
        try:
            return self.module is None or importlib.util.find_spec(self.module) is not None
        except ModuleNotFoundError:  # the package that the module is part of
            return False


def never(_case: Case) -> bool:
    """Return False."""
    return False


def float32_rows(case: Case) -> bool:
    """Return whether the vectors are rows in float32."""
    return case.layout == "rows" and case.dtype == "float32"


def differentiable(function: Callable[[Case, Tensor], Tensor]) -> Prepare:
    """Prepare a differentiable torch function of the input."""

    def prepare(case: Case, x: Tensor, v: Tensor, classes: Tensor) -> Prepared:
        leaf = x.detach().requires_grad_()
        return Prepared(lambda: function(case, x), lambda: torch.autograd.grad(function(case, leaf), leaf, v)[0])

    return prepare
