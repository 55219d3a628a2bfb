"""Whatever a caller passes, kernels touch no memory but that of their tensors: an exception, or the right result."""

import subprocess
import sys

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import hypersimplex_ext
from hypersimplex_ext import _calls, _layout, _loss_ops, hypersimplex_loss, soft_binary_argmax

OPS = torch.ops.hypersimplex_ext
ERRORS = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.int64, torch.int32, torch.uint8, torch.bool),
)


def eighths(*shape, dtype=torch.float32):
    """Numbers that every floating-point dtype holds."""
    return torch.randint(-16, 17, shape).to(dtype) / 8


def strange(t):
    """Tensors in the place of `t`, by what is strange about them."""
    for dtype in DTYPES:
        if dtype != t.dtype:
            yield "dtype", t.to(dtype)
    for d in range(t.ndim):
        yield "shorter", t.narrow(d, 0, t.shape[d] - 1)
        yield "strides", torch.stack([t, t], d + 1).select(d + 1, 0)
        yield "strides", t.transpose(0, d).contiguous().transpose(0, d)
    yield "shape", t.unsqueeze(0)
    yield "shape", t.unsqueeze(-1)
    yield "shape", t.flatten()[:1]
    yield "shape", t.new_empty(0)
    yield "shape", t.new_zeros(())
    yield "none", None
    yield "device", t.to("meta")
    for offset in (0, 7):
        for kept in (0, 1):
            memory = torch.zeros(t.numel() + offset, dtype=t.dtype)
            view = memory[offset:].view(t.shape)
            memory.untyped_storage().resize_(kept * (memory.nbytes - t.element_size()))
            yield "freed", view


