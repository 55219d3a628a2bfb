"""Two passes over micro-batches: the value and the gradients of the whole batch, and nothing done twice."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hypersimplex_ext.batch import two_pass_backward

from .cases import assert_close
from .two_pass import (
    CLASSES,
    FEATURES,
    HIDDEN,
    SAMPLES,
    SIZES,
    Wrapped,
    assert_alike,
    criterion,
    gradients,
    joint,
    network,
    split,
    whole,
)

devices = pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))],
)


@pytest.fixture
def batch():
    return torch.randn(SAMPLES, FEATURES, dtype=torch.float64), torch.arange(SAMPLES) % CLASSES


# ---- value and gradients ----


LOSSES = {
    "squared": criterion(),
    "fenchel-young": criterion(kind="fenchel_young", k=0.3, label_smoothing=0.1),
    "sum": criterion(reduction="sum"),
    "cross-entropy": torch.nn.CrossEntropyLoss(),
    "function": lambda logits, target: torch.nn.functional.multi_margin_loss(logits, target),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("sizes", [SIZES, [SAMPLES], [1] * SAMPLES], ids=["some", "one", "single samples"])
def test_equals_one_batch(batch, loss, sizes):
    loss = loss if isinstance(loss, torch.nn.Module) else Wrapped(loss)
    assert_alike(two_pass_backward, network(), loss, split(*batch, sizes=sizes), due=whole)


def test_a_plain_function_as_loss(batch):
    model = network()
    value = two_pass_backward(model, torch.nn.functional.cross_entropy, split(*batch))
    (due,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(batch[0]), batch[1]), model[0].weight)
    assert_close(model[0].weight.grad, due, 1e-12)
    assert value.shape == ()
    assert not value.requires_grad


def plain(model, loss, micro_batches):
    """Accumulated losses of the micro-batches, each projected on its own."""
    for x, y in micro_batches:
        (loss(model(x), y) * len(y) / SAMPLES).backward()


def test_adding_up_the_losses_of_micro_batches_is_another_loss(batch):
    """Or nothing here would tell one from the other."""
    losses = criterion(), criterion()
    models = [network()]
    models.append(copy.deepcopy(models[0]))
    plain(models[0], losses[0], split(*batch))
    two_pass_backward(models[1], losses[1], split(*batch))
    assert torch.cosine_similarity(gradients(models[0]), gradients(models[1]), 0) < 0.99


def test_further_arguments_of_the_loss(batch):
    micro_batches = split(*batch, torch.rand(SAMPLES, dtype=torch.float64))
    assert_alike(two_pass_backward, network(), criterion(), micro_batches, due=whole)


def test_logits_with_further_dimensions():
    x, labels = torch.randn(SAMPLES, 3, 5, 5, dtype=torch.float64), torch.randint(CLASSES, (SAMPLES, 4, 4))
    model = torch.nn.Conv2d(3, CLASSES, 2, dtype=torch.float64)
    assert_alike(two_pass_backward, model, criterion(), split(x, labels), due=whole)


def test_gradients_are_added(batch):
    model, loss = network(), criterion()
    two_pass_backward(model, loss, split(*batch))
    once = gradients(model, loss)
    two_pass_backward(model, loss, split(*batch))
    assert_close(gradients(model, loss), 2 * once, 1e-12)


def test_a_part_of_the_model_is_trained(batch):
    model, loss = network(), criterion()
    model[0].requires_grad_(False)
    due = copy.deepcopy((model, loss))
    two_pass_backward(model, loss, split(*batch))
    whole(*due, split(*batch))
    assert_close(gradients(model[2]), gradients(due[0][2]), 1e-10)
    assert model[0].weight.grad is None


def test_gradients_in_inputs_and_targets(batch):
    """By micro-batches that are leaves."""
    model = network()
    soft = torch.rand(SAMPLES, CLASSES, dtype=torch.float64)
    tensors = [t.requires_grad_() for x, y in split(batch[0], soft) for t in (x.clone(), y.clone())]
    grads = []
    for route in (two_pass_backward, joint):
        route(model, torch.nn.functional.cross_entropy, list(zip(tensors[::2], tensors[1::2], strict=True)))
        grads.append(torch.cat([t.grad.flatten() for t in tensors]))
        for t in tensors:
            t.grad = None
    assert_close(*grads, 1e-10)


# ---- what is given ----


class Sum(torch.nn.Module):
    """Of two inputs, the second of them optional."""

    def __init__(self):
        super().__init__()
        self.first, self.second = network(), network()

    def forward(self, a, b=None):
        return self.first(a) if b is None else self.first(a) - self.second(b)


@pytest.mark.parametrize("packed", [lambda a, b: (a, b), lambda a, b: [a, b], lambda a, b: {"b": b, "a": a}])
def test_several_inputs(batch, packed):
    a, labels = batch
    b = torch.randn_like(a)
    models = [Sum()]
    models.append(copy.deepcopy(models[0]))
    loss = criterion()
    two_pass_backward(models[0], loss, [(packed(p, q), y) for p, q, y in split(a, b, labels)])
    loss(models[1](a, b), labels).backward()
    assert_close(gradients(models[0]), gradients(models[1]), 1e-10)


def test_an_object_of_its_own_is_the_one_input(batch):
    class Record:
        def __init__(self, x):
            self.x = x

    model = network()
    reader = Wrapped(lambda record: model(record.x))
    reader.model = model
    two_pass_backward(reader, criterion(), [(Record(x), y) for x, y in split(*batch)])
    due = copy.deepcopy(model)
    due.zero_grad()
    whole(due, criterion(), split(*batch))
    assert_close(gradients(model), gradients(due), 1e-10)


def test_a_generator(batch):
    model, due = copy.deepcopy((network(),) * 2)
    two_pass_backward(model, criterion(), (pair for pair in split(*batch)))
    whole(due, criterion(), split(*batch))
    assert_close(gradients(model), gradients(due), 1e-10)


def test_a_loader_is_gone_through_once(batch):
    """It would shuffle again, and each row of the gradient would meet another sample."""
    loader = DataLoader(TensorDataset(*batch), batch_size=8, shuffle=True)
    drawn = []

    class Loader:
        def __iter__(self):
            drawn.append(True)
            return iter(loader)

    model, due = copy.deepcopy((network(),) * 2)
    two_pass_backward(model, criterion(), Loader())
    whole(due, criterion(), split(*batch))
    assert_close(gradients(model), gradients(due), 1e-10)
    assert len(drawn) == 1


def test_what_yields_micro_batches_runs_with_gradients(batch):
    def embedded():
        for x, y in split(*batch):
            yield table(x), y

    table, model = torch.nn.Linear(FEATURES, FEATURES, dtype=torch.float64), network()
    two_pass_backward(model, criterion(), embedded())
    found = gradients(table)
    table.zero_grad()
    whole(model, criterion(), split(table(batch[0]), batch[1]))
    assert_close(found, gradients(table), 1e-10)


# ---- random numbers ----


class Drawing(torch.nn.Module):
    """A loss that draws, and the modules that it holds."""

    def __init__(self):
        super().__init__()
        self.dropout, self.inner = torch.nn.Dropout(0.2), criterion()

    def forward(self, logits, target):
        return self.inner(self.dropout(logits), target)


@devices
def test_dropout(batch, device):
    model, loss = network(torch.nn.Dropout(0.4), device=device), Drawing().to(device)
    assert_alike(two_pass_backward, model, loss, split(*(t.to(device) for t in batch)))


def test_random_numbers_between_the_forward_passes(batch):
    """As augmentation draws them."""

    class Augmented:
        def __iter__(self):
            for x, y in split(*batch):
                yield x + torch.randn_like(x), y

    assert_alike(two_pass_backward, network(torch.nn.Dropout(0.4)), criterion(), Augmented())


# ---- buffers ----


class Drift(torch.nn.Module):
    """Shifts by a buffer that it moves in every call, in place or by another tensor."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("shift", torch.zeros(HIDDEN, dtype=torch.float64))

    def forward(self, x):
        step = x.detach().mean(0)
        if self.in_place:
            self.shift.mul_(0.5).add_(step)
        else:
            self.shift = 0.5 * self.shift + step
        return x + self.shift


