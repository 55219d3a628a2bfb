"""The CUDA kernels' regimes, each forced on vectors so short that the emulator runs them too."""

import itertools

import pytest
import torch

from hypersimplex_ext import _arguments, _loss_ops, hypersimplex_loss, soft_binary_argmax

from .cases import assert_projection
from .conftest import KERNELS
from .test_jvp import assert_gradients, gradients
from .test_loss import IGNORED, KINDS, assert_loss, make

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize("regime", REGIMES)
def test_products_in_every_regime(on_device, monkeypatch, regime, shape, dim, dtype):
    device, launches = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    rest = [size for i, size in enumerate(shape) if i != dim]
    x = torch.randn(shape, dtype=torch.float64).to(dtype).to(device)
    k, tau = (shape[dim] * torch.rand(rest)).double().to(device), (0.3 + torch.rand(rest)).double().to(device)
    launches()
    assert assert_gradients(x, k, tau, dim).any()
    assert device.type == "cuda" or any("multiply" in name for name in launches())


@pytest.mark.parametrize("regime", REGIMES)
def test_products_of_special_vectors_in_every_regime(on_device, monkeypatch, regime):
    device, _ = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    inf, nan = float("inf"), float("nan")
    x = torch.zeros(5, 40, device=device)
    x[0, 3] = nan
    x[1, :4] = inf
    x[2, :2] = inf
    x[3] = -inf
    v = torch.zeros_like(x)
    v[:, 5] = 38.0
    k, tau = torch.full((5,), 3.0, device=device), torch.ones(5, device=device)
    for at in (x, x.t().contiguous()):
        dim = 1 if at is x else 0
        grad_x, grad_k, grad_tau = gradients(at, k, tau, v if dim else v.t(), dim)
        grad_x = grad_x if dim else grad_x.t()
        assert grad_x[0].isnan().all()
        assert grad_x[1].tolist() == grad_x[3].tolist() == [0.0] * 40
        assert grad_x[2, :2].tolist() == [0.0, 0.0]
        torch.testing.assert_close(grad_x[2, 2:], v[2, 2:] - 1)
        torch.testing.assert_close(grad_x[4], v[4] - 38 / 40)
        assert grad_k[0].isnan()
        torch.testing.assert_close(grad_k[1:].cpu(), torch.tensor([0.0, 1.0, 0.0, 38 / 40]))
        assert grad_tau[0].isnan()
        torch.testing.assert_close(grad_tau[1:].cpu(), torch.zeros(4))


@pytest.mark.parametrize(("dtype", "exponent"), [(torch.float32, 126), (torch.float64, 1020)])
@pytest.mark.parametrize("regime", REGIMES)
def test_temperatures_whose_inverse_overflows(on_device, monkeypatch, regime, dtype, exponent):
    """Powers of two that scale logits and temperature leave y as it is, and scale the gradient."""
    device, _ = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    x, v = (torch.randn(2, 50).mul(4).round().div(4).to(dtype).to(device) for _ in range(2))
    k, tau = (torch.full((2,), value, dtype=torch.float64, device=device) for value in (20.0, 0.7))
    y, (expected, *_) = soft_binary_argmax(x, k, tau), gradients(x, k, tau, v / 16)
    for factor in (0.5**exponent, 2.0**exponent):
        torch.testing.assert_close(soft_binary_argmax(x * factor, k, tau * factor), y)
        grad_x, _, grad_tau = gradients(x * factor, k, tau * factor, v / 16)
        torch.testing.assert_close(grad_x * factor, expected)
        assert grad_tau.isfinite().all()


# [n] and [n, 1] along the samples, [n, C] with few and with many classes, [N, C, d] with two strides of the samples;
# long enough that the backward pass takes several blocks.
BATCHES = [(130,), (150, 1), (900, 5), (131, 40), (6, 5, 33)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("regime", REGIMES)
def test_losses_in_every_regime(on_device, monkeypatch, regime, shape, dtype):
    device, launches = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    launches()
    for targets, kind in itertools.product(("ignored", "soft") if len(shape) > 1 else ("soft",), KINDS):
        x, target = make(shape, targets, device, dtype)
        assert_loss(x, target, tau=0.75, kind=kind)  # exact also in float32
        if dtype == torch.float64:
            weights = 0.5 + torch.rand((shape[0], *shape[2:]), device=device)
            assert_loss(x, target, 0.4, 0.75, kind=kind, sample_weight=weights, label_smoothing=0.1)
    if device.type != "cuda":
        names = " ".join(launches())
        assert all(name in names for name in ("loss_team", "add_classes", "loss_gradient"))


@pytest.mark.parametrize("classes", [8, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_class_does_not_depend_on_those_beside_it(on_device, monkeypatch, kind, classes):
    """Its threshold is confirmed by the sweep that sums the loss up, or by another while they are still searching."""
    device, _ = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", "block:columns=4,threads=64")
    x, target = make((500, classes), "index", device, torch.float32)
    others = x.clone()
    others[:, 1::2] = others[:, 1::2].sinh() * 30
    settings = (0.0, _arguments.TARGETS, 0.75, -100, 0.0, _arguments.KINDS[kind], _arguments.SUM)
    states = [_loss_ops.loss_forward(logits, target, *(None,) * 4, *settings)[1][:-1] for logits in (x, others)]
    mine, beside_others = (state.view(_loss_ops.STATE_ROWS, classes)[:, ::2] for state in states)
    assert torch.equal(mine, beside_others)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("regime", REGIMES)
def test_losses_of_special_classes_in_every_regime(on_device, monkeypatch, regime, kind):
    device, _ = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    inf = float("inf")
    x, target = make((60, 6), "index", device)
    target[:6] = torch.arange(6, device=device)
    target[50:] = IGNORED
    x[7, 1] = float("nan")
    x[2, 2] = inf  # right and certain, as the next
    x[7, 3] = -inf
    target[7] = 0
    x[50:] = float("nan")
    leaf = x.requires_grad_()
    value = hypersimplex_loss(leaf, target, kind=kind, reduction="sum")
    (grad,) = torch.autograd.grad(value, leaf)
    assert value.isnan()
    assert grad[:50, 1].isnan().all()
    assert (grad[50:, [0, 2, 3, 4, 5]] == 0).all()
    assert grad[2, 2] == grad[7, 3] == 0
    others = [0, 2, 3, 4, 5]
    leaf = x.detach()[:50].double().requires_grad_()
    value = hypersimplex_loss(leaf, target[:50], kind=kind, reduction="none")[:, others].sum()
    (expected,) = torch.autograd.grad(value, leaf)
    torch.testing.assert_close(grad[:50, others].double(), expected[:, others], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(70, 5), (70, 40), (4, 5, 20)])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("k", ["targets", 0.5, 3])
def test_class_indices_out_of_range_in_every_regime(on_device, monkeypatch, regime, shape, k):
    device, _ = on_device
    if device.type == "cuda":
        pytest.skip("an assertion on the device ends the process's use of it")
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    for wrong in (-1, shape[1]):
        x, target = make(shape, "index", device)
        target[-1] = wrong
        for reduction, kind in itertools.product(("mean", "sum"), KINDS):
            with pytest.raises(RuntimeError, match="class index out of range"):
                hypersimplex_loss(x, target, k, kind=kind, reduction=reduction, label_smoothing=0.1)
            hypersimplex_loss(x, target, k, kind=kind, reduction=reduction, ignore_index=wrong)


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
