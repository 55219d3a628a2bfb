"""What a call does beside computing: it works on the tensor's device and current stream, waits for nothing, and can be
captured in a CUDA graph. The emulator, which records the stream of all work, tells some of it without a GPU."""

import contextlib
import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from hypersimplex_ext import _arguments, _backends, _calls, _loss_ops, hypersimplex_loss, soft_binary_argmax
from hypersimplex_ext.nn import HyperSimplexLoss
from tests import simt

from .conftest import needs_clusters
from .test_cuda import REGIMES

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
ROWS, N, SAMPLES, CLASSES = 6, 150, 130, 5
SLEEP = 1_000_000_000  # clock cycles: about half a second


def projection(x, v):
    leaf = x.detach().requires_grad_()
    y = soft_binary_argmax(leaf, 5, 0.7)
    return y.detach(), *torch.autograd.grad(y, leaf, v)


def projection_with_parameters(x, v):
    leaf, k, tau = x.detach().requires_grad_(), x[:, 0].abs().requires_grad_(), x.new_full((), 0.7).requires_grad_()
    y, threshold = soft_binary_argmax(leaf, k, tau, mask=x > -2, return_threshold=True)
    return y.detach(), threshold, *torch.autograd.grad(y, (leaf, k, tau), v)


def columns(x, v):
    return projection(x.t(), v.t())


def loss(x, target, **keywords):
    leaf = x.detach().requires_grad_()
    value = hypersimplex_loss(leaf, target, tau=0.8, **keywords)
    return value.detach(), *torch.autograd.grad(value, leaf)


def fenchel_young(x, target):
    return loss(x, target, k=0.3, kind="fenchel_young", label_smoothing=0.1, ignore_index=0)


def loss_per_entry(x, target):
    leaf = x.detach().requires_grad_()
    value = hypersimplex_loss(leaf, target, reduction="none")
    return value.detach(), *torch.autograd.grad(value.sum(), leaf)


PROJECTIONS = (projection, projection_with_parameters, columns)
CALLS = [*PROJECTIONS, loss, fenchel_young, loss_per_entry]
calls = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)


def inputs(call, device="cuda"):
    """Fresh ones."""
    if call in PROJECTIONS:
        return torch.randn(ROWS, N, device=device), torch.randn(ROWS, N, device=device)
    return torch.randn(SAMPLES, CLASSES, device=device), torch.randint(CLASSES, (SAMPLES,), device=device)


# ---- on the emulator ----

STREAM = 0x5EED


@pytest.fixture
def recorded(monkeypatch):
    """The emulated kernels behind the call path of the real ones: the devices that were made current, and the streams
    that work was put on since the last call."""
    module = simt.load("_C_simt")
    monkeypatch.setitem(_backends.BACKENDS, "cpu", _backends.Backend(module.cuda, _backends._call_cuda, False))
    current = []

    @contextlib.contextmanager
    def device(chosen):
        current.append(chosen)
        yield
        current.append(None)

    def current_stream(of):
        assert current[-1] == of
        return SimpleNamespace(cuda_stream=STREAM)

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    emulated = simt.Device(module)
    emulated.take_streams()
    return current, emulated.take_streams