STATEFUL = {
    "batch-norm": lambda: torch.nn.BatchNorm1d(HIDDEN),
    "batch-norm by plain average": lambda: torch.nn.BatchNorm1d(HIDDEN, momentum=None),
    "spectral norm": lambda: torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(HIDDEN, HIDDEN)),
    "in place": lambda: Drift(True),
    "replaced": lambda: Drift(False),
}


@pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)
def test_buffers_move_once(batch, make):
    """And the second pass sees those that the first one saw."""
    assert_alike(two_pass_backward, network(make()), criterion(), split(*batch))


def test_evaluation_mode_stays(batch):
    model = network(torch.nn.BatchNorm1d(HIDDEN), torch.nn.Dropout(0.5)).eval()
    assert_alike(two_pass_backward, model, criterion(), split(*batch), due=whole)
    assert not any(module.training for module in model.modules())


def test_thresholds_of_the_loss_move_once(batch):
    model, loss = network(), criterion()
    two_pass_backward(model, loss, split(*batch))
    assert loss.num_batches_tracked.tolist() == [1] * CLASSES
    due = criterion()
    due(model(batch[0]), batch[1])
    assert_close(loss.running_threshold, due.running_threshold, 1e-12)


def test_buffers_that_model_and_loss_share(batch):
    """A model that shifts its logits by the thresholds of the loss."""
    loss = criterion()
    shift = Wrapped(lambda logits: logits - loss.running_threshold)
    shift.thresholds = loss
    model = torch.nn.Sequential(network(), shift)
    two_pass_backward(model, loss, split(*batch))
    assert loss.num_batches_tracked.tolist() == [1] * CLASSES
    assert loss.running_threshold.all()


