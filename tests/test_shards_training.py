"""Training over several processes: the module, wrapped models, scaled gradients, processes that break."""

import copy
import datetime
import multiprocessing
import os
import pickle
import tempfile
import time
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from hypersimplex_ext import hypersimplex_loss, soft_binary_argmax
from hypersimplex_ext.batch import two_pass_backward
from hypersimplex_ext.nn import HyperSimplexLoss, SoftBinaryArgmax
from tests import processes as connected


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def data(n=90):
    torch.manual_seed(2)
    return torch.randn(n, 6, dtype=torch.float64), torch.randint(0, 3, (n,))


def steps(model, loss, batches):
    """What some steps of training leave: losses, parameters, thresholds."""
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    values = []
    for x, y in batches:
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step()
        values.append(value.detach())
    parameters = [p.detach().clone() for p in model.parameters()]
    return values, parameters, loss.running_threshold.clone(), loss.num_batches_tracked.clone()


def wrapped(group, batches, kind):
    model = DistributedDataParallel(network(), process_group=group)
    result = steps(model, HyperSimplexLoss(3, kind=kind, group=group), batches)
    del model  # before its group
    return result


@pytest.mark.parametrize("kind", ["squared", "fenchel_young"])
@pytest.mark.parametrize("sizes", [(45, 45), (10, 50, 30)])
def test_data_parallel_training_is_that_of_one_process(processes, sizes, kind):
    x, y = data()
    alone = steps(network(), HyperSimplexLoss(3, kind=kind), [(x, y)] * 4)
    parts = zip(x.split(sizes), y.split(sizes), strict=True)
    for values, parameters, thresholds, batches in processes.run(wrapped, [([part] * 4, kind) for part in parts]):
        torch.testing.assert_close(values, alone[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(parameters, alone[1], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(thresholds, alone[2], rtol=1e-6, atol=1e-7)
        assert torch.equal(batches, alone[3])


def accumulated(group, x, y):
    """Two batches into one gradient, synchronised once."""
    model = DistributedDataParallel(network(), process_group=group)
    loss = HyperSimplexLoss(3, group=group)
    half = len(x) // 2
    with model.no_sync():
        loss(model(x[:half]), y[:half]).backward()
    loss(model(x[half:]), y[half:]).backward()
    grads = [p.grad for p in model.parameters()]
    del model
    return grads


def test_no_sync(processes):
    x, y = data(80)
    model = network()
    for rows in ([*range(20), *range(40, 60)], [*range(20, 40), *range(60, 80)]):
        hypersimplex_loss(model(x[rows]), y[rows]).backward()
    for grads in processes.run(accumulated, [(x[:40], y[:40]), (x[40:], y[40:])]):
        torch.testing.assert_close(grads, [p.grad for p in model.parameters()], rtol=1e-9, atol=1e-12)


def sharded(group, batches):
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    mesh = DeviceMesh.from_group(group, "cpu")
    model = network()
    fully_shard(model, mesh=mesh)
    values, parameters, thresholds, _ = steps(model, HyperSimplexLoss(3, group=mesh), batches)
    return values, [p.full_tensor() for p in parameters], thresholds


@pytest.mark.skipif(torch.__version__ < (2, 13), reason="this torch may shard on GPUs alone")  # as 2.6 does
def test_fully_sharded_training_is_that_of_one_process(processes):
    x, y = data()
    alone = steps(network(), HyperSimplexLoss(3), [(x, y)] * 3)
    parts = [[part] * 3 for part in zip(x.split([40, 50]), y.split([40, 50]), strict=True)]
    for values, parameters, thresholds in processes.run(sharded, [(p,) for p in parts]):
        torch.testing.assert_close(values, alone[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(parameters, alone[1], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(thresholds, alone[2], rtol=1e-6, atol=1e-7)


def scaled(group, x, y):
    model = DistributedDataParallel(network().float(), process_group=group)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    loss = HyperSimplexLoss(3, group=group)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(model(x.float()), y)
    scaler.scale(value).backward()
    scaler.unscale_(optimizer)
    grads = [p.grad.clone() for p in model.parameters()]
    scaler.step(optimizer)
    del model
    return grads


def test_scaled_gradients(processes):
    x, y = data()
    model = network().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = hypersimplex_loss(model(x.float()), y)
    value.backward()
    for grads in processes.run(scaled, list(zip(x.split(45), y.split(45), strict=True))):
        largest = max(float(p.grad.abs().max()) for p in model.parameters())
        for grad, parameter in zip(grads, model.parameters(), strict=True):
            torch.testing.assert_close(grad, parameter.grad, rtol=0, atol=2e-2 * largest)


def two_in_flight(group, x, y):
    """Two modules whose backwards come after both forwards, and one module that is called twice in a step."""
    model = network()
    first, second = HyperSimplexLoss(3, group=group), HyperSimplexLoss(3, kind="fenchel_young", group=group)
    logits = model(x)
    values = first(logits, y), second(2 * logits, y), first(-logits, y)
    sum(values).backward()
    return [p.grad for p in model.parameters()], first.num_batches_tracked.clone()


def test_modules_in_flight(processes):
    x, y = data()
    expected, batches = two_in_flight(None, x, y)
    results = processes.run(two_in_flight, list(zip(x.split(45), y.split(45), strict=True)))
    for i, grad in enumerate(expected):  # of the size of the group each, hence to be averaged
        torch.testing.assert_close((results[0][0][i] + results[1][0][i]) / 2, grad, rtol=1e-9, atol=1e-12)
    assert torch.equal(results[0][1], batches)


def in_two_passes(group, x, y, size):
    model = DistributedDataParallel(network(), process_group=group)
    loss = HyperSimplexLoss(3, group=group)
    value = two_pass_backward(model, loss, zip(x.split(size), y.split(size), strict=True))
    grads = [p.grad for p in model.parameters()]
    del model
    return value, grads, loss.running_threshold


def test_two_passes_over_processes(processes):
    x, y = data()
    model, loss = network(), HyperSimplexLoss(3)
    value = loss(model(x), y)
    value.backward()
    for mine, grads, threshold in processes.run(in_two_passes, [(x[:30], y[:30], 10), (x[30:], y[30:], 20)]):
        torch.testing.assert_close(mine, value.detach(), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(grads, [p.grad for p in model.parameters()], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(threshold, loss.running_threshold, rtol=1e-6, atol=1e-7)


def refused(group, settings):
    HyperSimplexLoss(3, group=group, **settings)


def test_what_does_not_go_with_a_group(processes):
    for name, settings in (("memory", {"memory": 4}), ("weighted_mass", {"weighted_mass": True})):
        for error in processes.run(refused, [(settings,)] * 2, errors=True):
            assert error.kind == "ValueError"
            assert error.message.startswith(f"{name} must be")


def evaluated(group, x, y):
    """The loss in eval mode, and how many collectives it takes."""
    loss = HyperSimplexLoss(3, group=group)
    model = network()
    loss(model(x), y)
    before, calls = (distributed.all_reduce, distributed.all_gather), []
    distributed.all_reduce = distributed.all_gather = lambda *arguments, **keywords: calls.append(1)
    try:
        loss.eval()(model(x), y)
    finally:
        distributed.all_reduce, distributed.all_gather = before
    return len(calls)


def test_no_collective_in_eval_mode(processes):
    x, y = data()
    assert processes.run(evaluated, list(zip(x.split(45), y.split(45), strict=True))) == [0, 0]


def layered(group, x):
    layer = SoftBinaryArgmax(k=5, dim=0, group=group)
    return copy.deepcopy(layer)(x)


def test_layer(processes):
    x, _ = data()
    results = processes.run(layered, [(part,) for part in x.split([30, 60])])
    torch.testing.assert_close(torch.cat(results), soft_binary_argmax(x, 5, dim=0))


def copied(group):
    loss = HyperSimplexLoss(3, group=group)
    twin = copy.deepcopy(loss)
    with pytest.raises(TypeError, match="save its state_dict"):
        pickle.dumps(loss)
    plain = HyperSimplexLoss(3)
    plain.load_state_dict(loss.state_dict())
    assert pickle.loads(pickle.dumps(plain)).group is None
    return twin.group is loss.group is group


def test_copies_share_the_group(processes):
    assert processes.run(copied, [()] * 2) == [True, True]


# ---- one process in its group, and none ----


def test_a_group_of_one(tmp_path):
    x, y = data()
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.FileStore(str(tmp_path / "s"), 1))
    try:
        group, logits = distributed.group.WORLD, network()(x).detach()
        for settings in ({}, {"kind": "fenchel_young", "sample_weight": torch.rand(90)}, {"reduction": "none"}):
            alone, along = logits.clone().requires_grad_(), logits.clone().requires_grad_()
            value, expected = (hypersimplex_loss(z, y, group=g, **settings) for z, g in ((along, group), (alone, None)))
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
            value.sum().backward()
            expected.sum().backward()
            torch.testing.assert_close(along.grad, alone.grad, rtol=1e-10, atol=1e-14)
        y = soft_binary_argmax(logits, 5, dim=0, group=group)
        torch.testing.assert_close(y, soft_binary_argmax(logits, 5, dim=0))
    finally:
        distributed.destroy_process_group()


# ---- processes that break ----


def _calls_until(rank, size, store, folder, victim, how):
    connected.start(rank, size, store, datetime.timedelta(seconds=4))
    x = torch.randn(20, 3)
    y = torch.randint(0, 3, (20,))
    hypersimplex_loss(x, y, group=distributed.group.WORLD)
    if rank == victim:
        if how == "killed":
            os._exit(1)
        time.sleep(12)
        os._exit(0)
    begun = time.monotonic()
    try:
        hypersimplex_loss(x, y, group=distributed.group.WORLD)
        answer = "no error"
    except RuntimeError as error:
        answer = f"{time.monotonic() - begun} {error}"
    (Path(folder) / str(rank)).write_text(answer)
    os._exit(0)


@pytest.mark.parametrize("how", ["killed", "silent"])
def test_a_process_that_breaks_is_an_error_on_the_others(how):
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        arguments = 3, str(Path(folder) / "store"), folder, 1, how
        running = [context.Process(target=_calls_until, args=(rank, *arguments)) for rank in range(3)]
        for process in running:
            process.start()
        for rank in (0, 2):
            running[rank].join(60)
            assert not running[rank].is_alive()
            answer = (Path(folder) / str(rank)).read_text()
            assert answer != "no error"
            assert float(answer.split()[0]) < 10
        running[1].kill()
        running[1].join()
