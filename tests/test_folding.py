"""Folding: the calibration in the last layer, of whatever kind, or a refusal that says what stands against it."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from hypersimplex_ext.nn import HyperSimplexLoss

from .cases import assert_close


class Images(nn.Module):
    """A last layer that is a convolution."""

    def __init__(self, classes, bias=True):
        super().__init__()
        self.layer = nn.Conv2d(6, classes, 1, bias=bias)

    def forward(self, x):
        return self.layer(x[..., None, None])[..., 0, 0]


@pytest.mark.parametrize("kind", ["linear", "linear without bias", "convolution"])
@pytest.mark.parametrize(
    "tau", [0.7, torch.tensor(0.7), torch.tensor([0.4, 0.8, 1.3])], ids=["number", "tensor", "per class"]
)
def test_folding(device, kind, tau):
    network = {
        "linear": lambda: nn.Linear(6, 3),
        "linear without bias": lambda: nn.Linear(6, 3, bias=False),
        "convolution": lambda: Images(3),
    }[kind]().to(device)
    features, labels = 5 * torch.randn(300, 6, device=device), torch.randint(3, (300,), device=device)
    module = HyperSimplexLoss(3, tau=tau.clone() if isinstance(tau, torch.Tensor) else tau).to(device)
    loss = module(network(features), labels).detach()
    module.eval()
    labels_before = module.predict(network(features))
    assert not torch.equal(network(features).argmax(1), labels_before)
    module.fold_into(getattr(network, "layer", network))
    assert all(p.requires_grad for p in network.parameters())
    output = network(features)
    assert torch.equal(output.argmax(1), labels_before)
    assert torch.equal(module.predict(output), labels_before)
    assert_close(module(output, labels).detach(), loss, 1e-5)
    module.train()(output, labels)  # the thresholds of the folded layer's output
    assert module.running_threshold.abs().max() < 1e-4


@pytest.mark.parametrize("tau", [0.7, torch.tensor([0.7])], ids=["number", "tensor"])
def test_folding_binary(device, tau):
    layer = nn.Linear(6, 1).to(device)
    features = 5 * torch.randn(300, 6, device=device)
    target = torch.rand(300, device=device) < 0.2
    module = HyperSimplexLoss(1, tau=tau).to(device)
    module(layer(features)[:, 0], target)
    before = module.predict(layer(features)[:, 0])
    assert 0 < before.sum() < 300
    module.fold_into(layer)
    output = layer(features)[:, 0]
    assert torch.equal((output >= 0).long(), before)
    assert torch.equal(module.predict(output), before)


# ---- every layer keeps its predictions or is refused by name ----

TAU = (0.4, 0.8, 1.3, 2.5)
LAYERS = {
    "Linear": (lambda: nn.Linear(6, 4), (6,)),
    "Conv1d": (lambda: nn.Conv1d(6, 4, 3, groups=2), (6, 5)),
    "Conv2d": (lambda: nn.Conv2d(6, 4, 2, padding=1, padding_mode="reflect"), (6, 4, 3)),
    "Conv3d": (lambda: nn.Conv3d(6, 4, 2, bias=False), (6, 3, 2, 2)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(6, 4, 3, groups=2), (6, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=1), (4, 3, 2)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(8, 4, 2, groups=4, bias=False), (8, 2, 2, 2)),
}


def deprecated(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


COMPUTED = {
    "_WeightNorm": parametrizations.weight_norm,
    "_Orthogonal": parametrizations.orthogonal,
    "_SpectralNorm": parametrizations.spectral_norm,
    "WeightNorm": lambda layer: deprecated(weight_norm, layer),
    "SpectralNorm": spectral_norm,
    "L1Unstructured": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


def calibrated(layer, shape, tau):
    """A loss in float64 that has seen the output of the layer, in eval mode, and the features."""
    layer.double().eval()
    features = 5 * torch.randn(60, *shape, dtype=torch.float64)
    module = HyperSimplexLoss(4, tau=tau, dtype=torch.float64)
    output = layer(features).detach() + 3 * torch.arange(4.0).reshape(-1, *(1,) * (len(shape) - 1))
    module(output, torch.randint(4, (60, *output.shape[2:])))
    return module, features


def everything(*modules):
    state = {f"{i}.{name}": value for i, module in enumerate(modules) for name, value in module.state_dict().items()}
    return {name: t.clone() for name, t in state.items() if isinstance(t, torch.Tensor) and not is_lazy(t)}


def assert_unchanged(before, *modules):
    after = everything(*modules)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("tau", [0.7, torch.tensor(TAU)], ids=["number", "per class"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_keeps_its_predictions(name, tau):
    make, shape = LAYERS[name]
    layer = make()
    module, features = calibrated(layer, shape, tau)
    before = module.predict(layer(features))
    assert (before != layer(features).argmax(1)).any()
    module.fold_into(layer)
    assert torch.equal(layer(features).argmax(1), before)
    assert torch.equal(module.predict(layer(features)), before)


@pytest.mark.parametrize("name", COMPUTED)
def test_a_computed_weight_takes_thresholds_and_refuses_temperatures(name):
    layer = COMPUTED[name](nn.Linear(6, 4))
    module, features = calibrated(layer, (6,), 0.7)
    before = module.predict(layer(features))
    other, _ = calibrated(layer, (6,), torch.tensor(TAU))
    state = everything(layer, other)
    with pytest.raises(TypeError, match=f"linear must have weight as a parameter, but {name} computes it"):
        other.fold_into(layer)
    assert_unchanged(state, layer, other)
    module.fold_into(layer)
    assert torch.equal(layer(features).argmax(1), before)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def pruned_bias():
    return prune.random_unstructured(nn.Linear(6, 4), "bias", 0.5)


def repeated_bias():
    layer = nn.Linear(6, 4)
    layer.bias = nn.Parameter(torch.zeros(1).expand(4))
    return layer


def patched():
    layer = nn.Linear(6, 4)
    layer.forward = lambda x: x
    return layer


@pytest.mark.parametrize("tau", [0.7, torch.tensor(TAU)], ids=["number", "per class"])
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Doubled(6, 4), TypeError, "the forward of Linear, .*, got Doubled"),
        (patched, TypeError, "the forward of Linear, .*, got Linear"),
        (lambda: nn.BatchNorm1d(4), TypeError, "got BatchNorm1d"),
        (lambda: deprecated(torch.ao.nn.quantized.dynamic.Linear, 6, 4), TypeError, "got Linear"),
        (lambda: nn.LazyLinear(4), TypeError, "must have been called once"),
        (lambda: nn.Linear(6, 4).half(), TypeError, "would round the thresholds"),
        (lambda: nn.ConvTranspose2d(4, 3, 2), ValueError, r"must have 4 outputs, got weight of shape \[4, 3, 2, 2\]"),
        (pruned_bias, TypeError, "bias as a parameter, but RandomUnstructured computes it"),
        (repeated_bias, RuntimeError, "single memory location"),
    ],
)
def test_what_cannot_be_folded_into_stays_as_it_was(make, error, message, tau):
    layer = make()
    module = HyperSimplexLoss(4, tau=tau)
    module(torch.randn(20, 4), torch.arange(20) % 4)
    state = everything(module, layer)
    with pytest.raises(error, match=message):
        module.fold_into(layer)
    assert_unchanged(state, module, layer)


def test_temperatures_that_overflow_the_weight_are_refused():
    layer, module = nn.Linear(6, 4), HyperSimplexLoss(4, tau=torch.tensor([1e-38, 1.0, 1.0, 1.0]))
    nn.init.constant_(layer.weight, 100.0)
    state = everything(layer, module)
    with pytest.raises(ValueError, match=r"cannot hold the result of folding in torch\.float32"):
        module.fold_into(layer)
    assert_unchanged(state, layer, module)


def test_folding_needs_the_number_of_classes():
    with pytest.raises(ValueError, match="the number of classes is not known yet"):
        HyperSimplexLoss().fold_into(nn.Linear(2, 3))


# ---- nothing of the caller's changes but the layer ----


def test_the_tensors_of_the_caller_stay_as_they_were():
    tau, k = torch.tensor(TAU), torch.tensor([1.0, 2.0, 3.0, 4.0])
    first, second = HyperSimplexLoss(4, k, tau), HyperSimplexLoss(4, k, tau)
    first(torch.randn(20, 4), torch.arange(20) % 4)
    first.fold_into(nn.Linear(6, 4))
    assert torch.equal(tau, torch.tensor(TAU))
    assert torch.equal(second.tau, tau)
    assert first.tau.tolist() == [1.0] * 4
    first.k.zero_()
    assert k.tolist() == second.k.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_a_learned_temperature_is_replaced():
    tau, layer = nn.Parameter(torch.tensor(TAU)), nn.Linear(6, 4)
    first, second = HyperSimplexLoss(4, tau=tau), HyperSimplexLoss(4, tau=tau)
    features, labels = torch.randn(20, 6), torch.arange(20) % 4
    before = first(layer(features), labels).detach()
    first.fold_into(layer)
    assert second.tau is tau
    assert torch.equal(tau.detach(), torch.tensor(TAU))
    assert isinstance(first.tau, nn.Parameter)
    assert first.tau.tolist() == [1.0] * 4
    assert_close(first(layer(features), labels).detach(), before, 1e-5)


@pytest.mark.parametrize("trained", [True, False])
def test_a_new_bias_is_trained_as_the_weight_is(trained):
    layer = nn.Linear(6, 4, bias=False).requires_grad_(trained)
    HyperSimplexLoss(4).fold_into(layer)
    assert layer.bias.requires_grad == trained
    frozen = copy.deepcopy(layer)
    HyperSimplexLoss(4).fold_into(frozen)
    assert frozen.bias.requires_grad == trained
