"""Losses whose threads take several classes side by side, where logits can be read in packs of 8 or 16 bytes."""

import pytest
import torch

from hypersimplex_ext import hypersimplex_loss

from .test_loss import IGNORED, KINDS, assert_loss

all_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])


def names(launches):
    """Whether the forward and the backward took several classes a thread; None on a GPU, which does not tell."""
    text = " ".join(launches() or ())
    return ("true>" in text, "gradient_wide" in text) if text else None


def draw(device, shape, dtype):
    x = torch.randn(shape, dtype=torch.float64).to(dtype).to(device)
    return x, torch.randint(shape[1], (shape[0], *shape[2:]), device=device)


def padded(x, before):
    """The same numbers, at another place of wider rows."""
    wider = torch.zeros(x.shape[0], x.shape[1] + 8, dtype=x.dtype, device=x.device)
    wider[:, before : before + x.shape[1]] = x
    return wider[:, before : before + x.shape[1]]


@all_types
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("classes", "before", "wide"), [(36, 0, True), (64, 4, True), (36, 1, False), (35, 0, False)])
def test_which_losses_take_several_classes_a_thread(on_device, kind, classes, before, wide, dtype):
    device, launches = on_device
    x, target = draw(device, (150, classes), dtype)
    x = padded(x, before)
    target[::3] = IGNORED
    launches()
    assert_loss(x, target, tau=0.75, kind=kind)
    assert names(launches) in (None, (wide, wide))
    weights = 0.5 + torch.rand(150, device=device)
    assert_loss(x, target, 0.4, 0.75, kind=kind, sample_weight=weights, label_smoothing=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("regime", ["block:threads=64", "cluster:blocks=4,threads=64", "block:columns=8,threads=128"])
def test_no_class_depends_on_its_neighbours(on_device, monkeypatch, regime, kind):
    """Nor on anything but its own logits, bit for bit: be they infinite, masked, nan, or tau tiny."""
    device, launches = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    inf, nan = float("inf"), float("nan")
    x, target = draw(device, (150, 64), torch.float32)
    target = target % 32 * 2 + 1  # classes of odd numbers
    strange = x.clone()
    strange[3, 0] = nan
    strange[:4, 2] = inf
    strange[::2, 4] = -inf
    strange[:, 6] = 1e38 * x[:, 6]
    strange[:, 8] = 7.0
    tau = torch.ones(64, dtype=torch.float64, device=device)
    strange_tau = tau.clone()
    strange_tau[10] = 1e-40
    strange_tau[12] = 1e40
    launches()
    results = []
    for logits, temperatures in ((x, tau), (strange, strange_tau), (strange, strange_tau)):
        leaf = logits.clone().requires_grad_()
        each = hypersimplex_loss(leaf, target, 3, temperatures, kind=kind, reduction="sum")
        each.backward()
        results.append((each.detach(), leaf.grad))
    assert names(launches) in (None, (True, True))
    (_, plain), (loss, first), (again, second) = results
    assert torch.equal(plain[:, 1::2], first[:, 1::2])
    assert torch.equal(first.nan_to_num(nan=-1.0), second.nan_to_num(nan=-1.0))
    assert torch.equal(loss.nan_to_num(nan=-1.0), again.nan_to_num(nan=-1.0))
    assert first[:, 0].isnan().all()
    assert first[:4, 2].tolist() == [0.0] * 4
    assert first[::2, 4].tolist() == [0.0] * 75


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_are_counted_by_several_blocks(on_device, dtype):
    device, launches = on_device
    x, target = draw(device, (5000, 32), dtype)
    target[::7] = IGNORED
    launches()
    assert_loss(x, target, kind="squared", sample_weight=0.5 + torch.rand(5000, device=device))
    assert device.type == "cuda" or any("count_labels" in name for name in launches())


def test_more_classes_than_counters_on_chip(on_device):
    device, _ = on_device
    x, target = draw(device, (20, 8200), torch.float32)
    assert_loss(x, target, kind="squared")
