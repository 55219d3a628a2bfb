"""How far a result may lie from float64, by dtype; the one table of all tests."""

from typing import NamedTuple

import torch


class Tolerance(NamedTuple):
    y: float  # of an entry of the projection, which lies in [0, 1]
    total: float  # of sum y, times max(1, k)
    gradient: float  # relative to the largest entry
    loss: float  # relative


TOLERANCES = {
    torch.float64: Tolerance(y=1e-13, total=1e-13, gradient=1e-12, loss=1e-12),
    torch.float32: Tolerance(y=1e-6, total=1e-6, gradient=1e-5, loss=1e-5),
    torch.float16: Tolerance(
        y=2.5e-4, total=5e-4, gradient=1e-3, loss=1e-3
    ),  # half a unit in the last place at 1: 2^-12
    torch.bfloat16: Tolerance(y=2e-3, total=4e-3, gradient=8e-3, loss=8e-3),  # 2^-9
}
