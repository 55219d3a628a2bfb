"""Sort, isotonic regression, soft rank and soft sort under torch.compile, torch.export, autocast, with shapes alone."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from hypersimplex_ext import isotonic_regression, project_permutahedron, soft_rank, soft_sort, sort

from .cases import assert_close
from .test_compile import ONCE_ONLY, REFUSED
from .test_ranking import OPERATORS, operators


@operators
def test_operators_are_registered_rightly(name):
    """Schema, shapes for tracing, and autograd registration of each operator that a training step calls."""
    seen = {}

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.namespace == "hypersimplex_ext":
                seen[function] = args
            return function(*args, **(kwargs or {}))

    x = torch.randn(3, 40, 2).requires_grad_()
    with Record():
        OPERATORS[name][0](x, 1).sum().backward()
    assert len(seen) >= 2
    for function, arguments in seen.items():
        arguments = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
        torch.library.opcheck(function, arguments)


WHOLE = {  # operator -> what it takes between the vectors and the dimension
    "sorted": [(True,), (False,)],
    "regression": [("weight", True), (None, False)],
    "soft_rank": [("weight", 0.7, False), (None, 0.7, False), (None, -0.7, True)],
    "soft_sort": [(None, 1.5, 1.0, False), (None, 1.5, -1.0, True), ("weight", 1.5, -1.0, False)],
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_operators_are_registered_rightly(name):
    for x in (torch.randn(2, 6, 3), torch.randn(3, 6, 2).permute(2, 1, 0), torch.randn(2, 6, 3).bfloat16()):
        for options in WHOLE[name]:
            weight = torch.rand(2, 6, 3).to(x.dtype).sort(1, descending=True).values.add(0.5).requires_grad_()
            options = [weight if option == "weight" else option for option in options]
            operator = getattr(torch.ops.hypersimplex_ext, name).default
            torch.library.opcheck(operator, (x.clone().requires_grad_(), *options, 1))


def test_placing_is_registered_rightly():
    for v in (torch.randn(2, 6, 3), torch.randn(3, 6, 2).permute(2, 1, 0), torch.randn(2, 6, 3).bfloat16()):
        order = torch.argsort(torch.rand(2, 6, 3), 1)
        torch.library.opcheck(torch.ops.hypersimplex_ext.place.default, (v.clone().requires_grad_(), order, 1))


def test_no_operator_is_left_out():
    """Of these checks, here, in test_compile.py and in test_pav.py."""
    checked = {"project", "project_pav", "jvp", "vjp", "loss_forward", "loss_backward", *WHOLE}
    checked |= {"sort", "isotonic", "block_product", "place"}
    names = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
    assert {name for namespace, _, name in names if namespace == "hypersimplex_ext"} == checked


def compiled_quietly(test):
    """PyTorch warns about itself when it compiles."""
    for about in ("ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor:UserWarning"):
        test = pytest.mark.filterwarnings(about)(test)
    return test


@operators
@compiled_quietly
def test_compiled_training(name):
    torch._dynamo.reset()
    x = torch.randn(8, 40)
    results = []
    for function in (OPERATORS[name][0], torch.compile(OPERATORS[name][0], fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        y = function(2 * leaf, -1)
        results.append((y.detach(), *torch.autograd.grad((y**2).sum(), leaf)))
    for compiled, eager in zip(*results, strict=True):
        assert_close(compiled, eager, 1e-6)


@compiled_quietly
def test_training_with_inductor(monkeypatch, tmp_path):
    """Generated code around the operators, all in one step; not what was generated around earlier ones."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()

    def value(x, w, tau):
        parts = soft_rank(2 * x, "kl"), soft_sort(2 * x), isotonic_regression(x, w, dim=0)
        return sum((part**2).mean() for part in (*parts, project_permutahedron(x, w, tau)))

    compiled = torch.compile(value, fullgraph=True, dynamic=True)
    for n in (8, 13):
        results = []
        for function in (value, compiled):
            torch.manual_seed(n)
            leaves = [t.requires_grad_() for t in (torch.randn(n, 40), 0.5 + torch.rand(n, 40), torch.tensor(0.7))]
            total = function(*leaves)
            results.append((total.detach(), *torch.autograd.grad(total, leaves)))
        for eager, by_inductor in zip(*results, strict=True):
            assert_close(by_inductor, eager, 1e-5)


