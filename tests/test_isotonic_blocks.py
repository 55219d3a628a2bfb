"""The blocks that isotonic regression pools, exactly, and whatever the other rows are."""

import pytest
import torch

from . import native_order as native
from .cases import INF, NAN, assert_close
from .test_isotonic import ROUNDING, scipy_rows


def exact_starts(numbers):
    """Where the blocks of a non-increasing regression of integers start, ties apart, without any rounding."""
    blocks = []  # [sum, elements]
    for number in numbers:
        block = [number, 1]
        while blocks and blocks[-1][0] * block[1] < block[0] * blocks[-1][1]:
            last = blocks.pop()
            block = [last[0] + block[0], last[1] + block[1]]
        blocks.append(block)
    return [i == 0 for _, count in blocks for i in range(count)]


def falls_then_noise(n):
    return torch.cat([torch.arange(n // 3, 0, -1), torch.randint(-3, 4, (n - n // 3,))])


INTEGERS = {
    "digits": lambda n: torch.randint(0, 10, (n,)),
    "labels": lambda n: torch.randint(0, 2, (n,)),
    "rare_labels": lambda n: (torch.rand(n) < 0.2).long(),
    "wide": lambda n: torch.randint(-(2**20), 2**20, (n,)),
    "falls_then_noise": falls_then_noise,
    "noise_then_falls": lambda n: falls_then_noise(n).flip(0),
    "noise_then_rises": lambda n: (
        falls_then_noise(n).flip(0).neg() + (torch.arange(n) > n // 2).long() * torch.arange(n)
    ),
    "rises": lambda n: torch.randint(0, 100, (n,)) + torch.arange(n),
    "falls": lambda n: torch.randint(0, 100, (n,)) - torch.arange(n),
}
# Around the 64 elements of csrc/cpu/order/pav.h that tell whether rounds are worth while, the 32 that are too few
# for one, tiles of 256, and chunks of 4096.
ROUND_LENGTHS = (2, 63, 64, 65, 95, 96, 97, 319, 320, 321, 351, 352, 353, 1000, 4095, 4096, 4097, 4160, 8300)


@pytest.mark.parametrize("kind", INTEGERS)
def test_blocks_of_integers_are_exact(backend, device, kind):
    for n in [n for n in ROUND_LENGTHS if backend != "simt" or n < 1000]:
        x = torch.stack([INTEGERS[kind](n) for _ in range(3)])
        starts = torch.tensor([exact_starts(row) for row in x.tolist()])
        for dtype in (torch.float64, torch.float32):
            r = native.isotonic(x.to(dtype).to(device))
            assert torch.equal(native.starts(r.blocks, n).cpu(), starts)
            assert_close(r.out, scipy_rows(x, None, False), ROUNDING[dtype])
        rises = native.isotonic(-x.double().to(device), increasing=True)
        assert torch.equal(native.starts(rises.blocks, n).cpu(), starts)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_row_does_not_depend_on_the_others(device, weighted):
    for n in (40, 353, 4160):
        x = torch.stack([torch.randn(n), torch.full((n,), NAN), torch.randn(n), torch.zeros(n), torch.randn(n)])
        x[2, n // 2] = INF
        x, weight = x.to(device), (torch.rand(x.shape) + 0.1).to(device) if weighted else None
        together = native.isotonic(x, weight=weight)
        for i in range(len(x)):
            alone = native.isotonic(x[i : i + 1], weight=None if weight is None else weight[i : i + 1])
            assert torch.equal(together.out[i], alone.out[0]) or i in (1, 2)
            assert torch.equal(together.blocks[i], alone.blocks[0])
        assert together.out.isnan().all(1).tolist() == [i in (1, 2) for i in range(5)]