def operators():
    """The arguments of every operator of the library, each of which serves."""
    x, v, weight = eighths(4, 8), eighths(4, 8), eighths(4, 8).abs() + 1
    mask = torch.ones(4, 8, dtype=torch.bool)
    k, tau = torch.full((4,), 2.0, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    state = OPS.project(x, mask, k, 2.0, tau, 1.0, 1)[1]
    order = OPS.sort(x, True, False, 1)[1]
    blocks = OPS.isotonic(1, x, 1.0, None, 0.0, False, weight, order, 0, False, 0, 1.0, False)[2]
    logits = eighths(6, 3)
    per_class, per_sample = (torch.ones(size, dtype=torch.float64) for size in (3, 6))
    settings = 2.0, 0, 1.0, -100, 0.0, 0, 0
    yield "project", (x, mask, k, 2.0, tau, 1.0, 1)
    yield "project_pav", (x, mask, k, 2.0, tau, 1.0, 1)
    yield "jvp", (x, mask, v, state, tau, 1.0, 1)
    yield "vjp", (x, mask, v, state, tau, 1.0, 1)
    yield "sort", (x, True, False, 1)
    yield "sort", (x, True, True, 0)
    yield "isotonic", (1, x, 1.0, v, 1.0, False, weight, order, 0, False, 0, 1.0, False)
    yield "isotonic", (1, None, 1.0, x, 1.0, False, None, order, 1, False, 1, 1.0, True)
    yield "block_product", (v, weight, order, blocks, 0, 1, True, True, True, 1.0)
    yield "place", (v, order.long(), 1)
    yield "sorted", (x, True, 1)
    yield "regression", (x, weight, True, 1)
    yield "soft_rank", (x, weight.sort(1, descending=True).values, 1.0, False, 1)
    yield "soft_sort", (x, None, 1.0, 1.0, True, 1)
    yield "soft_sort", (x, weight.sort(1, descending=True).values, 1.0, 1.0, False, 1)
    for target in (torch.arange(6) % 3, eighths(6, 3).abs().clamp(max=1)):
        tensors = logits, target, per_class, per_class, per_class, per_sample
        yield "loss_forward", (*tensors, *settings)
        left = OPS.loss_forward(*tensors, *settings)[1]
        yield "loss_backward", (torch.ones(()), left, *tensors, *settings)


OPERATORS = sorted({name for name, _ in operators()})


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_refuse_tensors_that_do_not_go_together(backend, name):
    if backend == "cuda":
        pytest.skip("the tensors are on the CPU")
    for arguments in [arguments for operator, arguments in operators() if operator == name]:
        expected = _results(name, arguments)
        for i, argument in enumerate(arguments):
            if not isinstance(argument, torch.Tensor):
                continue
            for kind, other in strange(argument):
                if kind == "freed":
                    with pytest.raises(RuntimeError, match=r"not allocated|out of bounds|storage"):
                        _results(name, (*arguments[:i], other, *arguments[i + 1 :]))
                    continue
                try:
                    results = _results(name, (*arguments[:i], other, *arguments[i + 1 :]))
                except ERRORS:
                    assert kind != "strides"
                    continue
                if kind == "strides" or (kind == "dtype" and results[0].dtype == expected[0].dtype):
                    for result, right in zip(results, expected, strict=True):
                        torch.testing.assert_close(result, right, rtol=0, atol=1e-6, equal_nan=True)


def _results(name, arguments):
    results = getattr(OPS, name)(*arguments)
    return results if isinstance(results, (tuple, list)) else (results,)


@pytest.mark.parametrize("compiled", [False, True])
def test_numbers_that_stand_for_words_and_dimensions_are_looked_at(compiled):
    by_name = dict(operators())
    places = {
        "isotonic": {0: (-1, 2, 7), 8: (-1, 2), 10: (-1, 3)},
        "block_product": {4: (-1, 4, 7), 5: (-1, 2)},
        "loss_forward": {7: (-1, 3, 9), 11: (-1, 2), 12: (-1, 2)},
        "project": {6: (-1, 2)},
        "project_pav": {6: (-1, 2)},
        "jvp": {6: (-1, 2)},
        "vjp": {6: (-1, 2)},
        "sort": {3: (-1, 2)},
        "soft_rank": {4: (-1, 2)},
    }
    for name, wrong in places.items():
        operator = getattr(OPS, name)
        call = torch.compile(operator, backend="eager") if compiled else operator
        for i, values in wrong.items():
            for value in values:
                arguments = (*by_name[name][:i], value, *by_name[name][i + 1 :])
                with pytest.raises(Exception, match="must lie in") as raised:
                    call(*arguments)
                assert compiled or isinstance(raised.value, (ValueError, IndexError))


def test_an_order_that_leaves_the_vector_is_an_error(backend):
    if backend == "cuda":
        pytest.skip("there it is a failed assertion, after which the process can do nothing")
    x, blocks = eighths(4, 40), torch.full((4, 8), 255, dtype=torch.uint8)
    for place in (40, -1, 1 << 30, -(1 << 31)):
        order = torch.arange(40, dtype=torch.int32).repeat(4, 1)
        order[2, 33] = place
        with pytest.raises((IndexError, RuntimeError), match="order"):
            OPS.isotonic(1, x, 1.0, None, 0.0, False, None, order, 0, False, 0, 1.0, False)
        for ordered in ((True, False, False), (False, False, True)):
            with pytest.raises((IndexError, RuntimeError), match="order"):
                OPS.block_product(x, None, order, blocks, 0, 1, *ordered, 1.0)


def test_an_order_that_leaves_places_out_leaves_them_nan(backend, device):
    for n in (40, 40_000):
        x, order = torch.ones(2, n, device=device), torch.zeros(2, n, dtype=torch.int32, device=device)
        blocks = torch.full((2, n // 32 * 4 + 4), 255, dtype=torch.uint8, device=device)
        if n % 32 == 0:
            blocks = blocks[:, :-4]
        v = OPS.isotonic(1, x, 1.0, None, 0.0, False, None, order, 0, False, 0, 1.0, False)[0]
        out = OPS.block_product(x, None, order, blocks, 0, 1, True, True, True, 1.0)
        for result in (v, out):
            assert (result[:, 0] == 1).all()
            assert result[:, 1:].isnan().all()


@pytest.mark.parametrize("n", [1, 31, 33, 64, 5000])
def test_bits_that_no_regression_leaves_are_harmless(backend, device, n):
    """Set behind the last element, they mean nothing; where the first is not set, the vector is nan."""
    x, size = eighths(3, n).to(device), 4 * (-(-n // 32))
    every = torch.full((3, size), 255, dtype=torch.uint8, device=device)
    torch.testing.assert_close(OPS.block_product(x, None, None, every, 0, 1, False, False, False, 1.0), x)
    none = torch.zeros(3, size, dtype=torch.uint8, device=device)
    assert OPS.block_product(x, None, None, none, 0, 1, False, False, False, 1.0).isnan().all()
    one = none.clone()
    one[:, 0] = 1
    one[:, -1] |= 128 if n % 32 else 0
    mean = x.double().mean(1, keepdim=True).float().expand_as(x)
    torch.testing.assert_close(OPS.block_product(x, None, None, one, 0, 1, False, False, False, 1.0), mean)


def test_blocks_begin_at_words():
    x, memory = eighths(2, 8), torch.full((9,), 255, dtype=torch.uint8)
    with pytest.raises(ValueError, match="multiple of 4 bytes"):
        OPS.block_product(x, None, None, memory[1:].view(2, 4), 0, 1, False, False, False, 1.0)


# ---- the public functions: tensors whose memory is gone, and what hooks give back ----


def free(t):
    t.detach().untyped_storage().resize_(0)


def shrink(t):
    t.detach().untyped_storage().resize_(t.nbytes - 1)


def leaf(*shape, offset=0):
    memory = torch.randn(offset + torch.Size(shape).numel())
    return memory[offset:].view(shape).requires_grad_()


PUBLIC = {
    "soft_binary_argmax": lambda x: soft_binary_argmax(x, 2),
    "soft_binary_argmax, a k per row": lambda x: soft_binary_argmax(x, torch.full((6,), 2.0)),
    "soft_binary_argmax, pav": lambda x: soft_binary_argmax(x, 2, solver="pav"),
    "hypersimplex_loss": lambda x: hypersimplex_loss(x, torch.arange(6) % 4),
    "sort": lambda x: hypersimplex_ext.sort(x)[0],
    "soft_rank": lambda x: hypersimplex_ext.soft_rank(x),
    "soft_sort": lambda x: hypersimplex_ext.soft_sort(x),
    "isotonic_regression": lambda x: hypersimplex_ext.isotonic_regression(x),
}


@pytest.mark.parametrize("lose", [free, shrink])
@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize("name", PUBLIC)
def test_a_tensor_without_its_memory_is_an_error(name, offset, lose):
    for _ in range(2):  # also where the call is remembered
        PUBLIC[name](leaf(6, 4, offset=offset)).sum().backward()
        x = leaf(6, 4, offset=offset)
        lose(x)
        with pytest.raises(RuntimeError, match=r"not allocated|out of bounds"):
            PUBLIC[name](x)


@pytest.mark.parametrize("lose", [free, shrink])
@pytest.mark.parametrize("offset", [0, 5])
@pytest.mark.parametrize("name", ["soft_binary_argmax", "hypersimplex_loss"])
def test_memory_lost_before_the_backward_pass_is_an_error(name, offset, lose):
    x = leaf(6, 4, offset=offset)
    y = PUBLIC[name](x).sum()
    lose(x)
    with pytest.raises(RuntimeError, match="x has entries, but its data is not allocated"):
        y.backward()


def test_a_target_without_its_memory_is_an_error():
    x, target = leaf(6, 4), torch.arange(6) % 4
    y = hypersimplex_loss(x, target)
    free(target)
    with pytest.raises(RuntimeError, match="target has entries"):
        y.backward()
    with pytest.raises(RuntimeError, match="target has entries"):
        hypersimplex_loss(x, target)


CHANGES = {
    "dtype": lambda t: t.half() if t.dtype == torch.float32 else t,
    "wide numbers": lambda t: t.float() if t.dtype == torch.float64 else t,
    "integers": lambda t: t.int() if t.dtype == torch.int64 else t,
    "shape": lambda t: t[:2] if t.shape == (6, 4) else t,
    "flat": lambda t: t.flatten(),
    "device": lambda t: t.to("meta"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["soft_binary_argmax", "soft_binary_argmax, a k per row", "hypersimplex_loss"])
def test_a_saved_tensor_that_comes_back_changed_is_an_error(name, change):
    x, seen = leaf(6, 4), []

    def unpack(t):
        other = CHANGES[change](t)
        seen.append((t.dtype, t.shape, t.device) != (other.dtype, other.shape, other.device))
        return other

    with saved_tensors_hooks(lambda t: t, unpack):
        y = PUBLIC[name](x).sum()
    if change == "integers" and name != "hypersimplex_loss":
        y.backward()  # saves none
    else:
        with pytest.raises(ERRORS, match="came back changed" if change in ("dtype", "shape") else None):
            y.backward()
        assert any(seen)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_saved_tensor_may_come_back_with_other_strides(name):
    x = leaf(6, 4)
    expected = torch.autograd.grad(PUBLIC[name](x).square().sum(), x)[0]
    for unpack in (lambda t: t.mT.contiguous().mT if t.ndim > 1 else t, lambda t: torch.stack([t, t], -1)[..., 0]):
        with saved_tensors_hooks(lambda t: t, unpack):
            y = PUBLIC[name](x).square().sum()
        torch.testing.assert_close(torch.autograd.grad(y, x)[0], expected)


@pytest.mark.parametrize("name", [name for name in PUBLIC if name.startswith(("soft_binary", "hyper"))])
def test_checkpointing_recomputes_what_was_saved(name):
    x = leaf(6, 4)
    expected = torch.autograd.grad(PUBLIC[name](x).square().sum(), x)[0]
    y = checkpoint(PUBLIC[name], x, use_reentrant=False).square().sum()
    assert torch.equal(torch.autograd.grad(y, x)[0], expected)


WITHOUT_EXCHANGE = """
import torch
if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    del torch.Tensor.__dlpack_c_exchange_api__
from hypersimplex_ext import hypersimplex_loss, soft_binary_argmax, soft_rank
for dtype in (torch.float32, torch.bfloat16):
    x = torch.tensor([[0.5, 1.5, 1.0], [0.0, 0.0, 3.0]], dtype=dtype, requires_grad=True)
    y = soft_binary_argmax(x, 1)
    assert torch.equal(y, torch.tensor([[0.0, 0.75, 0.25], [0.0, 0.0, 1.0]], dtype=dtype)), y
    (y * y).sum().backward()
    assert torch.equal(x.grad, torch.tensor([[0.0, 0.5, -0.5], [0.0, 0.0, 0.0]], dtype=dtype)), x.grad
    hypersimplex_loss(x, torch.tensor([1, 2])).backward()
    soft_rank(x)
    x.detach().untyped_storage().resize_(0)
    for function in (lambda: soft_binary_argmax(x, 1), lambda: hypersimplex_loss(x, torch.tensor([1, 2]))):
        try:
            function()
        except RuntimeError as error:
            assert "not allocated" in str(error)
        else:
            raise AssertionError
try:
    torch.ops.hypersimplex_ext.jvp(y, None, y, torch.zeros(2, 2), None, 1.0, 1)
except TypeError as error:
    assert "state must be float64 [2, 2] on cpu, got float32 [2, 2] on cpu" in str(error), error
"""


def test_tensors_are_looked_at_without_the_exchange_of_dlpack_too():
    """As with PyTorch before 2.10."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXCHANGE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---- what is remembered ----


def test_what_is_remembered_of_a_loss_holds_no_data():
    x = torch.randn(4, 1000)
    hypersimplex_loss(x, torch.arange(4))
    calls = [call for call in _calls._known.values() if isinstance(call, _loss_ops.LossCall)]
    assert calls
    for call in calls:
        for value in call:
            assert not isinstance(value, torch.Tensor) or value.untyped_storage().nbytes() <= 8


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_flat_while_tau_and_k_and_the_batch_change():
    """What is remembered is bounded in number; each call leaves a few kilobytes until then."""

    def calls(steps):
        for i in steps:
            n = 2 + i % 97
            x = torch.zeros(n, 8, requires_grad=True)
            soft_binary_argmax(x, 1 + i % 7, 1 + i * 1e-4)
            hypersimplex_loss(x, torch.zeros(n, dtype=torch.long), i % n, 1 + i * 1e-4).backward()

    calls(range(2500))
    before = resident()
    calls(range(2500, 10_000))
    assert resident() - before < 8 << 20
    assert len(_calls._known) <= _calls._KNOWN_AT_MOST


def test_a_dimension_is_an_integer_in_every_call():
    x = torch.randn(3, 4)
    for _ in range(2):
        soft_binary_argmax(x, 1, dim=1)
        with pytest.raises(TypeError):
            soft_binary_argmax(x, 1, dim=1.0)
    layout = _layout.vectors(x, 1)[1]
    assert layout.strides(x) == (0, 4, 0, 1) or layout.strides(x) == (4, 0, 0, 1)
    with pytest.raises(TypeError):
        _layout.vectors(x, 1.0)
