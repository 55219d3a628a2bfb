"""Two passes over micro-batches: the memory that they take, what they refuse, and what an error leaves behind."""

import copy
import weakref

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from hypersimplex_ext.batch import two_pass_backward

from .two_pass import CLASSES, FEATURES, HIDDEN, SAMPLES, SIZES, Wrapped, assert_alike, criterion, joint, network, split


@pytest.fixture
def batch():
    return torch.randn(SAMPLES, FEATURES, dtype=torch.float64), torch.arange(SAMPLES) % CLASSES


# ---- memory ----


def test_one_graph_at_a_time(batch):
    """Of the graphs that are alive at once, none is of more than one micro-batch."""
    alive, most = set(), []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark = Mark()
            number = len(most)
            alive.add(number)
            weakref.finalize(ctx.mark, alive.discard, number)
            most.append(len(alive))
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g

    class Mark:
        pass

    model = network(Wrapped(Counted.apply))
    two_pass_backward(model, criterion(), split(*batch))
    assert most == [1] * 2 * len(SIZES)
    most.clear()
    joint(model, criterion(), split(*batch))
    assert max(most) == len(SIZES)


def test_no_logits_keep_what_they_are_cut_from(batch):
    cut = []

    def last_of_sequence(x):
        sequence = torch.stack([x] * 3, 1)
        cut.append(StorageWeakRef(sequence.untyped_storage()))
        return sequence[:, -1]

    def loss(logits, target):
        assert [memory.expired() for memory in cut] == [True] * len(SIZES)
        return torch.nn.functional.cross_entropy(logits, target)

    two_pass_backward(torch.nn.Sequential(network(), Wrapped(last_of_sequence)), loss, split(*batch))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(batch, reentrant):
    class Checkpointed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rest = torch.nn.Linear(FEATURES, FEATURES), network(torch.nn.Dropout(0.4))
            self.double()

        def forward(self, x):
            hidden = self.first(x)
            return checkpoint(self.rest, hidden.requires_grad_(), use_reentrant=reentrant)

    assert_alike(two_pass_backward, Checkpointed(), criterion(), split(*batch))


# ---- errors ----


