"""The operators under torch.compile, torch.export and with shapes alone."""

import warnings

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from hypersimplex_ext import hypersimplex_loss, soft_binary_argmax
from hypersimplex_ext.nn import HyperSimplexLoss, SoftBinaryArgmax

from .cases import assert_close

# What errors say, and what they said in older versions of PyTorch.
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
REFUSED = "would miss the derivatives of hypersimplex_ext" if TORCH > (2, 6) else "WITH_EXCEPT_START"
ONCE_ONLY = "does not currently support double backward" if TORCH > (2, 11) else "does not require grad"

OPERATORS = torch.ops.hypersimplex_ext
pytestmark = [  # PyTorch about itself
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def layouts(shape):
    x = torch.randn(shape)
    return [x, x.permute(*reversed(range(x.ndim))), x[..., ::2], x[:1].expand(shape), x.bfloat16()]


@pytest.mark.parametrize("per_vector", [False, True])
def test_operators_are_registered_rightly(per_vector):
    for x in layouts((4, 5, 6)):
        rest = (x.shape[0], x.shape[2])
        mask = torch.rand(x.shape) < 0.8 if per_vector else None
        k, tau = (5 * torch.rand(rest).double(), 0.5 + torch.rand(rest).double()) if per_vector else (None, None)
        arguments = (x, mask, k, 2.0, tau, 1.0, 1)
        torch.library.opcheck(OPERATORS.project.default, arguments)
        state = OPERATORS.project(*arguments)[1]
        for operator in (OPERATORS.jvp, OPERATORS.vjp):
            torch.library.opcheck(operator.default, (x, mask, torch.randn(x.shape), state, tau, 1.0, 1))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("shape", [(9, 4), (3, 4, 5), (3, 4, 5, 6)])
def test_loss_operators_are_registered_rightly(shape, dense):
    for x in layouts(shape):
        target = torch.rand(x.shape).to(x.dtype) if dense else torch.randint(4, (x.shape[0], *x.shape[2:])) % x.shape[1]
        arguments = (x, target, None, None, None, None, 0.0, 1, 1.0, -100, 0.0, 0, 0)
        torch.library.opcheck(OPERATORS.loss_forward.default, arguments)
        state = OPERATORS.loss_forward(*arguments)[1]
        torch.library.opcheck(OPERATORS.loss_backward.default, (torch.ones((), dtype=x.dtype), state, *arguments))


def test_shapes_alone():
    x = torch.randn(3, 4, 5, device="meta", dtype=torch.bfloat16, requires_grad=True)
    y, t = soft_binary_argmax(x, 2, dim=1, return_threshold=True)
    assert (y.shape, y.dtype, t.shape, t.dtype) == (x.shape, x.dtype, (3, 5), torch.float32)
    value = hypersimplex_loss(x, torch.empty(3, 5, dtype=torch.long, device="meta"))
    assert (value.shape, value.dtype, value.device.type) == ((), x.dtype, "meta")
    (grad,) = torch.autograd.grad(value, x)
    assert (grad.shape, grad.dtype) == (x.shape, x.dtype)


LABELS = torch.arange(20) % 6
FUNCTIONS = {
    "projection": lambda x, k, tau: soft_binary_argmax(2 * x, 2, 0.7) ** 2,
    "columns": lambda x, k, tau: soft_binary_argmax(2 * x, 2.5, 0.7, dim=0) ** 2,
    "k and tau": lambda x, k, tau: soft_binary_argmax(2 * x, k, tau) ** 2,
    "mask": lambda x, k, tau: soft_binary_argmax(2 * x, k, tau, mask=x > -1) ** 2,
    "loss": lambda x, k, tau: hypersimplex_loss(2 * x, LABELS),
    "fenchel_young": lambda x, k, tau: hypersimplex_loss(2 * x, LABELS, 0.4, 0.6, kind="fenchel_young"),
    "composed": lambda x, k, tau: hypersimplex_loss(2 * x, LABELS, k, tau, reduction="none"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_training(name):
    results = []
    for function in (FUNCTIONS[name], torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        leaves = [t.requires_grad_() for t in (torch.randn(20, 6), torch.tensor(2.2), torch.tensor(0.8))]
        value = function(*leaves)
        results.append([value, *torch.autograd.grad(value.sum(), leaves, allow_unused=True)])
    for eager, compiled in zip(*results, strict=True):
        assert (eager is None) == (compiled is None)
        if eager is not None:
            assert_close(compiled.detach(), eager.detach(), 1e-6)


def test_batches_of_any_size_compile_once():
    """A training step of projection and loss."""
    counter = CompileCounterWithBackend("aot_eager")
    loss = HyperSimplexLoss(6)
    layer = torch.nn.Linear(4, 6)
    gated = lambda x: layer(x) * soft_binary_argmax(layer(x), 2, 0.7)  # noqa: E731
    step = torch.compile(lambda x, t: loss(gated(x), t), fullgraph=True, dynamic=True, backend=counter)
    compiled = set()
    for n in range(7, 27):  # not 6, which would be taken for the number of classes
        x, labels = torch.randn(n, 4), torch.arange(n) % 6
        value = step(x, labels)
        value.backward()
        compiled.add(counter.frame_count)
        assert_close(value.detach(), hypersimplex_loss(gated(x), labels).detach(), 1e-6)
    assert len(compiled) == 1
    assert loss.num_batches_tracked.tolist() == [20] * 6
    assert 0 < loss.active_fraction < 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_training_with_inductor(dynamic):
    """Generated code for the layers around the operators, for batches of two sizes, and the optimizer's step after."""
    torch.manual_seed(0)
    layer, loss = torch.nn.Linear(4, 6), HyperSimplexLoss(6)
    twins = [torch.nn.Linear(4, 6), HyperSimplexLoss(6)]
    twins[0].load_state_dict(layer.state_dict())

    def value(layer, loss, x, labels):
        hidden = layer(x)
        return loss(hidden * soft_binary_argmax(hidden, 2), labels)

    compiled = torch.compile(value, fullgraph=True, dynamic=dynamic)
    for n in (20, 27):
        x, labels = torch.randn(n, 4), torch.arange(n) % 6
        for function, modules in ((compiled, [layer, loss]), (value, twins)):
            modules[0].zero_grad()
            function(*modules, x, labels).backward()
            torch.optim.SGD(modules[0].parameters(), 0.1).step()
        assert_close(layer.weight.grad, twins[0].weight.grad, 1e-5)
        assert_close(layer.weight.detach(), twins[0].weight.detach(), 1e-6)
        assert_close(loss.running_threshold, twins[1].running_threshold, 1e-5)


def test_numbers_that_change_reach_inductor():
    """Where they scale a tensor too, PyTorch keeps them as an operator's argument from an earlier call."""
    x, target = torch.randn(8, 5), torch.randint(5, (8,))

    def function(x, s):
        projections = soft_binary_argmax(x * s, 2, s / 2), soft_binary_argmax(x * s, s)
        losses = [
            hypersimplex_loss(x * s, target, **settings)
            for settings in ({"tau": s / 2}, {"k": s / 4}, {"label_smoothing": s / 4})
        ]
        return *projections, *losses

    compiled = torch.compile(function, fullgraph=True)
    for s in (1.0, 1.5, 2.0, 2.5):
        for value, expected in zip(compiled(x, s), function(x, s), strict=True):
            assert_close(value, expected, 1e-5)


def test_numbers_of_numpy():
    x, target = torch.randn(8, 5), torch.randint(5, (8,))
    zero, two, eps, tau = np.int64(0), np.int64(2), np.float64(0.1), np.float64(1.5)
    functions = [
        lambda x: soft_binary_argmax(x, two, tau, zero),
        lambda x: hypersimplex_loss(x, target, two, tau),
        lambda x: hypersimplex_loss(x, target, label_smoothing=eps, ignore_index=zero),
    ]
    for function in functions:
        assert_close(torch.compile(function, backend="eager")(x), function(x), 1e-6)


@pytest.mark.parametrize("name", ["projection", "k and tau", "mask", "loss", "fenchel_young", "composed"])
def test_double_backward_of_what_the_eager_backend_makes(name):
    results = []
    for function in (FUNCTIONS[name], torch.compile(FUNCTIONS[name], fullgraph=True, backend="eager")):
        torch.manual_seed(0)
        leaves = [torch.randn(20, 6).double(), torch.tensor(2.2).double(), torch.tensor(0.8).double()]
        leaves = [t.requires_grad_() for t in leaves]
        (first,) = torch.autograd.grad(function(*leaves).sum(), leaves[:1], create_graph=True)
        results.append(torch.autograd.grad((first**2).sum(), leaves, allow_unused=True))
    assert results[0][0].any()
    for eager, compiled in zip(*results, strict=True):
        assert (eager is None) == (compiled is None)
        if eager is not None:
            assert_close(compiled, eager, 1e-12)


@pytest.mark.parametrize("name", ["projection", "loss"])
def test_compiled_double_backward_is_refused(name):
    """By PyTorch, for whatever it compiles; uncompiled it works."""
    x, *rest = torch.randn(20, 6, requires_grad=True), torch.tensor(2.2), torch.tensor(0.8)
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager")
    (first,) = torch.autograd.grad(compiled(x, *rest).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=ONCE_ONLY):
        first.sum().backward()


def test_lazy_module_compiles():
    module, twin = HyperSimplexLoss(), HyperSimplexLoss()
    x = torch.randn(20, 6)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, LABELS), twin(x, LABELS), 1e-6)
    assert torch.equal(module.running_threshold, twin.running_threshold)


@pytest.mark.parametrize("name", ["loss", "projection"])
@pytest.mark.parametrize("transform", ["grad", "vjp", "jvp"])
def test_compiled_derivative_transforms_are_refused(transform, name):
    value = lambda v: FUNCTIONS[name](v, None, None).sum()  # noqa: E731

    def function(x):
        if transform == "grad":
            return torch.func.grad(value)(x)
        if transform == "vjp":
            return torch.func.vjp(value, x)[1](torch.tensor(1.0))[0]
        return torch.func.jvp(value, (x,), (torch.ones_like(x),))[1]

    x = torch.randn(20, 6)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=REFUSED):
        torch.compile(function, fullgraph=True, backend="aot_eager")(x)
    torch._dynamo.reset()
    if transform != "vjp" or TORCH > (2, 6):  # whose vjp no graph break may be in
        assert_close(torch.compile(function, backend="aot_eager")(x), function(x), 1e-6)  # falls back to eager
    torch._dynamo.reset()
    inside = torch.compile(value, backend="aot_eager")
    assert_close(torch.func.grad(inside)(x), torch.func.grad(value)(x), 1e-6)


def test_compiled_vmap():
    x = torch.randn(5, 6)
    function = lambda x: torch.func.vmap(lambda row: soft_binary_argmax(row, 2))(x)  # noqa: E731
    assert_close(torch.compile(function, fullgraph=True, backend="aot_eager")(x), function(x), 1e-6)


@pytest.mark.parametrize("kind", ["squared", "fenchel_young"])
def test_compiled_vmap_of_the_loss(kind):
    x, labels = torch.randn(5, 20, 6), torch.randint(6, (5, 20))
    function = lambda x, t: torch.func.vmap(lambda x, t: hypersimplex_loss(x, t, kind=kind))(x, t)  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, labels), function(x, labels), 1e-6)
    results = []
    for f in (function, compiled):
        leaf = x.clone().requires_grad_()
        results.append(torch.autograd.grad(f(leaf, labels).sum(), leaf)[0])
    assert_close(results[1], results[0], 1e-6)


