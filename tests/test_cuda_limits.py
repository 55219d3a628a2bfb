"""The CUDA kernels at their limits: distances in memory beyond 2^31 entries, launches that the device refuses, results
that have to repeat whatever the order in which blocks and warps run."""

import mmap
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hypersimplex_ext import (
    _arguments,
    _backends,
    _calls,
    _layout,
    _loss_ops,
    hypersimplex_loss,
    reference,
    soft_binary_argmax,
)
from tests import simt

from .cases import assert_projection, clear_of_kinks
from .test_cuda import REGIMES
from .test_loss import KINDS, expected_loss, make
from .tolerances import TOLERANCES

# ---- far apart in memory ----

# Shape, strides, dimension: vectors that lie far from one another, entries that do, and both.
FAR = {
    "vectors": ((3, 40), ((1 << 30) + 8, 1), 1),
    "entries": ((40, 3), ((1 << 26) + 1, 1), 0),
    "columns": ((131, 40), ((1 << 24) + 64, 1), 0),
    "both": ((3, 5, 9), ((1 << 30) + 24, 1 << 27, 3), 1),
}


def spread(shape, strides, dtype):
    """A tensor with these strides over memory that the system provides where it is touched."""
    size = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    assert size > 1 << 31
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    memory = mmap.mmap(-1, size * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides)


linux = pytest.mark.skipif(sys.platform != "linux", reason="memory that nothing is reserved for")


@pytest.fixture
def emulated(on_device):
    """The emulator alone."""
    if on_device[0].type == "cuda":
        pytest.skip("for the emulator")


@linux
@pytest.mark.parametrize("layout", FAR)
@pytest.mark.parametrize("regime", REGIMES)
def test_tensors_that_reach_beyond_2_to_the_31_entries(emulated, monkeypatch, regime, layout):
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    shape, strides, dim = FAR[layout]
    x, v, y, grad = (spread(shape, strides, torch.bfloat16) for _ in range(4))
    x.copy_(torch.randn(shape))
    v.copy_(torch.randn(shape))
    k, tau = shape[dim] // 3, 0.75
    project_and_differentiate(x, v, y, grad, k, tau, dim)
    assert_projection(y, x, k, tau, dim)
    x, v = x.double(), v.double()
    expected = reference.jvp(x, v, reference.threshold(x, k, tau, dim), tau, dim)[0]
    clear = clear_of_kinks(x, k, tau, dim, margin=2e-6).unsqueeze(dim)
    assert clear.any()
    torch.testing.assert_close(grad.double() * clear, expected * clear, rtol=0, atol=0.02)


def project_and_differentiate(x, v, y, grad, k, tau, dim):
    """Both passes into results of any layout; users get those of `x`, made dense."""
    backend, layout = _backends.BACKENDS["cpu"], _layout.vectors(x, dim)[1]
    call = backend.kernels.ProjectionCall(_calls.DTYPES[x.dtype], x.device.type, 0, x.shape, dim, layout.cut)
    state = torch.empty(2, *_layout.rest(x.shape, dim), dtype=torch.float64)
    backend.call(call.threshold, x.device, x, None, k, None, tau, y, state)
    backend.call(call.jvp, x.device, x, v, state, None, tau, grad, None)


def differentiate(x, target, state, grad, settings):
    """The backward pass of the loss, likewise."""
    backend, dense = _backends.BACKENDS["cpu"], target.shape == x.shape
    call = backend.kernels.LossCall(_calls.DTYPES[x.dtype], x.device.type, 0, x.shape, dense, *settings)
    backend.call(call.backward, x.device, (x, state, target, None, None, None, None), x.new_ones(()), grad)


