"""The CPU core: one result whatever the instruction set and the number of threads, and the exact way out."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from fractions import Fraction

import pytest
import torch

from hypersimplex_ext import build_info, hypersimplex_loss, soft_binary_argmax

# Long vectors, short ones, rows of small mass, columns few and many, ends that fill no block, and the loss forward and
# backward.
FINGERPRINT = """
import hashlib, torch, hypersimplex_ext as hs
torch.manual_seed(0)
digest = hashlib.sha256()
def take(t):
    digest.update(t.detach().flatten().view(torch.uint8).numpy().tobytes())
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    for shape, dim, k in (
        ((3, 10), 1, 3),
        ((40, 33), 1, 11),
        ((70, 1003), 1, 5),
        ((2, 100_001), 1, 33_333),
        ((5000, 10), 0, 1666),
        ((700, 150), 0, 233),
    ):
        x = torch.randn(shape).to(dtype).requires_grad_()
        y, t = hs.soft_binary_argmax(x, k, 0.7, dim, return_threshold=True)
        y.backward(torch.randn(shape).to(dtype))
        for result in (y, t, x.grad):
            take(result)
    for shape in ((100, 7), (5000, 10), (3000, 40)):
        for kind in ("squared", "fenchel_young"):
            x = torch.randn(shape).to(dtype).requires_grad_()
            loss = hs.hypersimplex_loss(x, torch.randint(shape[1], shape[:1]), kind=kind)
            loss.backward()
            take(loss)
            take(x.grad)
    for n in (5, 40, 1000, 5000):
        x, weight, g = torch.randn(7, n).to(dtype), (torch.rand(7, n) + 0.1).to(dtype), torch.randn(7, n).to(dtype)
        outputs = [lambda t: hs.isotonic_regression(t), lambda t: hs.isotonic_regression(t, weight), hs.sort]
        for soft in (hs.soft_rank, hs.soft_sort):
            outputs += [lambda t, a=a: soft(t, *a) for a in (("l2", 0.1), ("kl", 1.0), ("kl", 1e-4))]
        for function in outputs:
            t = x.clone().requires_grad_()
            y = function(t)
            y = y if isinstance(y, torch.Tensor) else y[0]
            take(y)
            take(*torch.autograd.grad(y, t, g))
print(hs.build_info().vector_extension, digest.hexdigest())
"""


def fingerprint(instruction_set: str, threads: int) -> list[str]:
    environment = {**os.environ, "HYPERSIMPLEX_ISA": instruction_set, "OMP_NUM_THREADS": str(threads)}
    run = subprocess.run(
        [sys.executable, "-c", FINGERPRINT], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    return run.stdout.split()


def test_results_depend_neither_on_the_instruction_set_nor_on_threads() -> None:
    names = ["baseline", "avx2", "avx512"]
    available = names[: names.index(build_info().vector_extension) + 1]
    runs = [fingerprint(name, threads) for name in available for threads in (1, 3)]
    assert [run[0] for run in runs] == [name for name in available for _ in range(2)]
    assert len({run[1] for run in runs}) == 1


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors have one clone")
def test_an_unknown_instruction_set_is_an_error() -> None:
    environment = {**os.environ, "HYPERSIMPLEX_ISA": "sse9"}
    command = "import torch, hypersimplex_ext as hs; hs.soft_binary_argmax(torch.ones(3), 1)"
    run = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode != 0
    assert "HYPERSIMPLEX_ISA must be baseline, avx2 or avx512, got sse9" in run.stderr


@pytest.mark.parametrize("label", [-1, 300])
def test_a_class_index_out_of_range_is_an_error_whatever_the_number_of_threads(label: int) -> None:
    x, labels = torch.zeros(20_000, 300), torch.zeros(20_000, dtype=torch.long)
    labels[-1] = label
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            with pytest.raises(IndexError, match=f"Target {label} is out of bounds."):
                hypersimplex_loss(x, labels)
    finally:
        torch.set_num_threads(threads)


def exact_projection(x: list[float], k: float, tau: float) -> list[float]:
    """In rational arithmetic: the linear piece between two breakpoints that holds the root, and the root on it."""
    entries, mass, temperature = [Fraction(v) for v in x], Fraction(k), Fraction(tau)

    def clipped(t: Fraction) -> list[Fraction]:
        return [min(max((v - t) / temperature, Fraction(0)), Fraction(1)) for v in entries]

    breakpoints = sorted({v - shift for v in entries for shift in (0, temperature)})
    low, high = 0, len(breakpoints) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if sum(clipped(breakpoints[middle])) >= mass:
            low = middle
        else:
            high = middle
    left, right = breakpoints[low], breakpoints[high]
    excess, lack = sum(clipped(left)) - mass, mass - sum(clipped(right))
    return [float(v) for v in clipped(left + (right - left) * excess / (excess + lack))]


@pytest.mark.parametrize("tau", [1.0, 1e-100, 1e-300])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_magnitudes_over_the_whole_range_of_float64(tau: float, share: float) -> None:
    """So spread out that the search runs out of steps and the sorted list decides."""
    generator = torch.Generator().manual_seed(0)
    for ties in (1, 3):
        exponents = torch.rand(60, generator=generator, dtype=torch.float64) * 2000 - 1000
        x = torch.exp2(exponents) * (torch.randint(2, (60,), generator=generator) * 2 - 1)
        x = x.repeat(ties)
        k = int(share * len(x)) + 0.5
        y = soft_binary_argmax(x, k, tau)
        torch.testing.assert_close(y, torch.tensor(exact_projection(x.tolist(), k, tau), dtype=torch.float64))