@calls
@pytest.mark.parametrize("regime", ["", "block:threads=64", "cluster:blocks=2,threads=64", "grid:blocks=2,threads=64"])
def test_all_work_is_on_the_current_stream_of_the_tensors_device(recorded, monkeypatch, regime, call):
    current, streams = recorded
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    call(*inputs(call, "cpu"))
    work = streams()
    assert len(work) >= 2
    assert set(work) == {STREAM}
    assert current == [torch.device("cpu"), None] * (len(current) // 2) != []


def test_workspace_lies_on_the_device_of_the_call_until_it_returns(recorded):
    current, _ = recorded
    device, asked, addresses = torch.device("cuda", 1), [], set()

    class OnTheHost(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.empty:
                asked.append(kwargs.pop("device"))
            return function(*args, **(kwargs or {}))

    def function(argument, stream, allocate):
        assert (argument, stream, current[-1]) == ("argument", STREAM, device)
        addresses.update(allocate(1 << 20) for _ in range(3))

    with OnTheHost():
        _backends._call_cuda(function, device, "argument")
    assert asked == [device] * 3
    assert len(addresses) == 3
    assert current == [device, None]


def test_what_calls_share_lies_in_no_memory_of_a_gpu():
    """A graph that is captured while the first call of its kind is made would keep its memory from others."""
    backend = _backends.Backend(simt.load("_C_simt").cuda, _backends._call_cuda, False)
    device, settings = torch.device("cuda", 0), (0.0, _arguments.TARGETS, 0.75, -100, 0.0, 0, _arguments.MEAN)
    shape, strides = torch.Size((SAMPLES, CLASSES)), (CLASSES, 1)
    vectors = _calls._vector_call(backend, torch.float32, device, shape, strides, int, 1)
    kinds = tuple(map(type, settings))
    loss = _loss_ops._loss_call(backend, torch.float32, device, shape, strides, shape[:1], (1,), kinds, settings)
    for make in (vectors.new_state, vectors.new_blocks, loss.new_state, loss.new_loss):
        (like,) = make.args
        assert like.device.type == "cpu"
        assert make.keywords["device"] == device
    assert not any(isinstance(value, torch.Tensor) and value.is_cuda for value in (*vectors, *loss))


# ---- on a GPU: streams and devices ----


@gpu
@calls
def test_a_side_stream_orders_the_work(call):
    """The default stream, on which nothing waits for the side stream, would read inputs that are not there yet."""
    expected = call(*(fresh := inputs(call)))
    late = [torch.zeros_like(t) for t in fresh]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP)
        for to, values in zip(late, fresh, strict=True):
            to.copy_(values)
        results = call(*late)
    torch.cuda.current_stream().wait_stream(stream)
    for actual, wanted in zip(results, expected, strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU")
@calls
def test_a_stream_of_another_device_than_the_current_one(call):
    on_first = inputs(call, "cuda:0")
    expected = call(*on_first)
    with torch.cuda.device(0):
        results = call(*(t.to("cuda:1") for t in on_first))
    for actual, wanted in zip(results, expected, strict=True):
        assert actual.device == torch.device("cuda:1")
        torch.testing.assert_close(actual.cpu(), wanted.cpu())


# ---- on a GPU: waiting ----


@gpu
@calls
def test_calls_do_not_wait_for_the_device(call):
    arguments, stream = inputs(call), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(*arguments)  # loads kernels and gets memory, which may wait
        stream.synchronize()
        torch.cuda._sleep(SLEEP)
        results = call(*arguments)
        waited = stream.query()
    stream.synchronize()
    assert len(results) >= 2
    assert not waited


@gpu
@calls
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_operation_makes_pytorch_wait(call):
    arguments = inputs(call)
    call(*arguments)
    module = HyperSimplexLoss(CLASSES, tau=0.7, momentum=None).cuda()
    remembering = HyperSimplexLoss(CLASSES, memory=50).cuda()
    x, target = inputs(loss)
    module(x, target)
    one_number = torch.tensor(3.0)  # on the CPU, which is allowed
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            arguments[0].sum().item()
        call(*arguments)
        module(x.requires_grad_(), target).backward()
        remembering(x, target, torch.ones_like(x[:, 0])).backward()
        module.predict(x)
        module.predict_proba(x)
        module.eval()(x, target).backward()
        soft_binary_argmax(x, one_number)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- on a GPU: graphs ----


def warm_up(function):
    """Three calls on a side stream, as capture wants."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)


@gpu
@calls
@pytest.mark.parametrize("regime", ["", *REGIMES])
def test_a_graph_replays_what_eager_calls_compute(monkeypatch, regime, call):
    needs_clusters(regime)
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    static = inputs(call)
    warm_up(lambda: call(*static))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call(*static)
    for _ in range(3):
        for to, values in zip(static, inputs(call), strict=True):
            to.copy_(values)
        graph.replay()
        for actual, wanted in zip(results, call(*static), strict=True):
            assert torch.equal(actual, wanted)


@gpu
@pytest.mark.filterwarnings("ignore:.*AccumulateGrad")
@pytest.mark.parametrize("kind", ["squared", "fenchel_young"])
def test_a_graph_replays_whole_training_steps(kind):
    """Model, loss with its running thresholds, backward, optimizer."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, CLASSES)).cuda()
    criterion = HyperSimplexLoss(CLASSES, tau=0.8, kind=kind).cuda()
    trained = torch.nn.ModuleList([model, criterion])
    eager = copy.deepcopy(trained)

    def make_step(model, criterion, x, target):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

        def step():
            optimizer.zero_grad(set_to_none=True)
            value = criterion(model(x), target)
            value.backward()
            optimizer.step()
            return value.detach()

        return step

    def draw():
        return torch.randn(SAMPLES, 8, device="cuda"), torch.randint(CLASSES, (SAMPLES,), device="cuda")

    x, target = draw()
    step = make_step(*trained, x, target)
    warm_up(step)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step()
    trained.load_state_dict(eager.state_dict())  # in place: the graph goes on from the same start
    plain = make_step(*eager, x, target)
    values = []
    for _ in range(5):
        for to, fresh in zip((x, target), draw(), strict=True):
            to.copy_(fresh)
        graph.replay()
        values.append(value.item())
        assert values[-1] == pytest.approx(plain().item(), rel=1e-4)
    assert len(set(values)) == 5
    for replayed, expected in zip(trained.state_dict().values(), eager.state_dict().values(), strict=True):
        torch.testing.assert_close(replayed, expected, rtol=1e-3, atol=1e-5)


# ---- on a GPU: what needs a process of its own ----

OUT_OF_RANGE = """
import torch
from hypersimplex_ext import hypersimplex_loss
x, target = torch.randn(70, 5, device="cuda"), torch.zeros(70, dtype=torch.long, device="cuda")
target[-1] = {index}
hypersimplex_loss(x, target, reduction="{reduction}")
torch.cuda.synchronize()
"""


@gpu
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("index", "fails"), [(-1, True), (5, True), (4, False), (-100, False)])
def test_class_indices_out_of_range_assert_on_the_device(reduction, index, fails):
    code = OUT_OF_RANGE.format(index=index, reduction=reduction)
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert (done.returncode != 0) == fails, done.stderr
    assert ("Assertion" in done.stdout + done.stderr) == fails
