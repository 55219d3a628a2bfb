"""What surrounds the loss in a training script: mixed precision, saved modules, replicas, threads, forked workers."""

import copy
import io
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import warnings

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from hypersimplex_ext import hypersimplex_loss, soft_binary_argmax, soft_rank
from hypersimplex_ext.nn import HyperSimplexLoss, SoftBinaryArgmax

from .cases import all_types, assert_close, half_types

FEATURES, HIDDEN, CLASSES, SAMPLES = 6, 8, 4, 24


class Network(torch.nn.Module):
    """A gate by projection inside, the loss at the end, both with settings that are learned or saved."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(FEATURES, HIDDEN)
        self.last = torch.nn.Linear(HIDDEN, CLASSES, bias=False)  # a bias would have no gradient but rounding
        self.gate = SoftBinaryArgmax(3, tau=torch.nn.Parameter(torch.tensor(0.7)))
        self.loss = HyperSimplexLoss(CLASSES, tau=torch.full((CLASSES,), 1.5), weight=torch.arange(1.0, CLASSES + 1))

    def forward(self, x, labels):
        hidden = self.first(x)
        return self.loss(self.last(hidden * self.gate(hidden)), labels)


@pytest.fixture
def network(device):
    return Network().to(device)


@pytest.fixture
def batch(device):
    return torch.randn(SAMPLES, FEATURES, device=device), torch.arange(SAMPLES, device=device) % CLASSES


def gradients(network, batch, forward=None):
    """The loss and the gradients of all parameters."""
    network.zero_grad()
    value = (forward or network)(*batch)
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in network.parameters())]


def assert_same(actual, expected, tolerance=0.0):
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, tolerance)
    assert all(e.any() for e in expected)


def assert_alike(actual, expected):
    """Up to the rounding of halves, by which some entries change sides."""
    assert_close(actual[0], expected[0], 0.02)
    together, due = (torch.cat([t.double().flatten() for t in tensors[1:]]) for tensors in (actual, expected))
    assert torch.cosine_similarity(together, due, 0) > 0.97
    assert 0.8 < together.norm() / due.norm() < 1.25


def statistics(loss):
    return loss.running_threshold, loss.num_batches_tracked


# ---- mixed and low precision ----


@half_types
def test_autocast(network, batch, device, dtype):
    """Half logits become float32, as in PyTorch's losses; the gradients arrive in each tensor's dtype."""
    expected = gradients(network, batch)
    with torch.autocast(device.type, dtype):
        logits = network.first(batch[0])
        assert logits.dtype == dtype
        assert soft_binary_argmax(logits, 2).dtype == torch.float32
        cross_entropy = torch.nn.functional.cross_entropy(logits, batch[1])
        assert hypersimplex_loss(logits, batch[1]).dtype == cross_entropy.dtype == torch.float32
        assert soft_binary_argmax(logits.double(), 2).dtype == torch.float64
    assert_alike(gradients(network, batch, torch.autocast(device.type, dtype)(network.forward)), expected)
    assert network.loss.running_threshold.dtype == torch.float32
    leaf = torch.randn(SAMPLES, CLASSES, device=device, dtype=dtype, requires_grad=True)
    with torch.autocast(device.type, dtype):
        value = hypersimplex_loss(leaf, batch[1])
    assert torch.autograd.grad(value, leaf)[0].dtype == dtype


def test_gradient_scaler(network, batch, device):
    """The scale goes through the backward and is taken out again; an overflow skips the step."""
    expected = gradients(network, batch)[1:]
    before = [p.detach().clone() for p in network.parameters()]
    scaler, optimizer = torch.amp.GradScaler(device.type, init_scale=1024.0), torch.optim.SGD(network.parameters(), 0.1)
    network.zero_grad()
    scaler.scale(network(*batch)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert_same([(b - p.detach()) / 0.1 for b, p in zip(before, network.parameters(), strict=True)], expected, 1e-4)
    network.zero_grad()
    (scaler.scale(network(*batch)) * torch.inf).backward()
    moved = [p.detach().clone() for p in network.parameters()]
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(m, p) for m, p in zip(moved, network.parameters(), strict=True))
    assert scaler.get_scale() == 512.0


@all_types
def test_whole_module_in_one_dtype(network, batch, dtype):
    expected = gradients(network, batch)
    module = copy.deepcopy(network).to(dtype)
    actual = gradients(module, (batch[0].to(dtype), batch[1]))
    assert {t.dtype for t in actual} == {dtype}
    assert module.loss.running_threshold.dtype == torch.promote_types(dtype, torch.float32)
    assert module.loss.num_batches_tracked.dtype == torch.int64
    if dtype.itemsize > 2:
        assert_same(actual, expected, 1e-5)
    else:
        assert_alike(actual, expected)
    assert module.loss.predict(batch[0][:, :CLASSES].to(dtype)).shape == (SAMPLES,)


# ---- copies ----


def saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def reloaded(module):
    """By state dict through a file, as checkpoints are."""
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    twin = Network().to(next(module.parameters()).device)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    return twin


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "save": saved,
    "state_dict": reloaded,
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_go_on_alike(network, batch, name):
    with torch.no_grad():
        network.gate.tau.fill_(0.9)
        network.loss.weight.mul_(2)
    network(*batch)  # a copy is taken in the midst of training
    twin = COPIES[name](network)
    assert_same(gradients(twin, batch), gradients(network, batch))
    for ours, theirs in zip(statistics(network.loss), statistics(twin.loss), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()
    assert network.loss.num_batches_tracked.tolist() == [2] * CLASSES


def test_replicas_share_what_is_learned_and_nothing_else(batch):
    """DataParallel's replicas: their statistics are lost, those of the first device alone are kept."""
    network = Network()
    replicas = [network._replicate_for_data_parallel() for _ in range(2)]
    for replica in replicas:
        replica.loss = network.loss._replicate_for_data_parallel()
        for name, buffer in network.loss.named_buffers():
            setattr(replica.loss, name, buffer.clone())  # as broadcast to another device
    before = [t.clone() for t in statistics(network.loss)]
    for replica in replicas:
        replica.loss(torch.randn(SAMPLES, CLASSES), batch[1].cpu())
        assert replica.loss.num_batches_tracked.tolist() == [1] * CLASSES
    assert network.loss.active_fraction is None
    assert all(torch.equal(*pair) for pair in zip(before, statistics(network.loss), strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_data_parallel(batch):
    network = Network().cuda()
    parallel = torch.nn.DataParallel(network)
    value = parallel(*(t.cuda() for t in batch))
    value.mean().backward()
    assert network.loss.num_batches_tracked.tolist() == [1] * CLASSES


# ---- modes of autograd ----


def test_modes_without_gradients(network, batch):
    expected = gradients(network, batch)[0]
    for mode in (torch.no_grad, torch.inference_mode):
        module = copy.deepcopy(network)
        with mode():
            value = module(*batch)
        assert not value.requires_grad
        assert_close(value.clone(), expected, 0)
        assert torch.equal(module.loss.num_batches_tracked, network.loss.num_batches_tracked + 1)
        assert_same(gradients(module, batch), gradients(network, batch))  # and it trains afterwards


def test_logits_made_in_inference_mode(batch, device):
    with torch.inference_mode():
        logits = torch.randn(SAMPLES, CLASSES, device=device)
    assert torch.equal(hypersimplex_loss(logits, batch[1]), hypersimplex_loss(logits.clone(), batch[1]))
    assert torch.equal(soft_binary_argmax(logits, 2), soft_binary_argmax(logits.clone(), 2))


def test_anomaly_mode(network, batch):
    expected = gradients(network, batch)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Anomaly Detection has been enabled")
        with torch.autograd.detect_anomaly():
            assert_same(gradients(network, batch), expected)
            leaf = torch.full((SAMPLES, CLASSES), torch.nan, device=batch[0].device, requires_grad=True)
            warnings.filterwarnings("ignore", "Error detected in")
            with pytest.raises(RuntimeError, match="returned nan values in its 0th output"):
                hypersimplex_loss(leaf, batch[1]).backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(network, batch, use_reentrant):
    """The same gradients. A recomputation that runs to its end counts the batch again, as batch-norm's would."""
    expected = gradients(network, batch)
    x = batch[0].clone().requires_grad_()  # reentrant checkpointing wants one
    again = lambda _, labels: checkpoint(network, x, labels, use_reentrant=use_reentrant)  # noqa: E731
    assert_same(gradients(network, batch, again), expected)
    assert network.loss.num_batches_tracked.tolist() == [2 + use_reentrant] * CLASSES


def test_gradients_accumulate_over_several_backwards(batch, device):
    x = torch.randn(SAMPLES, CLASSES, device=device, requires_grad=True)
    value = hypersimplex_loss(x, batch[1])
    value.backward(retain_graph=True)
    once = x.grad.clone()
    value.backward()
    assert_close(x.grad, 2 * once, 1e-7)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        value.backward()


# ---- threads and processes ----


def test_two_python_threads(device):
    """Forward and backward from two threads at a time, each with results of its own."""
    inputs = [torch.randn(64, 50, device=device) for _ in range(2)]
    labels = torch.arange(64, device=device) % 50

    def work(x):
        leaf = x.clone().requires_grad_()
        y = soft_binary_argmax(leaf, 5)
        value = hypersimplex_loss(leaf, labels) + (y * y).sum() + (soft_rank(leaf, dim=0) ** 2).sum()
        return y.detach(), torch.autograd.grad(value, leaf)[0]

    expected = [work(x) for x in inputs]
    found = [[], []]

    def repeat(i):
        found[i] += [work(inputs[i]) for _ in range(50)]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        threads = [threading.Thread(target=repeat, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        torch.set_num_threads(before)
    for results, due in zip(found, expected, strict=True):
        assert len(results) == 50
        assert all(torch.equal(a, e) for pair in results for a, e in zip(pair, due, strict=True))


def run(script):
    """In a process of its own that may not take longer than a minute, with threads for OpenMP's pool."""
    code = "import torch\nfrom hypersimplex_ext import *\ntorch.set_num_threads(4)\n" + textwrap.dedent(script)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@forks
def test_a_forked_child_does_not_wait_for_the_threads_of_its_parent():
    done = run("""
        import os, signal
        x, v, labels = torch.randn(64, 5000), torch.randn(64, 5000), torch.arange(64) % 50
        def work():
            leaf = x.clone().requires_grad_()
            value = hypersimplex_loss(leaf[:, :50], labels)
            results = value, soft_binary_argmax(leaf, 5), soft_rank(leaf)
            return torch.autograd.grad(results, leaf, (torch.ones(()), v, v))[0]
        expected = work()
        child = os.fork()
        if child == 0:
            signal.alarm(40)
            torch.set_num_threads(1)  # PyTorch's own operations would hang
            torch.get_num_threads = lambda: 4
            os._exit(0 if torch.equal(work(), expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert torch.equal(work(), expected)
    """)
    assert done.returncode == 0, done.stderr


@forks
def test_workers_of_a_data_loader():
    done = run("""
        x = torch.randn(64, 5000)
        expected = soft_binary_argmax(x, 5)
        project = lambda rows: soft_binary_argmax(torch.stack(rows), 5)
        loader = torch.utils.data.DataLoader(
            x, 16, num_workers=2, collate_fn=project, multiprocessing_context="fork", timeout=30
        )
        for _ in range(2):
            assert torch.equal(torch.cat(list(loader)), expected)
    """)
    assert done.returncode == 0, done.stderr
