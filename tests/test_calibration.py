"""Thresholds of a whole data set: from logits, or from a model and a loader."""

import pytest
import torch
from torch.nn.parameter import is_lazy

from hypersimplex_ext.nn import HyperSimplexLoss

from .cases import assert_close
from .test_nn import batch, thresholds


class Network(torch.nn.Module):
    """Of which dropout and batch-norm show in which mode it is called, and that keeps one part frozen."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.layer = torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.5), torch.nn.Linear(6, 4)
        self.norm.eval()

    def forward(self, x):
        assert not torch.is_grad_enabled()
        return self.layer(self.drop(self.norm(x)))


def loader(x, target, size):
    return list(zip(x.split(size), target.split(size), strict=True))


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_model_and_a_loader(device, size):
    network, x = Network().to(device), torch.randn(64, 6)
    labels = torch.arange(64) % 4
    module = HyperSimplexLoss(4, tau=0.5).to(device)
    module(*batch(device, offset=5))  # what was there before is gone
    statistics = {name: value.clone() for name, value in network.state_dict().items()}
    module.calibrate(network, loader(x, labels, size))
    assert [m.training for m in network.modules()] == [True, False, True, True]
    assert all(torch.equal(value, statistics[name]) for name, value in network.state_dict().items())
    network.eval()
    with torch.no_grad():
        due = thresholds(network(x.to(device)), labels.to(device), 0.5)
    assert_close(module.running_threshold, due, 1e-6)
    assert module.num_batches_tracked.tolist() == [1] * 4


def test_the_model_has_its_modes_back_after_an_error(device):
    network = Network().to(device)
    with pytest.raises(RuntimeError):
        HyperSimplexLoss(4).to(device).calibrate(network, [(torch.randn(3, 5), torch.zeros(3, dtype=torch.long))])
    assert [m.training for m in network.modules()] == [True, False, True, True]


@pytest.mark.parametrize("targets", ["indices", "ignored", "dense", "positions", "binary"])
def test_logits_and_targets_of_every_kind(device, targets):
    """As a step of training on all of them at once would set the thresholds."""
    x, labels = batch(device)
    if targets == "ignored":
        labels[::3] = -100
    if targets == "dense":
        labels = torch.rand_like(x)
    if targets == "positions":
        x, labels = x.reshape(4, 16, 4).movedim(-1, 1), labels.reshape(4, 16)
    if targets == "binary":
        x, labels = x[:, 0], labels == 0
    module, due = (HyperSimplexLoss(label_smoothing=0.1, device=device) for _ in range(2))
    module.calibrate(x, labels)
    due(x, labels)
    assert torch.equal(module.running_threshold, due.running_threshold)
    assert torch.equal(module.num_batches_tracked, due.num_batches_tracked)
    if targets == "dense":
        with pytest.raises(ValueError, match="ask for predict"):
            module.predict(x)
    assert not is_lazy(module.running_threshold)
    parts = HyperSimplexLoss(label_smoothing=0.1, device=device)
    parts.calibrate(lambda x: x, loader(x, labels, 3))
    assert_close(parts.running_threshold, due.running_threshold, 1e-6)
    module(x, labels)  # sized as if by a call
    assert module.num_batches_tracked.tolist() == [2] * len(module.running_threshold)


def test_classes_that_the_data_lack(device):
    x, labels = batch(device)
    module = HyperSimplexLoss(4).to(device)
    module(x, labels)
    module.calibrate(x, labels % 3)
    assert module.num_batches_tracked.tolist() == [1, 1, 1, 0]
    assert module.running_threshold[3] == 0
    assert not (module.predict(x) == 3).any()
    assert not module.running_threshold.requires_grad


def test_small_batches_and_the_whole(device):
    """Running averages over small batches are off by what calibration takes away."""
    torch.manual_seed(0)
    x, labels = batch(device, n=2000, offset=torch.tensor([0.0, 5.0, -5.0, 2.0], device=device))
    x += 3 * torch.nn.functional.one_hot(labels, 4)
    module = HyperSimplexLoss(4).to(device)
    for part in loader(x[:400], labels[:400], 8):
        module(*part)
    whole = thresholds(x, labels)
    assert (module.running_threshold - whole).abs().max() > 0.05
    module.calibrate(x, labels)
    assert_close(module.running_threshold, whole, 1e-6)