def test_export():
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), SoftBinaryArgmax(2))
    x = torch.randn(7, 5)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    larger = torch.randn(11, 5)
    assert_close(exported.module()(larger).detach(), model(larger).detach(), 1e-6)


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_the_loss(strict):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(5, 6)

        def forward(self, x, labels):
            return hypersimplex_loss(self.layer(x), labels)

    model, batch = Model(), torch.export.Dim("batch", min=2)
    dynamic = ({0: batch}, {0: batch})
    exported = torch.export.export(model, (torch.randn(7, 5), LABELS[:7]), dynamic_shapes=dynamic, strict=strict)
    x = torch.randn(20, 5)
    value = exported.module()(x, LABELS)
    assert_close(value.detach(), model(x, LABELS).detach(), 1e-6)
    assert value.requires_grad


# ---- what stands between a call and the kernels ----


def test_lazily_negated_logits():
    x, zero = torch.randn(20, 6), torch._efficientzerotensor(20, 6)
    negated = torch.complex(x, x).conj().imag
    assert negated.is_neg()
    assert torch.equal(soft_binary_argmax(negated, 2), soft_binary_argmax(-x, 2))
    assert torch.equal(hypersimplex_loss(negated, LABELS), hypersimplex_loss(-x, LABELS))
    assert_close(soft_binary_argmax(zero, 2), torch.full((20, 6), 1 / 3), 1e-6)


