"""The CUDA kernels' regimes, each forced on vectors so short that the emulator runs them too."""

import importlib.util

import pytest
import torch

from hypersimplex_ext import _backends, soft_binary_argmax

from .cases import assert_projection
from .conftest import KERNELS

REGIMES = [
    "short",
    "block",
    "block:threads=64",
    "block:threads=64,stream=1",
    "cluster:blocks=2,threads=64",
    "cluster:blocks=4,threads=64",
    "grid:blocks=2,threads=64",
    "grid:blocks=3,threads=128",
]
# [rows, n] along the rows, [n, columns] in place along the columns, and dimensions that are neither.
SHAPES = [((3, 17), 1), ((2, 131), 1), ((64, 3), 0), ((131, 40), 0), ((2, 33, 5), 1)]


@pytest.fixture(
    params=[
        pytest.param(
            "simt", marks=pytest.mark.skipif(not importlib.util.find_spec("tests.simt"), reason="no emulator")
        ),
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
    ]
)
def on_device(request, monkeypatch):
    """The device whose tensors the kernels take, and the names of the kernels launched since the last call."""
    if request.param == "cuda":
        yield torch.device("cuda"), lambda: None
        return
    simt = importlib.import_module("tests.simt")
    module = simt.load("_C_simt")

    def call(function, device, *arguments):
        memory = []

        def allocate(size):
            memory.append(torch.full((size,), 255, dtype=torch.uint8))  # as good as uninitialised
            return memory[-1].data_ptr()

        function(*arguments, 0, allocate)

    monkeypatch.setitem(_backends.BACKENDS, "cpu", _backends.Backend(module.cuda, call))
    device = simt.Device(module)
    before = device[device.CAPABILITY_MAJOR], device[device.CLUSTER_LAUNCH]
    device[device.CAPABILITY_MAJOR], device[device.CLUSTER_LAUNCH] = 9, 1
    yield torch.device("cpu"), device.take_launches
    device[device.CAPABILITY_MAJOR], device[device.CLUSTER_LAUNCH] = before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime(on_device, monkeypatch, regime, shape, dim, dtype):
    device, _ = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    x = torch.randn(shape, device=device).to(dtype)
    n = shape[dim]
    for k in (1, n // 2, n - 0.5):
        y = soft_binary_argmax(x, k, 0.7, dim)
        assert_projection(y, x, k, 0.7, dim)
        assert torch.equal(soft_binary_argmax(x, k, 0.7, dim), y)


@pytest.mark.parametrize("regime", REGIMES)
def test_special_values_in_every_regime(on_device, monkeypatch, regime):
    device, _ = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    inf, nan = float("inf"), float("nan")
    x = torch.zeros(6, 40, device=device)
    x[0, 3] = nan
    x[1, :4] = inf
    x[2, :2] = inf
    x[3] = -inf
    x[4, :39] = -inf
    y = soft_binary_argmax(x, 3)
    assert y[0].isnan().all()
    assert y[1].tolist() == [0.75] * 4 + [0.0] * 36
    torch.testing.assert_close(y[2].cpu(), torch.tensor([1.0] * 2 + [1 / 38] * 38))
    assert y[3].tolist() == [0.0] * 40
    assert y[4].tolist() == [0.0] * 39 + [1.0]
    torch.testing.assert_close(y[5].cpu(), torch.full((40,), 3 / 40))


def test_forced_regimes_launch_different_kernels(on_device, monkeypatch):
    device, launches = on_device
    if device.type == "cuda":
        pytest.skip("the emulator tells the names")
    x = torch.randn(2, 131)
    names = set()
    for regime in ("short", "block:threads=64", "cluster:blocks=2,threads=64", "grid:blocks=2,threads=64"):
        monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
        launches()
        soft_binary_argmax(x, 5)
        names.add(tuple(launches()))
    assert len(names) >= 2


@pytest.mark.parametrize("regime", ["warp", "block:threads=32", "block:lanes=3"])
def test_an_unknown_regime_is_an_error(on_device, monkeypatch, regime):
    device, _ = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    with pytest.raises(ValueError, match="HYPERSIMPLEX_REGIME must be short, block, cluster or grid"):
        soft_binary_argmax(torch.randn(9, device=device), 2)


def test_kernels_are_found():
    assert any(KERNELS.glob("*.cu"))