class Returns(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.inner, self.function = network(), function

    def forward(self, x):
        return self.function(self.inner(x))


def numbered(function):
    """A function of the logits and of the number of calls before."""
    calls = iter(range(99))
    return Returns(lambda logits: function(logits, next(calls)))


def good(batch):
    return {"model": network(), "loss": criterion(), "micro_batches": split(*batch)}


X, Y = torch.ones(3, FEATURES, dtype=torch.float64), torch.tensor([0, 1, 2])
MODEL_ERRORS = {
    "a function": (lambda: lambda x: x, TypeError, "model must be a torch.nn.Module, got function"),
    "a tuple of logits": (lambda: Returns(lambda t: (t, t)), TypeError, "model must return .* one Tensor, got tuple"),
    "integers": (lambda: Returns(lambda t: t.long()), TypeError, "floating dtype, got torch.int64"),
    "no rows": (lambda: Returns(torch.sum), ValueError, r"one row per sample, got shape \[\]"),
    "fewer rows": (
        lambda: Returns(lambda t: t[1:]),
        ValueError,
        r"target of micro-batch 0 must have 6 rows, one per row of the logits, got shape \[7\]",
    ),
    "other classes": (
        lambda: numbered(lambda t, i: t if i < 2 else t[:, 1:]),
        ValueError,
        r"logits of micro-batch 2 must be torch.float64 \[n, 4\] on cpu like the first, got torch.float64 \[n, 3\]",
    ),
    "another dtype": (
        lambda: numbered(lambda t, i: t if i < 1 else t.float()),
        ValueError,
        r"logits of micro-batch 1 must be torch.float64 \[n, 4\] on cpu like the first, got torch.float32",
    ),
    "lazy": (lambda: torch.nn.LazyLinear(CLASSES), ValueError, "model must have been called"),
    "lazy buffers": (
        lambda: torch.nn.Sequential(network(), torch.nn.LazyBatchNorm1d(affine=False)),
        ValueError,
        "model must have been called",
    ),
    "frozen": (lambda: network().requires_grad_(False), ValueError, "model must have a parameter that requires a grad"),
    "passes that differ": (
        lambda: numbered(lambda t, i: t if i < len(SIZES) else t.float()),
        RuntimeError,
        r"same in both passes, got torch.float64 \[n, 4\] on cpu and torch.float32 \[n, 4\] on cpu",
    ),
}
LOSS_ERRORS = {
    "no reduction": (criterion(reduction="none"), ValueError, r"loss must return a scalar, got shape \[50, 4\]"),
    "a number": (lambda logits, target: 1.0, TypeError, "loss must return a Tensor, got float"),
    "no gradient": (lambda logits, target: logits.detach().sum(), ValueError, "gradient in the logits"),
    "another gradient": (
        lambda logits, target: torch.ones((), requires_grad=True) * 2,
        ValueError,
        "gradient in the logits",
    ),
}
MICRO_BATCH_ERRORS = {
    "none": ([], ValueError, "micro_batches must hold at least one micro-batch, got none"),
    "a pair": ((X, Y), TypeError, r"micro_batches must hold tuples \(input, target, ...\), got Tensor"),
    "a mapping": ([{"x": X, "y": Y}], TypeError, r"micro_batches must hold tuples \(input, target, ...\), got dict"),
    "no target": ([(X,)], ValueError, "micro-batch 0 must hold input and target, got 1 of them"),
    "target missing": ([(X, None)], TypeError, "target of micro-batch 0 must be a Tensor, got NoneType"),
    "weights sometimes": ([(X, Y, X[:, 0]), (X, Y)], ValueError, "micro-batch 1 must hold 3 parts .*, got 2"),
    "short target": ([(X, Y), (X, Y[:2])], ValueError, r"target of micro-batch 1 must have 3 rows.* got shape \[2\]"),
    "one weight": ([(X, Y, X[0, 0])], ValueError, r"part 2 of micro-batch 0 must have 3 rows.* got shape \[\]"),
    "another target": ([(X, Y), (X, Y.double())], ValueError, r"target of micro-batch 1 must be torch.int64 \[n\] on"),
}
ERRORS = [
    pytest.param({argument: value}, error, message, id=f"{argument}, {name}")
    for argument, table in (("model", MODEL_ERRORS), ("loss", LOSS_ERRORS), ("micro_batches", MICRO_BATCH_ERRORS))
    for name, (value, error, message) in table.items()
]


@pytest.mark.parametrize(("wrong", "error", "message"), ERRORS)
def test_errors(batch, wrong, error, message):
    if "model" in wrong:
        wrong = {"model": wrong["model"]()}
    with pytest.raises(error, match=message):
        two_pass_backward(**(good(batch) | wrong))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_switched_off(batch, mode):
    with pytest.raises(RuntimeError, match="gradients, but they are switched off"), mode():
        two_pass_backward(**good(batch))


def failing(*_):
    raise MemoryError


@pytest.mark.parametrize("where", ["model", "loss", "micro_batches"])
def test_an_error_before_the_second_pass_changes_nothing(batch, where):
    fails = [Wrapped(lambda x: failing() if len(x) == SIZES[-1] else x)] if where == "model" else []
    model = network(torch.nn.BatchNorm1d(HIDDEN), *fails)
    micro_batches = ((x, y) if where != "micro_batches" or len(y) != SIZES[2] else failing() for x, y in split(*batch))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(MemoryError):
        two_pass_backward(model, failing if where == "loss" else criterion(), micro_batches)
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_random_state_after_an_error(batch):
    class Once(torch.nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > len(SIZES) + 2:
                raise MemoryError
            return x + torch.rand_like(x)

    model = torch.nn.Sequential(network(), Once())
    torch.manual_seed(1)
    with pytest.raises(MemoryError):
        two_pass_backward(model, criterion(), split(*batch))
    after = torch.get_rng_state()
    torch.manual_seed(1)
    for size in SIZES:
        torch.rand(size, CLASSES, dtype=torch.float64)
    assert torch.equal(after, torch.get_rng_state())
