"""Distributed tensors: the loss and the projection of a DTensor are those of the whole tensor."""

import pytest
import torch
from torch import distributed

from hypersimplex_ext import hypersimplex_loss, soft_binary_argmax
from hypersimplex_ext.nn import HyperSimplexLoss


def placed(group, x, placement):
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, DeviceMesh.from_group(group, "cpu"), [placement])


def placement_of(name):
    from torch.distributed.tensor import Partial, Replicate, Shard

    return {"rows": Shard(0), "columns": Shard(1), "depth": Shard(2), "whole": Replicate(), "partial": Partial()}[name]


def loss_of(group, x, target, name, settings, targets):
    place = placement_of(name)
    logits = placed(group, x, place).requires_grad_()
    if targets == "distributed":
        target = placed(group, target, place if name == "rows" or target.shape == x.shape else placement_of("whole"))
    elif name == "rows":
        target = placed(group, target, place).to_local()
    weight = settings.get("sample_weight")
    if weight is not None and name == "rows":
        settings = {**settings, "sample_weight": placed(group, weight, place)}
    value = hypersimplex_loss(logits, target, **settings)
    value.sum().backward()
    return value.full_tensor().detach(), logits.grad.full_tensor()


@pytest.mark.parametrize("name", ["rows", "columns", "whole"])
@pytest.mark.parametrize("targets", ["local", "distributed"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kind": "fenchel_young", "label_smoothing": 0.1},
        {"k": torch.tensor([3.0, 9.0, 0.5, 20.0, 1.0]), "weight": torch.rand(5), "sample_weight": torch.rand(31)},
        {"reduction": "sum", "ignore_index": 2},
        {"reduction": "none"},
    ],
)
def test_loss(processes, name, targets, settings):
    x, target = torch.randn(31, 5, dtype=torch.float64), torch.randint(0, 5, (31,))
    whole = x.clone().requires_grad_()
    value = hypersimplex_loss(whole, target, **settings)
    value.sum().backward()
    for mine, grad in processes.run(loss_of, [(x, target, name, settings, targets)] * 3):
        torch.testing.assert_close(mine, value.detach(), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(grad, whole.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["rows", "columns"])
def test_dense_targets(processes, name):
    x = torch.randn(31, 5, dtype=torch.float64)
    target = torch.rand_like(x)
    target[target < 0.1] = -100
    whole = x.clone().requires_grad_()
    value = hypersimplex_loss(whole, target)
    value.backward()
    for mine, grad in processes.run(loss_of, [(x, target, name, {}, "distributed")] * 2):
        torch.testing.assert_close(mine, value.detach(), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(grad, whole.grad, rtol=1e-10, atol=1e-13)


def thresholds(group, x, target, name):
    loss = HyperSimplexLoss(x.shape[1])
    place = placement_of(name)
    target = placed(group, target, place if name == "rows" else placement_of("whole"))
    loss(placed(group, x, place).requires_grad_(), target)
    return loss.running_threshold, loss.active_fraction


@pytest.mark.parametrize("name", ["rows", "columns", "whole"])
def test_module(processes, name):
    x, target = torch.randn(31, 5), torch.randint(0, 5, (31,))
    loss = HyperSimplexLoss(5)
    loss(x, target)
    for mine, active in processes.run(thresholds, [(x, target, name)] * 2):
        torch.testing.assert_close(mine, loss.running_threshold)
        torch.testing.assert_close(active, loss.active_fraction)


def project(group, x, k, dim, name, upstream):
    logits = placed(group, x, placement_of(name)).requires_grad_()
    y = soft_binary_argmax(logits, k, dim=dim)
    (y * placed(group, upstream, placement_of(name))).sum().backward()
    return y.full_tensor().detach(), logits.grad.full_tensor()


@pytest.mark.parametrize("name", ["rows", "columns", "depth", "whole"])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_projection(processes, name, dim):
    x = torch.randn(9, 7, 8, dtype=torch.float64)
    upstream, whole = torch.randn_like(x), x.clone().requires_grad_()
    y = soft_binary_argmax(whole, 2, dim=dim)
    (y * upstream).sum().backward()
    for mine, grad in processes.run(project, [(x, 2, dim, name, upstream)] * 2):
        torch.testing.assert_close(mine, y.detach(), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(grad, whole.grad, rtol=1e-10, atol=1e-13)


def wrong(group, x, name, settings):
    logits = placed(group, x, placement_of("whole" if name == "partial" else name))
    if name == "partial":
        from torch.distributed.tensor import DTensor

        logits = DTensor.from_local(x, logits.device_mesh, [placement_of(name)])
    if settings.pop("group", None):
        settings["group"] = group
    return hypersimplex_loss(logits, torch.randint(0, x.shape[1], (x.shape[0], *x.shape[2:])), **settings)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("partial", {}, "input must be placed as Shard or Replicate"),
        ("depth", {}, r"input must be placed as Shard(0), Shard(1) or Replicate"),
        ("whole", {"group": True}, "group must be None for a DTensor"),
    ],
)
def test_errors(processes, name, settings, message):
    for error in processes.run(wrong, [(torch.randn(4, 3, 2), name, dict(settings))] * 2, errors=True):
        assert error.kind == "ValueError"
        assert message in error.message
    assert not distributed.is_initialized()
