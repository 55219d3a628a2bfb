"""The memory of a loss: the projection is over a batch and the samples before it, the gradient in the batch alone."""

import copy
import io
import pickle

import pytest
import torch
from torch.nn.parameter import is_lazy

from hypersimplex_ext import hypersimplex_loss
from hypersimplex_ext.nn import HyperSimplexLoss

from .cases import assert_close, half_types
from .test_nn import thresholds

SAMPLES, CLASSES, MEMORY = 8, 4, 20
KINDS = pytest.mark.parametrize("kind", ["squared", "fenchel_young"])


def draw(device, targets="indices", n=SAMPLES):
    """Logits, targets and weights of a batch, in float64, as they are given to the loss."""
    x = 2 * torch.randn(n, CLASSES, device=device, dtype=torch.float64)
    labels, s = torch.randint(CLASSES, (n,), device=device), torch.rand(n, device=device, dtype=torch.float64)
    if targets == "ignored":
        labels[::3] = -100
    if targets == "dense":
        labels = torch.rand_like(x)
        labels[::3, 1] = -100
    if targets == "binary":
        x, labels = x[:, 0], (labels == 0).double()
        labels[2] = -100
    if targets == "positions":
        x, labels, s = (t.unflatten(0, (2, n // 2)) for t in (x, labels, s))
        x = x.movedim(-1, 1)
    return x, labels, s


def rows(x, target, s):
    """The same as [n, C] or [n]."""
    if x.ndim > 2:
        x, target, s = x.movedim(1, -1).flatten(0, 1), target.flatten(), s.flatten()
    return x, target, s


def joined(batches, memory=MEMORY):
    """The last batch and, behind it, the samples before it, the newest batch first."""
    newest_first = [rows(*batch) for batch in batches[::-1]]
    earlier = [torch.cat(parts)[:memory] for parts in zip(*newest_first[1:], strict=True)] or [()] * 3
    return [
        torch.cat((now, before)) if len(before) else now for now, before in zip(newest_first[0], earlier, strict=True)
    ]


# ---- value and gradient ----


@KINDS
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("targets", ["indices", "ignored", "dense", "binary", "positions"])
@pytest.mark.parametrize("weighted", [False, True])
def test_is_the_loss_of_batch_and_memory(device, kind, reduction, targets, weighted):
    classes = 1 if targets == "binary" else CLASSES
    w = torch.rand(classes, device=device, dtype=torch.float64) if weighted else None
    settings = {"tau": 0.7, "kind": kind, "weight": w, "label_smoothing": 0.1}
    module = HyperSimplexLoss(classes, memory=MEMORY, reduction=reduction, dtype=torch.float64, **settings).to(device)
    batches = []
    for _ in range(5):  # the memory is full after three
        batches.append(draw(device, targets))
        x, target, s = batches[-1]
        x = x.clone().requires_grad_()
        value = module(x, target, s if weighted else None)
        (gradient,) = torch.autograd.grad(value, x)

        everything, all_targets, all_weights = joined(batches)
        everything.requires_grad_()
        weights = {"sample_weight": all_weights if weighted else None}
        total = hypersimplex_loss(everything, all_targets, reduction="sum", **settings, **weights)
        due = torch.autograd.grad(total, everything)[0][:SAMPLES]
        alone = HyperSimplexLoss(classes, reduction="none", dtype=torch.float64, **settings).to(device)
        alone(everything.detach(), all_targets)  # has the thresholds of all
        terms = alone.eval()(*rows(x.detach(), target, s)[:2])
        of_samples = rows(x, target, s)[2].reshape(-1, *(1,) * (terms.ndim - 1)) if weighted else 1.0
        value_due = (of_samples * terms).sum()
        if reduction == "mean":
            kept = (rows(x, target, s)[1] != -100).reshape(SAMPLES, -1).expand(SAMPLES, classes)
            importance = (kept * (s.reshape(-1, 1) if weighted else 1.0) * (w if weighted else 1.0)).sum()
            due, value_due = due / importance, value_due / importance
        assert_close(value.detach(), value_due, 1e-12)
        assert_close(rows(gradient, target, s)[0], due, 1e-12)
        if not weighted:
            assert_close(module.active_fraction, alone.active_fraction, 1e-6)


@KINDS
def test_the_first_batch_has_no_memory(device, kind):
    x, labels, _ = draw(device)
    module = HyperSimplexLoss(CLASSES, kind=kind, memory=MEMORY, dtype=torch.float64).to(device)
    x.requires_grad_()
    value, due = module(x, labels), hypersimplex_loss(x, labels, kind=kind)
    assert_close(value.detach(), due.detach(), 1e-12)
    assert_close(torch.autograd.grad(value, x)[0], torch.autograd.grad(due, x)[0], 1e-12)


@pytest.mark.parametrize("k", [0.5, 3, torch.tensor([1.0, 2.0, 2.5, 0.5])], ids=["fraction", "number", "each"])
def test_masses_are_of_batch_and_memory(device, k):
    module = HyperSimplexLoss(CLASSES, k, memory=MEMORY, dtype=torch.float64).to(device)
    batches = [draw(device) for _ in range(5)]
    for x, labels, _ in batches:
        x.requires_grad_()
        value = module(x, labels)
    everything, labels, _ = joined(batches)
    k = k.to(device) if isinstance(k, torch.Tensor) else k
    total = hypersimplex_loss(everything, labels, k, reduction="sum")
    due = torch.autograd.grad(total, batches[-1][0])[0] / (SAMPLES * CLASSES)
    assert_close(torch.autograd.grad(value, x)[0], due, 1e-12)


def test_thresholds_are_of_batch_and_memory(device):
    module = HyperSimplexLoss(CLASSES, momentum=1.0, memory=MEMORY, dtype=torch.float64).to(device)
    batches = [draw(device) for _ in range(5)]
    for x, labels, _ in batches:
        module(x, labels)
    everything, labels, _ = joined(batches)
    assert_close(module.running_threshold, thresholds(everything, labels), 1e-12)


def test_a_class_that_is_not_in_the_batch_has_a_gradient(device):
    module = HyperSimplexLoss(CLASSES, memory=MEMORY).to(device)
    x, labels, _ = draw(device)
    module(x, torch.arange(SAMPLES, device=device) % CLASSES)
    x = x.float().requires_grad_()
    for memory, some in ((module, True), (HyperSimplexLoss(CLASSES).to(device), False)):
        (gradient,) = torch.autograd.grad(memory(x, labels * 0), x)
        assert gradient[:, 1:].any() == some


# ---- what is remembered ----


def test_no_memory_is_the_default_and_costs_nothing():
    assert set(HyperSimplexLoss(4).state_dict()) == {"running_threshold", "num_batches_tracked", "_extra_state"}
    assert repr(HyperSimplexLoss(4, memory=5)) == "HyperSimplexLoss(num_classes=4, memory=5)"


def test_batches_larger_than_the_memory(device):
    module = HyperSimplexLoss(CLASSES, memory=3, dtype=torch.float64).to(device)
    x, labels, s = draw(device)
    module(x, labels, s)
    assert torch.equal(module.memory_logits, x[:3])
    assert torch.equal(module.memory_labels, labels[:3])
    assert torch.equal(module.memory_weights, s[:3])
    assert not module.memory_logits.requires_grad


def test_evaluation_leaves_the_memory_alone(device):
    for thresholds_of in ("running", "batch"):
        module = HyperSimplexLoss(CLASSES, memory=MEMORY, eval_thresholds=thresholds_of).to(device)
        module(*draw(device))
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        x, labels, _ = draw(device)
        value = module.eval()(x, labels)
        assert all(torch.equal(before[name], buffer) for name, buffer in module.named_buffers())
        if thresholds_of == "batch":
            assert torch.equal(value, hypersimplex_loss(x, labels))


def test_reset_forgets(device):
    module, fresh = (HyperSimplexLoss(CLASSES, memory=MEMORY).to(device) for _ in range(2))
    module(*draw(device))
    module.reset_running_stats()
    assert all(torch.equal(*pair) for pair in zip(module.buffers(), fresh.buffers(), strict=True))


def test_targets_of_another_kind_than_those_remembered(device):
    module = HyperSimplexLoss(CLASSES, memory=MEMORY, dtype=torch.float64).to(device)
    for targets in ("dense", "indices", "dense", "ignored"):
        x, target, _ = draw(device, targets)
        if targets == "dense":
            target.clamp_(min=0)
        assert_close(module(x, target), hypersimplex_loss(x, target), 1e-12)  # the other kind is forgotten


@KINDS
def test_a_batch_without_any_target(device, kind):
    module = HyperSimplexLoss(CLASSES, kind=kind, memory=MEMORY).to(device)
    module(*draw(device))
    x = torch.randn(SAMPLES, CLASSES, device=device, requires_grad=True)
    value = module(x, torch.full((SAMPLES,), -100, device=device))
    assert value.isnan()  # the mean of nothing, as without a memory
    assert not torch.autograd.grad(value, x)[0].any()


def test_backward_after_the_memory_has_moved_on(device):
    module = HyperSimplexLoss(CLASSES, memory=MEMORY).to(device)
    module(*draw(device))
    x, labels, _ = draw(device)
    twin = copy.deepcopy(module)
    first, second = (x.clone().requires_grad_() for _ in range(2))
    value = module(first, labels) + module(second, labels)
    value.backward()
    alone = x.clone().requires_grad_()
    twin(alone, labels).backward()
    assert torch.equal(first.grad, alone.grad)


# ---- saved, converted, compiled ----


def restored(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    twin = HyperSimplexLoss(memory=MEMORY)
    twin.load_state_dict(torch.load(file, weights_only=True))
    return twin


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), restored])
@pytest.mark.parametrize("targets", ["indices", "dense"])
def test_copies_remember(copied, targets):
    module = HyperSimplexLoss(memory=MEMORY)
    assert is_lazy(copied(module).memory_logits)
    for _ in range(3):
        module(*draw("cpu", targets))
    twin, batch = copied(module), draw("cpu", targets)
    assert torch.equal(twin(*batch), module(*batch))
    assert all(torch.equal(*pair) for pair in zip(twin.buffers(), module.buffers(), strict=True))


def test_no_conversion_narrows_the_memory():
    module = HyperSimplexLoss(CLASSES, memory=MEMORY)
    x, labels, s = draw("cpu")
    module(x, labels, s)
    module.half()
    assert torch.equal(module.memory_logits[:SAMPLES], x.float())
    assert torch.equal(module.memory_weights[:SAMPLES], s.float())
    assert module.double().memory_logits.dtype == torch.float64
    assert {buffer.device.type for buffer in module.to("meta").buffers()} == {"meta"}


@half_types
def test_half_logits(device, dtype):
    module, wide = (HyperSimplexLoss(CLASSES, memory=MEMORY).to(device) for _ in range(2))
    for _ in range(4):
        x, labels, _ = draw(device)
        x = x.to(dtype).requires_grad_()
        value, due = module(x, labels), wide(x.float(), labels)
        assert value.dtype == dtype
        assert_close(value.detach(), due.detach(), torch.finfo(dtype).eps)
        gradient, expected = (torch.autograd.grad(v, x)[0] for v in (value, due))
        assert gradient.dtype == dtype
        assert_close(gradient, expected, 4 * torch.finfo(dtype).eps)
    with torch.autocast(device.type, dtype):
        assert module(x, labels).dtype == torch.float32


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch about itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("targets", ["indices", "dense"])
def test_compiled(targets):
    torch._dynamo.reset()
    module, twin = (HyperSimplexLoss(CLASSES, memory=MEMORY, dtype=torch.float64) for _ in range(2))
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (8, 8, 5, 30):
        x, target, s = draw("cpu", targets, n)
        gradients = []
        for function in (module, compiled):
            leaf = x.clone().requires_grad_()
            value = function(leaf, target, s)
            gradients.append(torch.autograd.grad(value, leaf)[0])
        assert_close(gradients[1], gradients[0], 1e-12)
        for ours, theirs in zip(module.buffers(), twin.buffers(), strict=True):
            assert_close(theirs.double(), ours, 1e-12)
