"""Evaluation: the loss at the running thresholds, of every sample on its own; what a loss saves for it."""

import copy
import io

import pytest
import torch

from hypersimplex_ext import hypersimplex_loss
from hypersimplex_ext.nn import HyperSimplexLoss

from .cases import assert_close, half_types
from .test_nn import batch

KINDS = pytest.mark.parametrize("kind", ["squared", "fenchel_young"])


def plain(x, target, threshold, tau, kind):
    """The terms for dense targets, as they are defined."""
    u = (x - threshold) / tau
    p = u.clamp(0, 1)
    return (p - target) ** 2 if kind == "squared" else (u - target) ** 2 / 2 - (u - p) ** 2 / 2


def evaluated(device, classes=4, **settings):
    """A loss in eval mode with thresholds of its own."""
    module = HyperSimplexLoss(classes, dtype=torch.float64, **settings).to(device)
    module.running_threshold.copy_(torch.randn(classes))
    module.num_batches_tracked.fill_(7)
    return module.eval()


# ---- value ----


@KINDS
@pytest.mark.parametrize("tau", [0.7, torch.tensor([0.4, 0.8, 1.3, 2.5], dtype=torch.float64)], ids=["number", "each"])
def test_terms(device, kind, tau):
    module = evaluated(device, tau=tau, kind=kind, reduction="none", label_smoothing=0.1)
    x, labels = 2 * torch.randn(50, 4, device=device, dtype=torch.float64), torch.arange(50, device=device) % 4
    target = 0.9 * torch.nn.functional.one_hot(labels, 4).double() + 0.1 / 4
    assert_close(module(x, labels), plain(x, target, module.running_threshold, module.tau, kind), 1e-12)
    dense = torch.rand_like(x)
    due = plain(x, 0.9 * dense + 0.1 / 4, module.running_threshold, module.tau, kind)
    assert_close(module(x, dense), due, 1e-12)
    images = x.reshape(5, 10, 4).movedim(-1, 1)  # [N, C, d]
    assert_close(module(images, labels.reshape(5, 10)), module(x, labels).reshape(5, 10, 4).movedim(-1, 1), 1e-12)
    assert_close(module(x[3], labels[3]), module(x, labels)[3], 1e-12)


@KINDS
def test_reductions_and_weights(device, kind):
    x, labels = batch(device)
    x = x.double()
    labels[::5] = -100
    s, w = torch.rand(64, device=device).double(), torch.rand(4, device=device).double()
    modules = {}
    for reduction in ("none", "sum", "mean"):
        torch.manual_seed(1)
        modules[reduction] = evaluated(device, kind=kind, weight=w, reduction=reduction)
    terms = modules["none"](x, labels, s)
    due = plain(x, torch.nn.functional.one_hot(labels.clamp(min=0), 4), modules["none"].running_threshold, 1, kind)
    importance = (s * (labels >= 0))[:, None] * w
    assert_close(terms, due * importance, 1e-12)
    assert_close(modules["sum"](x, labels, s), terms.sum(), 1e-12)
    assert_close(modules["mean"](x, labels, s), terms.sum() / importance.sum(), 1e-12)
    x[::5] = torch.nan  # what is left out is not looked at
    assert_close(modules["none"](x, labels, s), terms, 1e-12)


@KINDS
@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_binary(device, kind, shape):
    module = evaluated(device, 1, kind=kind, reduction="none")
    x, target = torch.randn(shape, device=device, dtype=torch.float64), torch.arange(40, device=device) % 2
    target[::5] = -100
    value = module(x, target)
    assert value.shape == shape
    kept = target >= 0
    due = plain(x.flatten(), target, module.running_threshold, 1, kind)
    assert_close(value.flatten(), torch.where(kept, due, 0.0), 1e-12)


@KINDS
def test_at_the_thresholds_of_the_batch_it_is_the_loss_in_training(device, kind):
    """Fact: the profile form; any other threshold makes the Fenchel-Young loss larger."""
    module = HyperSimplexLoss(4, tau=0.5, kind=kind, dtype=torch.float64).to(device)
    x, labels = batch(device)
    x = x.double().requires_grad_()
    value = module(x, labels)
    there = module.eval()(x, labels)
    assert_close(there.detach(), value.detach(), 1e-12)
    if kind == "fenchel_young":  # with the gradient of the batch, as the thresholds are stationary
        assert_close(torch.autograd.grad(there, x)[0], torch.autograd.grad(value, x)[0], 1e-12)
        for shift in (-0.1, 0.2):
            module.running_threshold.add_(shift)
            assert module(x, labels) > value