@linux
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", ["ignored", "soft"])
@pytest.mark.parametrize("regime", REGIMES)
def test_losses_that_reach_beyond_2_to_the_31_entries(emulated, monkeypatch, regime, targets, kind):
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    for shape, strides in (((130, 3), ((1 << 25) + 1, 1)), ((3, 40), (1, (1 << 26) + 8))):
        near_x, near_target = make(shape, targets, "cpu", torch.bfloat16)
        x, grad = (spread(shape, strides, torch.bfloat16) for _ in range(2))
        indices = near_target.shape != shape
        step = (max(strides[0], 1 << 30),) if indices else strides
        target = spread(near_target.shape, step, near_target.dtype)
        x.copy_(near_x)
        target.copy_(near_target)
        settings = (0.0, _arguments.TARGETS, 0.75, -100, 0.0, _arguments.KINDS[kind], _arguments.MEAN)
        value, state = _loss_ops.loss_forward(x, target, *(None,) * 4, *settings)
        differentiate(x, target, state, grad, settings)
        terms, expected, divisor, clear = expected_loss(near_x, near_target, tau=0.75, kind=kind)
        tolerance = TOLERANCES[torch.bfloat16]
        assert abs(value.item() - float(terms.sum()) / divisor) <= tolerance.loss * float(terms.abs().sum()) / divisor
        expected = expected / divisor * clear
        error = (grad.double() * clear - expected).abs().max()
        assert error <= tolerance.gradient * expected.abs().max()


GPU_BYTES = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
large = pytest.mark.skipif(GPU_BYTES < 20 << 30, reason="no GPU with 20 GiB")


