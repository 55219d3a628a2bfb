"""Two passes in two real processes: what is reduced, how often, and what each process sees."""

import datetime
import os

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hypersimplex_ext.batch import two_pass_backward
from hypersimplex_ext.functional import hypersimplex_loss

from .cases import assert_close
from .two_pass import CLASSES, FEATURES, HIDDEN, SAMPLES, criterion, gradients, joint, network, whole

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

WORLD = 2
UNEVEN = [20], [10, 3, 17]  # the sizes of each process's micro-batches
EVEN = [15, 10], [20, 5]
STEPS = 3
SHARDS_ON_CPU = torch.__version__ >= (2, 13)  # at least; 2.6 does not


def micro_batches(rank, sizes=UNEVEN):
    """The part that a process has of one batch."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, FEATURES, dtype=torch.float64, generator=generator)
    labels = torch.arange(SAMPLES) % CLASSES
    mine = slice(sum(sizes[0]), None) if rank else slice(sum(sizes[0]))
    return list(zip(x[mine].split(sizes[rank]), labels[mine].split(sizes[rank]), strict=True))


def model_of(name):
    torch.manual_seed(5)
    if name == "stateful":
        spectral = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(HIDDEN, HIDDEN))
        return network(spectral, torch.nn.BatchNorm1d(HIDDEN))
    return network(torch.nn.Dropout(0.3)) if name == "dropout" else network()


def buffers_of(model):
    return [b.clone() for b in model.buffers()]


# ---- what runs in the processes ----


def spanning(logits, target):
    """The loss of the batch of all processes, with gradients that are to be averaged."""
    parts = [None] * WORLD
    dist.all_gather_object(parts, (logits.detach(), target))
    everything = [logits if rank == dist.get_rank() else part for rank, (part, _) in enumerate(parts)]
    value = hypersimplex_loss(torch.cat(everything), torch.cat([labels for _, labels in parts]))
    return value.detach() + WORLD * (value - value.detach())


def average(numbers, bucket):
    """What DistributedDataParallel does, with a note of how many numbers are reduced."""
    numbers.append(bucket.buffer().numel())
    work = dist.all_reduce(bucket.buffer().div_(WORLD), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def replicated(rank, name, loss):
    """Two steps of two passes, and one without."""
    model, reduced, steps = DistributedDataParallel(model_of(name)), [], []
    model.register_comm_hook(reduced, average)
    torch.manual_seed(rank)
    for step in range(STEPS):
        model.zero_grad()
        reduced.clear()
        value = (two_pass_backward if step < 2 else whole)(model, loss, micro_batches(rank))
        steps.append((value, gradients(model), buffers_of(model), sum(reduced)))
    return steps


def sharded(rank):
    from torch.distributed.fsdp import fully_shard

    model, early = model_of("plain"), []
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (WORLD,)))

    def look(*_):
        early.extend(p.grad is not None for p in model.parameters())

    model.register_forward_pre_hook(look, prepend=True)  # before the model gathers its parameters
    value = two_pass_backward(model, spanning, micro_batches(rank, EVEN))
    return value, torch.cat([p.grad.full_tensor().flatten() for p in model.parameters()]), early


def work(rank, folder):
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/store", limit, WORLD, rank)
    found = {name: replicated(rank, name, criterion()) for name in ("dropout", "stateful")}
    found["spanning"] = replicated(rank, "plain", spanning)
    found["sharded"] = sharded(rank) if SHARDS_ON_CPU else None
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)  # threads of PyTorch's own abort now and then what ends by itself


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each process found."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (folder,), WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


# ---- what is due ----


def simulated(name):
    """The steps of each process, one after the other; buffers are those of the first when a step begins."""
    models, losses = ([make() for _ in range(WORLD)] for make in (lambda: model_of(name), criterion))
    random = []
    for rank in range(WORLD):
        torch.manual_seed(rank)
        random.append(torch.get_rng_state())
    for step in range(STEPS):
        buffers, values = buffers_of(models[0]), []
        for rank, model in enumerate(models):
            torch.set_rng_state(random[rank])
            model.zero_grad()
            for mine, first in zip(model.buffers(), buffers, strict=True):
                mine.copy_(first)
            values.append((joint if step < 2 else whole)(model, losses[rank], micro_batches(rank)))
            random[rank] = torch.get_rng_state()
        yield values, sum(map(gradients, models)) / WORLD, [buffers_of(model) for model in models]


@pytest.mark.parametrize("name", ["dropout", "stateful"])
def test_replicas(found, name):
    """Gradients are averaged, over different numbers of micro-batches, and a step without two passes still works."""
    for step, (values, gradient, buffers) in enumerate(simulated(name)):
        for rank in range(WORLD):
            value, own_gradient, own_buffers, _ = found[rank][name][step]
            assert_close(value, values[rank], 1e-10)
            assert_close(own_gradient, gradient, 1e-10)
            for b, due in zip(own_buffers, buffers[rank], strict=True):
                assert_close(b.double(), due, 1e-10)
        assert torch.equal(*(found[rank][name][step][1] for rank in range(WORLD)))


@pytest.mark.parametrize("name", ["dropout", "stateful", "spanning"])
def test_gradients_are_reduced_once(found, name):
    for steps in found:
        for _, gradient, _, reduced in steps[name]:
            assert reduced == len(gradient)


def assert_whole(value, gradient):
    model = model_of("plain")
    x, labels = map(torch.cat, zip(*micro_batches(0), *micro_batches(1), strict=True))
    due = hypersimplex_loss(model(x), labels)
    due.backward()
    assert_close(value, due.detach(), 1e-10)
    assert_close(gradient, gradients(model), 1e-10)


def test_a_loss_that_spans_the_processes(found):
    """Each returns the loss of the whole batch, and has its gradient."""
    for steps in found:
        for value, gradient, *_ in steps["spanning"]:
            assert_whole(value, gradient)


@pytest.mark.skipif(not SHARDS_ON_CPU, reason="this torch shards on GPUs alone")
def test_shards(found):
    """They have no gradient before the last micro-batch."""
    for steps in found:
        value, gradient, early = steps["sharded"]
        assert_whole(value, gradient)
        assert not any(early)