COMPILED = {"regression": isotonic_regression, "sort": soft_sort, "rank": soft_rank}
compiling = pytest.mark.parametrize("name", COMPILED)


@compiling
@compiled_quietly
def test_batches_of_any_size_compile_once(name):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    function = COMPILED[name]
    compiled = torch.compile(lambda x: function(2 * x) ** 2, fullgraph=True, dynamic=True, backend=counter)
    for n in range(3, 23):
        x = torch.randn(n, 2 * n + 1, requires_grad=True)
        value = compiled(x)
        assert_close(value.detach(), (function(2 * x) ** 2).detach(), 1e-6)
        value.sum().backward()
        assert x.grad.any()
    assert counter.frame_count == 1


@compiling
@compiled_quietly
def test_compiled_double_backward_is_refused(name):
    """By PyTorch, for whatever it compiles; uncompiled it works."""
    torch._dynamo.reset()
    leaf = torch.randn(4, 9).double().requires_grad_()
    compiled = torch.compile(lambda x: COMPILED[name](2 * x) ** 2, fullgraph=True, backend="aot_eager")
    (first,) = torch.autograd.grad(compiled(leaf).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=ONCE_ONLY):
        first.sum().backward()


@operators
@compiled_quietly
def test_compiled_without_autograd_of_its_own_differentiates_twice(name):
    """backend="eager" leaves autograd to the operators."""
    torch._dynamo.reset()
    x, v = torch.randn(3, 12).double(), torch.randn(3, 12).double()
    results = []
    for function in (OPERATORS[name][0], torch.compile(OPERATORS[name][0], fullgraph=True, backend="eager")):
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad((v * function(2 * leaf, -1) ** 2).sum(), leaf, create_graph=True)
        results.append((first.detach(), *torch.autograd.grad((v * first).sum(), leaf)))
    for eager, of_compiled in zip(*results, strict=True):
        assert_close(of_compiled, eager, 1e-11)


@operators
@compiled_quietly
def test_compiled_vmap(name):
    torch._dynamo.reset()
    function = lambda x: torch.func.vmap(lambda row: OPERATORS[name][0](row, 0))(x)  # noqa: E731
    x = torch.randn(5, 9).double()
    assert_close(torch.compile(function, fullgraph=True, backend="aot_eager")(x), function(x), 1e-12)


@compiling
@compiled_quietly
def test_compiled_derivative_transforms_are_refused(name):
    torch._dynamo.reset()
    x, function = torch.randn(4, 9), lambda x: (COMPILED[name](x) ** 2).sum()
    transforms = (
        lambda x: torch.func.grad(function)(x),
        lambda x: torch.func.vjp(function, x)[1](torch.ones(()))[0],
        lambda x: torch.func.jvp(function, (x,), (x,))[1],
    )
    for transform in transforms:
        with pytest.raises(torch._dynamo.exc.Unsupported, match=REFUSED):
            torch.compile(transform, fullgraph=True, backend="eager")(x)


def test_export():
    class Model(torch.nn.Module):
        def forward(self, x):
            return soft_rank(x) + isotonic_regression(x, dim=0) + soft_sort(x, "kl") + sort(x)[0]

    x = torch.randn(7, 5)
    exported = torch.export.export(Model(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    larger = torch.randn(11, 5)
    assert_close(exported.module()(larger), Model()(larger), 1e-6)


def test_shapes_alone():
    x = torch.randn(3, 40, 5, device="meta", dtype=torch.bfloat16, requires_grad=True)
    for name, (function, _) in OPERATORS.items():
        y = function(x, 1)
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert (y.shape, y.dtype, grad.shape, grad.dtype) == (x.shape, x.dtype, x.shape, x.dtype), name


def test_autocast():
    x = torch.randn(4, 9, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for function, _ in OPERATORS.values():
            assert function(x, -1).dtype == torch.float32