@large
@pytest.mark.parametrize(("shape", "dim"), [((1, (1 << 31) + (1 << 20)), 1), (((1 << 21) + 1024, 1024), 1)])
def test_more_than_2_to_the_31_entries_on_cuda(shape, dim):
    """Rows, and one vector, made of copies of a short piece: every copy is projected as the piece alone."""
    piece = torch.randn(1024, 1024, device="cuda").bfloat16()
    copies, k = shape[0] * shape[1] // piece.numel(), 100
    x = piece.repeat(copies, 1)
    assert x.numel() > 1 << 31
    if shape[0] == 1:
        expected = soft_binary_argmax(piece.view(1, -1), k * 1024)
        y = soft_binary_argmax(x.view(shape), k * 1024 * copies)
    else:
        expected = soft_binary_argmax(piece, k)
        y = soft_binary_argmax(x, k)
    y, expected = y.view(copies, -1), expected.view(-1)
    for i in (0, copies // 2, copies - 1):
        torch.testing.assert_close(y[i], expected, rtol=0, atol=TOLERANCES[torch.bfloat16].y)


@large
def test_more_than_2_to_the_31_logits_on_cuda():
    """The batch twice over has the loss of the batch, and half its gradient."""
    samples, classes = 1 << 15, (1 << 15) + 64
    x = torch.randn(samples, classes, device="cuda", dtype=torch.bfloat16)
    target = torch.randint(classes, (samples,), device="cuda")
    results = []
    for logits, labels in ((x, target), (x.repeat(2, 1), target.repeat(2))):
        leaf = logits.requires_grad_()
        value = hypersimplex_loss(leaf, labels)
        (grad,) = torch.autograd.grad(value, leaf)
        results.append((value.item(), grad[-samples:]))
        assert torch.equal(grad[:samples], grad[-samples:])
    (once, gradient), (twice, half) = results
    assert once == pytest.approx(twice, rel=TOLERANCES[torch.bfloat16].loss)
    scale = gradient.abs().max()
    assert ((gradient - 2 * half).abs() <= TOLERANCES[torch.bfloat16].gradient * scale).float().mean() > 0.999


# ---- launches ----


@pytest.mark.parametrize(
    ("regime", "message"),
    [
        ("cluster:blocks=32,threads=64", "invalid configuration"),
        ("grid:blocks=1000,threads=64", "too many blocks|too large"),
    ],
)
def test_a_refused_launch_is_an_error_with_the_functions_name(emulated, monkeypatch, regime, message):
    x = torch.randn(3, 2000, requires_grad=True)
    y = soft_binary_argmax(x, 5)
    logits, target = torch.randn(2000, 3), torch.randint(3, (2000,))
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    for name, call in {
        "threshold": lambda: soft_binary_argmax(x.detach(), 5),
        "jvp": lambda: torch.autograd.grad(y, x, y.detach()),
        "loss_forward": lambda: hypersimplex_loss(logits, target),
    }.items():
        with pytest.raises(RuntimeError, match=f"CUDA error in {name}: .*({message})"):
            call()


# ---- clusters ----


@pytest.fixture
def emulator(emulated):
    """The emulated device, with so little shared memory that short vectors need large clusters."""
    device = simt.Device(simt.load("_C_simt"))
    small = {device.SHARED_MEMORY_AT_FIRST: 12 << 10, device.SHARED_MEMORY_PER_BLOCK: 12 << 10}
    with device.changed({**small, device.SHARED_MEMORY_PER_MULTIPROCESSOR: 26 << 10}):
        yield device


NO_CLUSTERS = {simt.Device.CLUSTER_LAUNCH: 0}
NONE_OF_16 = {simt.Device.CLUSTERS_AT_ONCE + 16: 0}
NONE_OF_8 = {**NONE_OF_16, simt.Device.CLUSTERS_AT_ONCE + 8: 0}
OLD_CODE = {simt.Device.CAPABILITY_MAJOR: 8}


@pytest.mark.parametrize(
    ("n", "device", "blocks"),
    [
        (30000, {}, 16),
        (30000, NONE_OF_16, 1),
        (30000, NO_CLUSTERS, 1),
        (15000, {}, 8),
        (15000, NONE_OF_16, 8),
        (15000, NONE_OF_8, 1),
        (15000, OLD_CODE, 1),
        (6000, NONE_OF_8, 4),
        (6000, NO_CLUSTERS, 1),
    ],
)
def test_clusters_are_no_larger_than_the_device_runs(emulator, n, device, blocks):
    """Where they would have to be, a grid takes their place."""
    with emulator.changed(device):
        emulator.take_clusters()
        x = torch.randn(1, n, requires_grad=True)
        y = soft_binary_argmax(x, 50.5)
        (grad,) = torch.autograd.grad(y, x, torch.arange(n).view(1, n).float())
        value = hypersimplex_loss(x.detach().view(n, 1), torch.ones(n, 1) * (x.detach().view(n, 1) > 2))
        assert set(emulator.take_clusters()[:3]) == {blocks}
    assert_projection(y, x.detach(), 50.5, 1.0, 1)
    assert grad.isfinite().all()
    assert value.isfinite()


@pytest.mark.parametrize(("rows", "blocks"), [(15, 8), (16, 4), (32, 4), (33, 2), (66, 2), (67, 1)])
def test_no_cluster_waits_for_another_so_that_each_may_be_larger(emulated, rows, blocks):
    device = simt.Device(simt.load("_C_simt"))
    with device.changed({device.MULTIPROCESSORS: 136}):
        device.take_clusters()
        y = soft_binary_argmax(x := torch.randn(rows, 8192), 7)
        assert device.take_clusters() == [blocks]
    assert_projection(y, x, 7, 1.0, 1)


# ---- threads ----


def test_threads_with_different_shapes_leave_each_other_shared_memory(emulated, monkeypatch):
    """Both need more than kernels have at first; the emulator also reports a limit that is lowered."""
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", "block:threads=64")
    inputs = [torch.randn(1, n) for n in (20000, 40000)]
    expected = [soft_binary_argmax(x, 9) for x in inputs]
    both = threading.Barrier(len(inputs))

    def calls(x):
        results = []
        for _ in range(4):
            both.wait()
            results.append(soft_binary_argmax(x, 9))
        return results

    device = simt.Device(simt.load("_C_simt"))
    with device.changed({device.MULTIPROCESSORS: 3}), ThreadPoolExecutor(len(inputs)) as pool:
        for y, results in zip(expected, pool.map(calls, inputs), strict=True):
            for result in results:
                assert torch.equal(result, y)


# ---- repetition ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(3, 131), (2000, 3)])
@pytest.mark.parametrize("regime", ["", *REGIMES])
def test_results_repeat_bit_for_bit(on_device, monkeypatch, regime, shape, dtype):
    """The emulator draws the order of blocks and warps anew for each launch."""
    device, _ = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    rows = shape[0] < shape[1]
    x, v = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    target = torch.randint(shape[1], (shape[0],), device=device)
    weights = torch.rand(shape[0], device=device)

    def results():
        leaves = [t.requires_grad_() for t in (x.detach(), x.new_tensor(2.5), x.new_tensor(0.7))]
        y, threshold = soft_binary_argmax(*leaves, dim=int(rows), return_threshold=True)
        yield from (y, threshold, *torch.autograd.grad(y, leaves, v))
        for kind in KINDS:
            value = hypersimplex_loss(leaves[0], target, sample_weight=weights, kind=kind)
            yield from (value, *torch.autograd.grad(value, leaves[0]))

    first = list(results())
    if device.type == "cpu":
        emulator = simt.Device(simt.load("_C_simt"))
        emulator.seed = emulator.seed + 1
    for _ in range(2):
        for one, other in zip(first, results(), strict=True):
            assert torch.equal(one, other)
