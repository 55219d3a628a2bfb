"""The end of a model: scores and probabilities by the thresholds of the loss, wherever the two go."""

import copy
import io
import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch

from hypersimplex_ext import soft_binary_argmax
from hypersimplex_ext.nn import Calibrated, HyperSimplexLoss

from .cases import assert_close
from .test_nn import batch, trained

# ---- probabilities ----


def test_probabilities_are_the_nearest_distribution(device):
    module, x, _ = trained(device, 5, tau=1.5)
    p = module.predict_proba(x)
    assert_close(p, soft_binary_argmax(module.scores(x), 1, dim=1), 1e-6)
    assert torch.equal(p.argmax(1), module.predict(x))
    assert_close(p.sum(1), torch.ones(500), 1e-6)
    assert torch.equal(module.predict_proba(x[0]), p[0])
    images = x.reshape(10, 50, 5).movedim(-1, 1)
    assert torch.equal(module.predict_proba(images), p.reshape(10, 50, 5).movedim(-1, 1))
    module.running_threshold.zero_()
    module.tau = 1.0
    shares = torch.softmax(x, 1)
    assert_close(module.predict_proba(shares), shares, 1e-6)  # already a distribution
    assert module.predict_proba(x * torch.nan).isnan().all()


def test_probabilities_of_classes_on_their_own(device):
    module, x, _ = trained(device, 5)
    assert torch.equal(module.predict_proba(x, multilabel=True), module.scores(x).clamp(0, 1))
    binary = HyperSimplexLoss(1, tau=0.5).to(device)
    x = torch.randn(40, device=device)
    binary(x, x + torch.randn_like(x) > 0)
    assert torch.equal(binary.predict_proba(x), soft_binary_argmax(x, 1.0, 0.5) * 0 + binary.scores(x).clamp(0, 1))
    assert torch.equal((binary.predict_proba(x) >= 0.5).long(), binary.predict(x))
    several = HyperSimplexLoss(3).to(device)
    several(x.reshape(-1, 4)[:, :3], torch.eye(3, device=device)[torch.arange(10) % 3])
    with pytest.raises(ValueError, match=r"ask for predict_proba\(logits, multilabel=True\)"):
        several.predict_proba(x.reshape(-1, 4)[:, :3])


# ---- the module ----


class Model(torch.nn.Module):
    """A network, its loss and its calibrated end, as a trainer would hold them."""

    def __init__(self, **settings):
        super().__init__()
        self.network, self.loss = torch.nn.Linear(6, 4), HyperSimplexLoss(4, tau=0.7)
        self.end = self.loss.calibration(**settings)

    def forward(self, x):
        return self.end(self.network(x))

    def step(self):
        x, labels = batch("cpu", offset=torch.tensor([0.0, 3.0, -4.0, 1.0]))
        self.loss(x, labels)


def assert_shared(model):
    """A step of the loss is seen by the end of the model."""
    assert model.end.loss is model.loss
    x = torch.randn(50, 4)
    before = model.end(x)
    model.step()
    assert not torch.equal(model.end(x), before)
    assert_close(model.end(x), (x.double() - model.loss.running_threshold.double()) / 0.7, 1e-6)


def loaded(model):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    twin = Model()
    twin.load_state_dict(torch.load(file, weights_only=True))
    for name in ("running_threshold", "num_batches_tracked"):
        assert torch.equal(getattr(twin.loss, name), getattr(model.loss, name))
    return twin


@pytest.mark.parametrize(
    "moved",
    [
        lambda m: m,
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        loaded,
        lambda m: m.half(),
        lambda m: m.double(),
        lambda m: m.to("cpu", torch.bfloat16),
        lambda m: m.to("meta").to_empty(device="cpu"),
    ],
    ids=["itself", "deepcopy", "pickle", "state dict", "half", "double", "to", "device"],
)
def test_loss_and_end_share_one_set_of_thresholds(moved):
    model = Model()
    model.step()
    model = moved(model)
    if model.loss.num_batches_tracked.tolist() != [1] * 4:  # to_empty leaves anything there
        model.loss.reset_running_stats()
    assert_shared(model)


def test_the_state_of_the_end_alone_is_enough():
    model = Model()
    model.step()
    end = HyperSimplexLoss(4).calibration()
    end.load_state_dict(model.end.state_dict())
    x = torch.randn(20, 4)
    assert torch.equal(end(x), model.end(x))
    assert repr(end).startswith("Calibrated(\n  (loss)")


def test_outputs(device):
    module, x, _ = trained(device, 5, tau=0.7)
    assert torch.equal(module.calibration()(x), module.scores(x))
    assert torch.equal(module.calibration(probabilities=True)(x), module.predict_proba(x))
    each = module.calibration(probabilities=True, multilabel=True)
    assert torch.equal(each(x), module.predict_proba(x, multilabel=True))
    assert isinstance(each, Calibrated)
    assert each.extra_repr() == "probabilities=True, multilabel=True"
    x.requires_grad_()
    each(x).sum().backward()
    assert x.grad.any()


def test_mode_of_a_model_is_that_of_its_loss():
    model = Model()
    model.eval()
    assert not model.loss.training


def test_the_model_of_the_documentation():
    (code,) = re.findall(
        r"```python\n(.*?)```", (Path(__file__).parents[1] / "docs" / "batches.md").read_text(), re.DOTALL
    )
    namespace = {}
    exec(code, namespace)
    model = namespace["Classifier"](torch.nn.Linear(6, 4), 4)
    x, labels = torch.randn(64, 6), torch.arange(64) % 4
    model(x, labels).backward()
    assert torch.equal(model(x).argmax(1), model.loss.predict(model.network(x)))


# ---- exported ----


@pytest.mark.parametrize("settings", [{}, {"probabilities": True}, {"probabilities": True, "multilabel": True}])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch about itself
def test_exported(settings):
    model = Model(**settings)
    model.step()
    model.eval()
    x, other = torch.randn(7, 6), torch.randn(11, 6)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    assert_close(exported.module()(other).detach(), model(other).detach(), 1e-6)
    assert not any("hypersimplex" in str(node.target) for node in exported.graph.nodes)
    assert torch.equal(torch.fx.symbolic_trace(model)(other), model(other))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and shapes become constants
        traced = torch.jit.trace(model, x)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        restored = torch.jit.load(file)
    assert_close(restored(other).detach(), model(other).detach(), 1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled():
    torch._dynamo.reset()
    model = Model(probabilities=True)
    model.step()
    compiled, x = torch.compile(model, fullgraph=True, backend="aot_eager"), torch.randn(7, 6)
    assert_close(compiled(x).detach(), model(x).detach(), 1e-6)
    model.step()
    assert_close(compiled(x).detach(), model(x).detach(), 1e-6)