@KINDS
def test_the_value_does_not_depend_on_the_batches(device, kind):
    module = evaluated(device, kind=kind, reduction="none")
    x, labels = batch(device)
    whole = module(x, labels)
    for size in (1, 7, 64):
        parts = [module(*part) for part in zip(x.split(size), labels.split(size), strict=True)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("kind", ["squared", "fenchel_young"])
def test_gradients(device, kind):
    module = evaluated(device, kind=kind, tau=torch.nn.Parameter(torch.full((4,), 0.8, dtype=torch.float64)))
    x, labels = batch(device, n=12)
    x = x.double().requires_grad_()
    assert torch.autograd.gradcheck(module, (x, labels))
    assert torch.autograd.gradgradcheck(module, (x, labels))
    module(x, labels).backward()
    assert module.tau.grad.any()


def test_infinite_logits(device):
    x = torch.tensor([[torch.inf, -torch.inf], [-torch.inf, torch.inf]], device=device, requires_grad=True)
    labels = torch.tensor([0, 1], device=device)
    for kind in ("squared", "fenchel_young"):
        module = evaluated(device, 2, kind=kind)
        value = module(x, labels)
        assert value == 0
        assert not torch.autograd.grad(value, x)[0].any()
        wrong = module(x, 1 - labels)
        assert wrong == (1 if kind == "squared" else torch.inf)
        assert not torch.autograd.grad(wrong, x)[0].isnan().any()


@half_types
def test_half_logits_are_compared_in_float32(device, dtype):
    module = evaluated(device).float()
    x, labels = batch(device)
    value = module(x.to(dtype), labels)
    assert value.dtype == dtype
    assert_close(value, module(x.to(dtype).float(), labels), torch.finfo(dtype).eps)
    with torch.autocast(device.type, dtype):
        assert module(x.to(dtype), labels).dtype == torch.float32


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch about itself
def test_compiled(device):
    torch._dynamo.reset()
    module = evaluated(device)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, labels = batch(device)
    gradients = []
    for function in (module, compiled):
        leaf = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(leaf, labels), leaf)[0])
    assert_close(*gradients, 1e-6)


# ---- which thresholds ----


def test_by_the_batch(device):
    module = evaluated(device, eval_thresholds="batch")
    x, labels = batch(device)
    assert torch.equal(module(x, labels), hypersimplex_loss(x, labels))
    assert "eval_thresholds='batch'" in repr(module)
    with pytest.raises(ValueError, match="eval_thresholds must be one of 'running', 'batch', got 'none'"):
        HyperSimplexLoss(eval_thresholds="none")


@KINDS
def test_classes_without_a_threshold_are_left_out(device, kind):
    x, labels = batch(device)
    fresh = HyperSimplexLoss(4, kind=kind, reduction="none").to(device).eval()
    due = plain(x, torch.nn.functional.one_hot(labels, 4), 0, 1, kind)
    assert_close(fresh(x, labels), due, 1e-6)  # before the first batch at 0
    module = HyperSimplexLoss(4, kind=kind).to(device)
    module(x, labels % 3)  # class 3 never occurs
    value = module.eval()(x, labels)
    due = plain(x, torch.nn.functional.one_hot(labels, 4), module.running_threshold, 1, kind)
    assert_close(value, due[:, :3].mean(), 1e-6)


def test_a_class_that_was_never_seen_is_never_predicted(device):
    x, labels = batch(device)
    module = HyperSimplexLoss(4).to(device)
    assert torch.equal(module.predict(x), x.argmax(1))  # before the first batch
    module(x, labels % 3)
    far = x + torch.tensor([0.0, 0.0, 0.0, 100.0], device=device)
    assert torch.equal(module.predict(far), module.scores(x)[:, :3].argmax(1))
    assert (module.scores(far)[:, 3] == -torch.inf).all()
    assert not module.predict(far, multilabel=True)[:, 3].any()
    assert not module.predict_proba(far)[:, 3].any()
    assert_close(module.predict_proba(far).sum(1), torch.ones(64), 1e-6)
    layer = torch.nn.Linear(6, 4).to(device)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=r"every class must have a threshold to fold, but \[3\] were in no batch"):
        module.fold_into(layer)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


# ---- the temperature is part of the state ----


def test_a_number_as_temperature_is_saved(device):
    x = torch.tensor([0.3, 0.1, -0.2], device=device)
    module = HyperSimplexLoss(1, tau=0.5).to(device)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    restored = HyperSimplexLoss(1).to(device)
    assert not torch.equal(restored.predict(x), module.predict(x))
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert type(restored.tau) is float
    assert restored.tau == 0.5
    assert torch.equal(restored.predict(x), module.predict(x))


@pytest.mark.parametrize("old", [torch.tensor(True), torch.tensor(False)])
def test_a_state_from_before_is_taken(old):
    module = HyperSimplexLoss(4, tau=0.5)
    module.load_state_dict(module.state_dict() | {"_extra_state": old})
    assert module.tau == 0.5
    if old:
        with pytest.raises(ValueError, match="ask for predict"):
            module.predict(torch.randn(3, 4))


def test_a_tensor_as_temperature_stays_what_it_is():
    module = HyperSimplexLoss(4, tau=torch.full((4,), 0.5))
    other = HyperSimplexLoss(4, tau=torch.ones(4))
    other.load_state_dict(module.state_dict())
    assert other.tau.tolist() == [0.5] * 4
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(HyperSimplexLoss(4, tau=0.7).state_dict())


@half_types
def test_an_average_over_all_batches_is_kept_in_float32(device, dtype):
    module = HyperSimplexLoss(4, momentum=None).to(device, dtype)
    logits = [batch(device, offset=step / 10) for step in range(200)]
    seen = HyperSimplexLoss(4, momentum=None, dtype=torch.float64).to(device)
    for x, labels in logits:
        module(x.to(dtype), labels)
        seen(x.to(dtype).double(), labels)
    assert_close(module.running_threshold, seen.running_threshold, 1e-5)
