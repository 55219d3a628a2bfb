"""The CPU core: one result whatever the instruction set, the number of threads and how the caller rounds."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys

import pytest
import torch

from hypersimplex_ext import build_info, hypersimplex_loss

# Of every operator, on 1, 2 and 3 threads: long vectors, short ones, rows of small mass, columns few and many, ends
# that fill no block, the loss forward and backward; and, where numbers are subnormal, with a calling thread that
# flushes them to zero and one that does not.
FINGERPRINTS = """
import hashlib, torch, hypersimplex_ext as hs
torch.manual_seed(0)
def project(take, x, dim, k, tau, g):
    x = x.clone().requires_grad_()
    y, t = hs.soft_binary_argmax(x, k, tau, dim, return_threshold=True)
    y.backward(g)
    take(y, x.grad, torch.where(t.abs() > 1e-30, t, 0))  # what PyTorch adds up it may flush
def order(take, f, x, g):
    x = x.clone().requires_grad_()
    y = f(x)
    y = y if isinstance(y, torch.Tensor) else y[0]
    take(y, *torch.autograd.grad(y, x, g))
def ordering(weight, strengths):
    yield from (hs.isotonic_regression, lambda t: hs.isotonic_regression(t, weight), hs.sort)
    for soft in (hs.soft_rank, hs.soft_sort):
        for s in strengths:
            yield lambda t, s=s: soft(t, *s)
def lose(take, x, target, tau, kind):
    x = x.clone().requires_grad_()
    loss = hs.hypersimplex_loss(x, target, tau=tau, kind=kind)
    loss.backward()
    take(loss, x.grad)

def ordinary(take):
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for shape, dim, k in (
            ((3, 10), 1, 3),
            ((40, 33), 1, 11),
            ((70, 1003), 1, 5),
            ((40, 1003), 1, 301),
            ((2, 100_001), 1, 33_333),
            ((5000, 10), 0, 1666),
            ((700, 150), 0, 233),
        ) + (((1, 131_072), 1, 48_496.64), ((200_003,), 0, 80_000.5), ((200_003,), 0, 5)) * (dtype.itemsize > 2):
            project(take, torch.randn(shape).to(dtype), dim, k, 0.7, torch.randn(shape).to(dtype))
        for shape in ((100, 7), (5000, 10), (3000, 40)):
            for kind in ("squared", "fenchel_young"):
                lose(take, torch.randn(shape).to(dtype), torch.randint(shape[1], shape[:1]), 1.0, kind)
        for n in (5, 40, 1000, 5000):
            x, weight, g = torch.randn(7, n).to(dtype), (torch.rand(7, n) + 0.1).to(dtype), torch.randn(7, n).to(dtype)
            for f in ordering(weight, (("l2", 0.1), ("kl", 1.0), ("kl", 1e-4))):
                order(take, f, x, g)

LEAST = {torch.float32: 1e-45, torch.float64: 5e-324, torch.float16: 6e-8, torch.bfloat16: 1e-40}
SUBNORMAL = [((torch.randint(-50, 50, shape).double() * least).to(dtype), torch.randn(shape).to(dtype))
             for shape in ((300, 300), (300, 10), (3000, 12)) for dtype, least in LEAST.items()]
TARGETS, WEIGHTS = torch.randint(10, (3000,)), torch.rand(3000, 300) + 0.1
def subnormal(take):
    for x, g in SUBNORMAL:
        n, least = x.shape[1], LEAST[x.dtype]
        tau = max(least * 100, 3e-308)
        for dim in (0, 1):
            project(take, x, dim, 0.1 * x.shape[dim] + 0.5, tau, g)
        for kind in ("squared", "fenchel_young"):
            lose(take, x, TARGETS[: len(x)], tau, kind)
        for f in ordering(WEIGHTS[: len(x), :n].to(x.dtype), (("l2", tau), ("kl", tau))):
            order(take, f, x, g)

results = set()
for work, settings in ((ordinary, (False,)), (subnormal, (False, True))):
    digests = set()
    for flushed in settings:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            torch.set_flush_denormal(flushed)
            digest = hashlib.sha256()
            work(lambda *ts: [digest.update(t.detach().flatten().view(torch.uint8).numpy().tobytes()) for t in ts])
            torch.set_flush_denormal(False)
            digests.add(digest.hexdigest())
    print(hs.build_info().vector_extension, *digests)
"""


@functools.cache
def fingerprints(instruction_set: str) -> list[list[str]]:
    """The clone that ran and what it computed: one number each for ordinary and for subnormal entries."""
    environment = {**os.environ, "HYPERSIMPLEX_ISA": instruction_set}
    run = subprocess.run(
        [sys.executable, "-c", FINGERPRINTS], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    return [line.split() for line in run.stdout.splitlines()]


NAMES = ["baseline", "avx2", "avx512"]
AVAILABLE = NAMES[: NAMES.index(build_info().vector_extension) + 1]


@pytest.mark.parametrize("name", AVAILABLE)
def test_results_do_not_depend_on_the_number_of_threads(name: str) -> None:
    assert len(fingerprints(name)[0]) == 2


@pytest.mark.parametrize("name", AVAILABLE)
def test_results_do_not_depend_on_whether_the_caller_flushes_subnormal_numbers(name: str) -> None:
    assert len(fingerprints(name)[1]) == 2


def test_results_do_not_depend_on_the_instruction_set() -> None:
    runs = [fingerprints(name) for name in AVAILABLE]
    assert [run[0][0] for run in runs] == AVAILABLE
    assert all([line[1:] for line in run] == [line[1:] for line in runs[0]] for run in runs)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors have one clone")
def test_an_unknown_instruction_set_is_an_error() -> None:
    environment = {**os.environ, "HYPERSIMPLEX_ISA": "sse9"}
    command = "import torch, hypersimplex_ext as hs; hs.soft_binary_argmax(torch.ones(3), 1)"
    run = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode != 0
    assert "HYPERSIMPLEX_ISA must be baseline, avx2 or avx512, got sse9" in run.stderr


@pytest.mark.parametrize("label", [-1, 300])
def test_a_class_index_out_of_range_is_an_error_whatever_the_number_of_threads(set_threads, label: int) -> None:
    x, labels = torch.zeros(20_000, 300), torch.zeros(20_000, dtype=torch.long)
    labels[-1] = label
    for count in (1, 3):
        set_threads(count)
        with pytest.raises(IndexError, match=f"Target {label} is out of bounds."):
            hypersimplex_loss(x, labels)
