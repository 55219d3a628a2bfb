"""The projection as a layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import _checks
from ._modules import Module, is_traced, leaf
from ._shards import HeldGroup, group_of
from .functional import SOLVERS, Proxy, soft_binary_argmax


class SoftBinaryArgmax(Module):
    """`soft_binary_argmax` as a layer; see :func:`hypersimplex_ext.soft_binary_argmax`.

    Args:
        k: Mass, the sum along `dim`: a number in [0, n] or a tensor that broadcasts to the other dimensions.
        tau: Temperature: a number in [2^-1022, inf) or a tensor like `k`. An `nn.Parameter` is learned.
        dim: The dimension to project along.
        solver: "threshold", or "pav" for the paper's sort and isotonic regression.
        group: As in :func:`hypersimplex_ext.soft_binary_argmax`, for vectors that are spread over processes.

    A tensor without a gradient is copied into a buffer, which `half()` and the like never narrow.

    Raises:
        TypeError, ValueError: As :func:`hypersimplex_ext.soft_binary_argmax`, as far as it shows without an input.

    Example:
        >>> import torch
        >>> layer = SoftBinaryArgmax(k=1)
        >>> layer(torch.tensor([0.1, 1.6, 1.0]))
        tensor([0.0000, 0.8000, 0.2000])
    """

    k: float | Tensor
    tau: float | Tensor

    def __init__(
        self,
        k: float | Tensor,
        tau: float | Tensor = 1.0,
        dim: int = -1,
        *,
        solver: str = "threshold",
        group: Any = None,
    ) -> None:
        super().__init__()
        self._keep("k", k if isinstance(k, Tensor) else _checks.number("k", k, "a real number or a Tensor"))
        self._keep("tau", tau if isinstance(tau, Tensor) else _checks.temperature(tau))
        self.dim = _checks.integer("dim", dim)
        _checks.choice("solver", solver, SOLVERS)
        self.solver = solver
        self._group = HeldGroup(group_of(group))

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project `input`; entries where the bool `mask` is False take no part."""
        if isinstance(input, Proxy) and is_traced(self, input):
            result: Tensor = leaf(self, input, mask)
            return result
        return soft_binary_argmax(
            input, self.k, self.tau, self.dim, mask=mask, solver=self.solver, group=self._group.group
        )

    def extra_repr(self) -> str:
        """The settings that are not the default."""
        return self._settings(k=self.k, tau=self.tau, dim=self.dim, solver=self.solver)
