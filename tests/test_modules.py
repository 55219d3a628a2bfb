"""What the modules share: buffers that keep their digits, copies before the first batch, torch.fx, fake and meta."""

import copy
import io
import pickle

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parameter import is_lazy

from hypersimplex_ext import (
    binary_argmax,
    hypersimplex_loss,
    isotonic_regression,
    project_permutahedron,
    soft_binary_argmax,
    soft_rank,
    soft_sort,
    sort,
)
from hypersimplex_ext.nn import HyperSimplexLoss, SoftBinaryArgmax

LABELS = torch.arange(20) % 3


def logits():
    return torch.randn(20, 3)


# ---- conversions ----

CONVERSIONS = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "float": lambda m: m.float(),
    "double": lambda m: m.double(),
    "to": lambda m: m.to("cpu", torch.float16),
    "type": lambda m: m.type(torch.float16),
    "half and double": lambda m: m.half().double(),
}


@pytest.mark.parametrize("name", CONVERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_buffers_keep_their_digits(name, dtype):
    settings = {
        "k": torch.tensor([4095.0, 1003.0, 1 / 3], dtype=dtype),
        "tau": torch.tensor([0.1, 0.2, 0.3], dtype=dtype),
        "weight": torch.tensor([0.1, 0.2, 0.3], dtype=dtype),
    }
    module = torch.nn.ModuleList([HyperSimplexLoss(3, **settings, dtype=dtype), SoftBinaryArgmax(settings["k"])])
    module[0].running_threshold.copy_(torch.randn(3))
    module[0].num_batches_tracked.fill_(4097)
    before = copy.deepcopy(dict(module.named_buffers()))
    after = dict(CONVERSIONS[name](module).named_buffers())
    for buffer, value in before.items():
        assert after[buffer].dtype.itemsize >= value.dtype.itemsize
        assert torch.equal(after[buffer].to(value.dtype), value)
    assert module[0].num_batches_tracked.dtype == torch.int64


def test_parameters_are_converted_as_ever():
    module = HyperSimplexLoss(3, tau=torch.nn.Parameter(torch.tensor(0.5))).half()
    assert module.tau.dtype == torch.float16
    assert module.running_threshold.dtype == torch.float32


def test_conversions_still_move_the_buffers():
    module = HyperSimplexLoss(3, k=torch.ones(3), tau=torch.ones(3))
    module.to("meta", torch.float16)
    assert {buffer.device.type for buffer in module.buffers()} == {"meta"}
    assert {buffer.dtype for buffer in module.buffers()} == {torch.float32, torch.int64}
    assert HyperSimplexLoss().half().running_threshold.dtype == torch.float32


# ---- before the first batch ----


def loaded(module):
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    twin = HyperSimplexLoss(dtype=torch.float64)
    twin.load_state_dict(torch.load(file, weights_only=True))
    return twin


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), loaded])
def test_copies_before_the_first_batch_learn_their_size_on_their_own(copied):
    module = HyperSimplexLoss(dtype=torch.float64)
    twin = copied(module)
    assert is_lazy(twin.running_threshold)
    x = logits()
    twin(x, LABELS)
    assert twin.running_threshold.dtype == torch.float64
    assert twin.num_batches_tracked.dtype == torch.int64
    assert not twin._forward_pre_hooks
    assert is_lazy(module.running_threshold)
    module(x, LABELS)
    assert torch.equal(module.running_threshold, twin.running_threshold)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_averaged_model_made_before_the_first_batch(use_buffers):
    model = torch.nn.ModuleDict({"layer": torch.nn.Linear(4, 3), "loss": HyperSimplexLoss()})
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=use_buffers)
    x = torch.randn(20, 4)
    for _ in range(2):
        model["loss"](model["layer"](x), LABELS)
        averaged.update_parameters(model)
    assert torch.equal(averaged.module["loss"].running_threshold, model["loss"].running_threshold)
    output = averaged.module["layer"](x)
    assert torch.equal(averaged.module["loss"].predict(output), model["loss"].predict(output))


def test_construction_without_memory():
    with FakeTensorMode():
        assert HyperSimplexLoss(4, tau=torch.ones(4), weight=torch.ones(4)).running_threshold.shape == (4,)
    module = HyperSimplexLoss(3, tau=torch.ones(3), device="meta")
    assert {buffer.device.type for buffer in module.buffers()} == {"meta"}
    module.to_empty(device="cpu").load_state_dict(HyperSimplexLoss(3, tau=torch.full((3,), 0.5)).state_dict())
    assert module.tau.tolist() == [0.5] * 3
    with torch.device("meta"):
        assert HyperSimplexLoss(3).running_threshold.is_meta
        assert is_lazy(HyperSimplexLoss().running_threshold)


# ---- torch.fx ----


class Model(torch.nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.layer, self.gate, self.loss = torch.nn.Linear(4, 3), SoftBinaryArgmax(2), HyperSimplexLoss(**settings)

    def forward(self, x, labels):
        x = self.layer(x)
        x = x * self.gate(x) + soft_binary_argmax(x, 1, 0.5) + binary_argmax(x, 1)
        return self.loss(x, labels) + hypersimplex_loss(x, labels, tau=0.5, reduction="sum")


@pytest.mark.parametrize("settings", [{"num_classes": 3}, {}], ids=["known size", "before the first batch"])
def test_modules_and_functions_are_nodes_of_a_symbolic_trace(settings):
    model, x = Model(**settings), torch.randn(20, 4)
    graph = torch.fx.symbolic_trace(model)
    modules = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    functions = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    assert modules == ["layer", "gate", "loss"]
    assert {soft_binary_argmax, binary_argmax, hypersimplex_loss} < functions
    graph = pickle.loads(pickle.dumps(graph))
    assert torch.equal(graph(x, LABELS), model(x, LABELS))
    assert torch.equal(graph.loss.running_threshold, model.loss.running_threshold)


def test_ranking_functions_are_nodes_of_a_symbolic_trace():
    w = torch.arange(4.0)

    def function(x):
        fitted = isotonic_regression(sort(x).values, increasing=False) + project_permutahedron(x, w)
        return fitted + soft_rank(x, descending=True) + soft_sort(x, "kl")

    graph, x = torch.fx.symbolic_trace(function), torch.randn(3, 4)
    named = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    assert {sort, isotonic_regression, project_permutahedron, soft_rank, soft_sort} < named
    assert torch.equal(graph(x), function(x))


def test_a_layer_is_traced_as_its_function():
    graph = torch.fx.symbolic_trace(SoftBinaryArgmax(2, tau=torch.tensor(0.5)))
    x = logits()
    assert torch.equal(graph(x), soft_binary_argmax(x, 2, 0.5))
