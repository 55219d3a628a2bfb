"""Everything runs in threads whose stack is 128 KiB, and what threads keep for themselves goes with them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COMMAND = """
import sys, threading, torch, hypersimplex_ext as hs
threads = int(sys.argv[1])
torch.set_num_threads(threads)

def project(shape, dtype, k, dim, solver="threshold"):
    x, tau = torch.randn(shape).to(dtype).requires_grad_(), torch.tensor(0.7, requires_grad=True)
    y, _ = hs.soft_binary_argmax(x, k, tau, dim, return_threshold=True, solver=solver)
    y.backward(torch.ones_like(y))

def lose(shape, dtype, dense, **options):
    x = torch.randn(shape).to(dtype).requires_grad_()
    target = torch.rand(shape).to(dtype) if dense else torch.randint(shape[1], shape[:1])
    hs.hypersimplex_loss(x, target, **options).backward()

def order(function, shape, dtype):
    x = torch.randn(shape).to(dtype).requires_grad_()
    function(x).backward(torch.ones_like(x))

def everything():
    for dtype in (torch.float32, torch.float64, torch.float16):
        for shape, k, dim in (((64, 10), 3, 1), ((40, 300), 3, 1), ((40, 300), 100, 1), ((3, 9000), 4000, 1),
                              ((1, 200_000), 70_000.5, 1), ((1, 200_000), 5, 1), ((3000, 300), 300.5, 0),
                              ((3000, 300), 3, 0), ((5000, 10), 1000, 0)):
            project(shape, dtype, k, dim)
        project((40, 300), dtype, 100, 1, "pav")
        project((1, 3000), dtype, 100, 1, "pav")
        for shape in ((100, 7), (5000, 10), (3000, 300)):
            for kind in ("squared", "fenchel_young"):
                lose(shape, dtype, False, kind=kind)
                lose(shape, dtype, True, kind=kind, sample_weight=torch.rand(shape[0]))
        for shape in ((3, 50), (3, 5000), (5000, 3), (1, 200_000)):
            weight = (torch.rand(shape) + 0.1).to(dtype)
            order(lambda x: hs.sort(x)[0], shape, dtype)
            order(hs.isotonic_regression, shape, dtype)
            order(lambda x: hs.isotonic_regression(x, weight, dim=0), shape, dtype)
            for kind in ("l2", "kl"):
                order(lambda x: hs.soft_rank(x, kind, 0.1), shape, dtype)
                order(lambda x: hs.soft_sort(x, kind, 0.1), shape, dtype)

def run(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def small():
    project((40, 300), torch.float64, 100, 1)

threading.stack_size(128 * 1024)
run(everything)
if sys.platform == "linux" and threads == 1:
    for _ in range(20):
        run(small)
    before = resident()
    for _ in range(200):
        run(small)
    assert resident() - before < 20e6, resident() - before
print("done")
"""


@pytest.mark.parametrize("threads", [1, 4])
def test_every_operator_runs_in_small_stacks(threads: int) -> None:
    """Both the calling thread's and those of OpenMP's threads; and two hundred threads leave no memory behind."""
    run = subprocess.run(
        [sys.executable, "-c", COMMAND, str(threads)],
        env={**os.environ, "OMP_STACKSIZE": "128k"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.stdout.strip() == "done", (run.returncode, run.stderr[-2000:])
    assert run.returncode == 0, run.stderr[-2000:]