# ---- mixed precision ----


class Wide(torch.nn.Linear):
    """A layer that stays in single precision under autocast."""

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def half_network(last):
    return torch.nn.Sequential(torch.nn.Linear(FEATURES, HIDDEN), torch.nn.Tanh(), last)


def test_autocast(batch):
    """The second pass does not use weights that were cast without a graph."""
    x, labels = batch[0].float(), batch[1]
    model, loss = half_network(torch.nn.Linear(HIDDEN, CLASSES)), torch.nn.CrossEntropyLoss()
    due = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            assert model(x).dtype == torch.bfloat16
        value = two_pass_backward(model, loss, split(x, labels))
    value_due = whole(due, loss, split(x, labels))
    assert value.dtype == torch.float32
    assert_close(value, value_due, 1e-2)
    for p, d in zip(model.parameters(), due.parameters(), strict=True):
        assert p.grad.dtype == torch.float32
        assert_close(p.grad, d.grad, 3e-2)
        assert not torch.equal(p.grad, d.grad)


def test_backward_is_outside_of_autocast(batch):
    """What model and loss compute in single precision has gradients of single precision."""

    def loss(logits, target):
        return torch.nn.functional.cross_entropy(head(logits), target)

    x, labels = batch[0].float(), batch[1]
    model, head = half_network(Wide(HIDDEN, CLASSES)), Wide(CLASSES, CLASSES)
    due = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        two_pass_backward(model, loss, split(x, labels))
        found = gradients(model[2], head)
        head.zero_grad()
        value = loss(torch.cat([due(rows) for rows in x.split(SIZES)]), labels)
    value.backward()
    assert_close(found, gradients(due[2], head), 1e-6)


def test_gradient_scaler(batch):
    def scaled(model, loss, micro_batches):
        return two_pass_backward(model, loss, micro_batches, scaler=scaler)

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    assert_alike(scaled, network(), criterion(), split(*batch), due=lambda *a: joint(*a, scaler=scaler))
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = copy.deepcopy(model)
    scaled(model, criterion(), split(*batch))
    scaler.step(optimizer)
    scaler.update()
    whole(before, criterion(), split(*batch))
    torch.optim.SGD(before.parameters(), 0.1).step()
    for p, d in zip(model.parameters(), before.parameters(), strict=True):
        assert_close(p.detach(), d.detach(), 1e-12)


# ---- compiled models ----


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch about itself
def test_compiled_model(batch):
    def two_compiled(model, loss, micro_batches):
        return two_pass_backward(torch.compile(model, backend="aot_eager"), loss, micro_batches)

    model = network(torch.nn.BatchNorm1d(HIDDEN), torch.nn.Dropout(0.4))
    assert_alike(two_compiled, model, criterion(), split(*batch))