def test_modes_see_the_operators():
    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            seen.append(str(function))
            return function(*arguments, **(keywords or {}))

    seen = []
    x = torch.randn(20, 6, requires_grad=True)
    with Recorder():
        (hypersimplex_loss(x, LABELS) + soft_binary_argmax(x, 2).square().sum()).backward()
    for name in ("loss_forward", "project", "jvp", "loss_backward"):
        assert f"hypersimplex_ext.{name}.default" in seen
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        value = hypersimplex_loss(fake, mode.from_tensor(LABELS))
        assert torch.autograd.grad(value, fake)[0].shape == x.shape


def test_recorded_by_make_fx():
    trace = torch.fx.experimental.proxy_tensor.make_fx(lambda x: soft_binary_argmax(x, 2), pre_dispatch=True)
    x, other = torch.randn(2, 20, 6)
    assert torch.equal(trace(x)(other), soft_binary_argmax(other, 2))


def test_recorded_by_jit_trace():
    x, other = torch.randn(2, 20, 6)
    soft_binary_argmax(x, 2)  # once known, the shape would go straight to the kernels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and shapes become constants
        traced = torch.jit.trace(lambda x: soft_binary_argmax(x, 2), x)
    assert torch.equal(traced(other), soft_binary_argmax(other, 2))
