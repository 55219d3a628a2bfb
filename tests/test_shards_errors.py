"""What is wrong over several processes is an error in all of them; and how much they exchange."""

import pytest
import torch
from torch import distributed

from hypersimplex_ext import hypersimplex_loss
from tests.processes import RemoteError
from tests.test_shards import assert_same, batch, loss_of, shards


def attempt(group, x, target, settings):
    return hypersimplex_loss(x, target, group=group, **settings).detach()


@pytest.mark.parametrize(
    ("change", "kind", "message", "others"),
    [
        ({"target": torch.tensor([0, 5, 1])}, "IndexError", "Target 5 is out of bounds", "failed on rank 1"),
        ({"target": torch.rand(3, 4) + 1}, "ValueError", "target must lie in [0, 1]", "failed on rank 1"),
        ({"x": torch.randn(3, 4).long()}, "TypeError", "input must be float16", "failed on rank 1"),
        ({"x": torch.randn(3, 5)}, "ValueError", "number of classes: 4 on rank 0, 5 on rank 1", "number of classes"),
        ({"x": torch.randn(3, 4).double()}, "ValueError", "differ in dtype", "differ in dtype"),
        ({"settings": {"tau": 2.0}}, "ValueError", "differ in tau", "differ in tau"),
        ({"settings": {"k": 1}}, "ValueError", "rank 1 differ in k", "differ in k"),
        ({"settings": {"weight": torch.ones(4)}}, "ValueError", "differ in weight", "differ in weight"),
        ({"settings": {"reduction": "sum"}}, "ValueError", "differ in settings", "differ in settings"),
        ({"settings": {"kind": "other"}}, "ValueError", "kind must be one of", "failed on rank 1"),
    ],
)
def test_one_wrong_process_is_an_error_on_all(processes, change, kind, message, others):
    x, target = torch.randn(3, 4), torch.tensor([0, 1, 2])
    wrong = change.get("x", x), change.get("target", target), change.get("settings", {})
    errors = processes.run(attempt, [(x, target, {}), wrong, (x, target, {})], errors=True)
    assert all(isinstance(e, RemoteError) for e in errors)
    assert errors[1].kind == kind
    assert message in errors[1].message
    for other in (errors[0], errors[2]):
        assert others in other.message
    assert_same(processes.run(loss_of, shards([2, 1], x, target, {})), x, target, {})  # and all go on


@pytest.mark.parametrize("k", [7, torch.tensor([7.0, 0, 0, 0])])
def test_mass_beyond_all_samples(processes, k):
    x, target = torch.randn(3, 4), torch.tensor([0, 1, 2])
    for error in processes.run(attempt, [(x, target, {"k": k})] * 2, errors=True):
        assert error.kind == "ValueError"
        assert "k must lie in [0, 6]" in error.message
    six = 6 if isinstance(k, int) else torch.tensor([6.0, 0, 0, 0])
    processes.run(attempt, [(x, target, {"k": six})] * 2)


def test_what_is_no_group():
    x, target = torch.randn(3, 4), torch.tensor([0, 1, 2])
    for group in ("world", 3, object()):
        with pytest.raises(TypeError, match="group must be a process group or a DeviceMesh"):
            hypersimplex_loss(x, target, group=group)
    with pytest.raises(ValueError, match="group must be one that this process belongs to"):
        hypersimplex_loss(x, target, group=distributed.GroupMember.NON_GROUP_MEMBER)


def twice(group, x, target):
    x = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(hypersimplex_loss(x, target, group=group), x, create_graph=True)
    grad.sum().backward()


def test_no_second_derivative(processes):
    for error in processes.run(twice, [batch()] * 2, errors=True):
        assert error.kind == "NotImplementedError"
        assert "no second derivatives" in error.message


def transformed(group, x, target):
    return torch.func.grad(lambda x: hypersimplex_loss(x, target, group=group))(x)


def compiled(group, x, target, fullgraph):
    torch._dynamo.reset()
    loss = torch.compile(lambda x: 2 * hypersimplex_loss(x, target, group=group), backend="eager", fullgraph=fullgraph)
    return loss(x)


def test_transforms_and_compilation(processes):
    x, target = batch()
    for error in processes.run(transformed, [(x, target)] * 2, errors=True):
        assert error.kind == "NotImplementedError"
        assert "torch.func" in error.message
    for value in processes.run(compiled, [(x, target, False)] * 2):
        torch.testing.assert_close(value, 2 * hypersimplex_loss(torch.cat((x, x)), torch.cat((target, target))))
    for error in processes.run(compiled, [(x, target, True)] * 2, errors=True):
        assert error.kind == "Unsupported"


# ---- collectives ----


def counted(group, x, target, settings):
    """How many exchanges the forward and the backward take."""
    before, calls = (distributed.all_reduce, distributed.all_gather), []

    def counting(function):
        return lambda *arguments, **keywords: calls.append(1) or function(*arguments, **keywords)

    distributed.all_reduce, distributed.all_gather = map(counting, before)
    try:
        x = x.detach().requires_grad_()
        value = hypersimplex_loss(x, target, group=group, **settings)
        forward = len(calls)
        value.backward()
    finally:
        distributed.all_reduce, distributed.all_gather = before
    return forward, len(calls) - forward


@pytest.mark.parametrize("settings", [{}, {"kind": "fenchel_young", "tau": 0.3}, {"k": 0.5}])
@pytest.mark.parametrize("shape", [(128, 10), (8192, 100), (4096, 1000)])
def test_number_of_collectives(processes, shape, settings):
    x, target = batch(*shape, torch.float32)
    arguments = list(zip(x.chunk(4), target.chunk(4), [settings] * 4, strict=True))
    for forward, backward in processes.run(counted, arguments):
        assert forward <= (9 if shape == (4096, 1000) and "tau" in settings else 8)
        assert backward == 0
