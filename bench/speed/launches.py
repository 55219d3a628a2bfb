"""Six launches for a profiler to look at, one of each regime and of the loss: python -m bench.speed.launches.

Each is made once before, and lies between cudaProfilerStart and cudaProfilerStop.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch

from bench.speed import gpu
from hypersimplex_ext import hypersimplex_loss, soft_binary_argmax

_ROWS = ((16_384, 1024, 512), (65_536, 128, 64), (4096, 8192, 4096), (64, 1 << 18, 1 << 17), (1, 10**8, 5 * 10**7))
_LOSS = (65_536, 1000)


def launches(device: torch.device, rows: tuple[tuple[int, int, int], ...], loss: tuple[int, int]) -> int:
    """Make them and return how many they were."""
    for vectors, n, k in rows:
        x = torch.randn(vectors, n, device=device)
        _profile(f"projection, {vectors} x {n}, k = {k}", functools.partial(soft_binary_argmax, x, k))
    samples, classes = loss
    x, target = torch.randn(loss, device=device), torch.randint(classes, (samples,), device=device)
    _profile(f"loss, [{samples}, {classes}]", functools.partial(hypersimplex_loss, x, target))
    return len(rows) + 1


def _profile(label: str, function: Callable[[], object]) -> None:
    print(f"==== {label}", flush=True)
    function()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    function()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    launches(gpu.require(), _ROWS, _LOSS)
    sys.exit(0)
