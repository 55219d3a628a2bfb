"""Errors: each names the argument, what was expected and what came."""

import itertools
import re
import warnings

import pytest
import torch

from hypersimplex_ext import _calls, _loss_ops, binary_argmax, hypersimplex_loss, soft_binary_argmax
from hypersimplex_ext.nn import HyperSimplexLoss, SoftBinaryArgmax

X = torch.randn(5, 4)
LABELS = torch.arange(5) % 4
NAN = float("nan")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], 1), TypeError, "input must be a Tensor, got list"),
        ((torch.arange(4), 1), TypeError, "input must be float16, bfloat16, float32 or float64, got torch.int64"),
        ((X > 0, 1), TypeError, "got torch.bool"),
        ((X.to(torch.complex64), 1), TypeError, "got torch.complex64"),
        ((torch.tensor(1.0), 1), ValueError, "input must have at least one dimension"),
        ((X, 5), ValueError, "k must lie in [0, 4], the number of entries, got 5"),
        ((X, -1), ValueError, "k must lie in [0, 4], the number of entries, got -1"),
        ((X, NAN), ValueError, "k must lie in [0, 4], the number of entries, got nan"),
        ((X, True), TypeError, "k must be a real number or a Tensor, got bool"),
        ((X, "2"), TypeError, "k must be a real number or a Tensor, got str"),
        ((X, 1j), TypeError, "k must be a real number or a Tensor, got complex"),
        ((X, None), TypeError, "k must be a real number or a Tensor, got NoneType"),
        ((X, torch.tensor([1.0, 2, 3, 4, 5.5])), ValueError, "k must lie in [0, 4], got 5.5"),
        ((X, torch.tensor(NAN)), ValueError, "k must lie in [0, 4], got nan"),
        ((X, torch.tensor(True)), TypeError, "k must be real, got torch.bool"),
        ((X, torch.tensor(1j)), TypeError, "k must be real, got torch.complex64"),
        (
            (X, torch.ones(4)),
            ValueError,
            "k must broadcast to [5], the shape of input without dimension 1, got shape [4]",
        ),
        ((X, torch.ones(1, 5)), ValueError, "k must broadcast to [5]"),
        ((X, torch.ones(1, device="meta")), ValueError, "k must be on cpu like input, got meta"),
        ((X, 1, 0.0), ValueError, "tau must lie in (0, inf), got 0.0"),
        ((X, 1, -1), ValueError, "tau must lie in (0, inf), got -1"),
        ((X, 1, NAN), ValueError, "tau must lie in (0, inf), got nan"),
        ((X, 1, float("inf")), ValueError, "tau must lie in (0, inf), got inf"),
        ((X, 1, True), TypeError, "tau must be a real number or a Tensor, got bool"),
        ((X, 1, torch.tensor([1.0, 1, 0, 1, 1])), ValueError, "tau must lie in (0, inf), got 0"),
        ((X, 1, torch.ones(4)), ValueError, "tau must broadcast to [5]"),
        ((X, 1, 1.0, 2), IndexError, "dim must lie in [-2, 1] for an input with 2 dimensions, got 2"),
        ((X, 1, 1.0, -3), IndexError, "dim must lie in [-2, 1] for an input with 2 dimensions, got -3"),
    ],
)
def test_projection(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        soft_binary_argmax(*arguments)


def _nested(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the layout is a prototype, says PyTorch
        return torch.nested.nested_tensor(list(x))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (torch.Tensor.to_sparse, "torch.sparse_coo"),
        (torch.Tensor.to_mkldnn, "torch._mkldnn"),
        (_nested, "nested"),
    ],
)
def test_tensors_that_are_not_dense(make, kind):
    soft_binary_argmax(X, 1)  # what is remembered of X must not serve for these
    hypersimplex_loss(X, LABELS, weight=torch.ones(4))
    with pytest.raises(TypeError, match=f"input must be a dense Tensor, got {kind}"):
        soft_binary_argmax(make(X), 1)
    with pytest.raises(TypeError, match=f"input must be a dense Tensor, got {kind}"):
        hypersimplex_loss(make(X), LABELS)
    with pytest.raises(TypeError, match=f"target must be a dense Tensor, got {kind}"):
        hypersimplex_loss(X, make(X.softmax(1)))
    with pytest.raises(TypeError, match=f"k must be a dense Tensor, got {kind}"):
        soft_binary_argmax(X, make(torch.ones(5, 1)))
    with pytest.raises(TypeError, match=f"weight must be a dense Tensor, got {kind}"):
        hypersimplex_loss(X, LABELS, weight=make(torch.ones(4, 1)))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(4), TypeError, "mask must be a bool Tensor, got torch.float32"),
        ([True], TypeError, "mask must be a bool Tensor, got list"),
        (
            torch.ones(5, 3, dtype=torch.bool),
            ValueError,
            "mask must broadcast to input's shape [5, 4], got shape [5, 3]",
        ),
        (torch.ones(2, 5, 4, dtype=torch.bool), ValueError, "mask must broadcast to input's shape [5, 4]"),
        (torch.ones(5, 4, dtype=torch.bool, device="meta"), ValueError, "mask must be on cpu like input, got meta"),
    ],
)
def test_mask(mask, error, message):
    with pytest.raises(error, match=re.escape(message)):
        soft_binary_argmax(X, 1, mask=mask)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X.long(), 1), TypeError, "input must be float16"),
        ((X, 1.0), TypeError, "k must be an integer, got float"),
        ((X, True), TypeError, "k must be an integer, got bool"),
        ((X, 5), ValueError, "k must lie in [0, 4], the number of entries, got 5"),
        ((X, 1, 2), IndexError, "dim must lie in [-2, 1]"),
    ],
)
def test_binary_argmax(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        binary_argmax(*arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": X.long()}, TypeError, "input must be float16"),
        ({"input": torch.tensor(1.0)}, ValueError, "input must have at least one dimension"),
        ({"target": [0] * 5}, TypeError, "target must be a Tensor, got list"),
        ({"target": LABELS.int()}, TypeError, "target must hold class indices as int64 or uint8, got torch.int32"),
        ({"target": LABELS.float()}, TypeError, "target must hold class indices as int64 or uint8, got torch.float32"),
        ({"target": X.to(torch.complex64)}, TypeError, "target must be real, got torch.complex64"),
        (
            {"target": LABELS[:4]},
            ValueError,
            "class indices of shape [5] or dense of shape [5, 4] for an input of shape [5, 4], got shape [4]",
        ),
        (
            {"input": X[:, 0], "target": LABELS[:4]},
            ValueError,
            "target must be dense of shape [5] for an input of shape [5], got shape [4]",
        ),
        ({"target": LABELS.to("meta")}, ValueError, "target must be on cpu like input, got meta"),
        ({"k": "target"}, ValueError, "k must be one of 'targets', got 'target'"),
        ({"k": True}, TypeError, "k must be a real number, a Tensor or 'targets', got bool"),
        ({"k": 1.5}, ValueError, "k must lie in [0, 1], got 1.5"),
        ({"k": NAN}, ValueError, "k must lie in [0, 1], got nan"),
        ({"k": 6}, ValueError, "k must lie in [0, 5], the number of entries, got 6"),
        ({"k": None}, TypeError, "k must be a real number, a Tensor or 'targets', got NoneType"),
        ({"k": torch.ones(5)}, ValueError, "k must broadcast to [4], the number of classes, got shape [5]"),
        ({"k": torch.tensor([1.0, 2, 3, 6])}, ValueError, "k must lie in [0, 5], got 6"),
        ({"tau": 0}, ValueError, "tau must lie in (0, inf), got 0"),
        ({"tau": torch.tensor([1.0, 1, 1, -1])}, ValueError, "tau must lie in (0, inf), got -1"),
        ({"tau": torch.ones(3)}, ValueError, "tau must broadcast to [4], the number of classes, got shape [3]"),
        ({"kind": "hinge"}, ValueError, "kind must be one of 'squared', 'fenchel_young', got 'hinge'"),
        ({"reduction": "avg"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
        ({"weight": torch.ones(5)}, ValueError, "weight must have shape [4], got [5]"),
        ({"weight": [1.0] * 4}, TypeError, "weight must be a Tensor, got list"),
        ({"weight": torch.ones(4) > 0}, TypeError, "weight must be real, got torch.bool"),
        ({"sample_weight": torch.ones(4)}, ValueError, "sample_weight must have shape [5], got [4]"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing must lie in [0, 1], got 1.5"),
        ({"label_smoothing": "1"}, TypeError, "label_smoothing must be a real number, got str"),
        ({"ignore_index": 1.0}, TypeError, "ignore_index must be an integer, got float"),
    ],
)
def test_loss(changes, error, message):
    for reduction in ("mean", "none"):
        with pytest.raises(error, match=re.escape(message)):
            hypersimplex_loss(**({"input": X, "target": LABELS, "reduction": reduction} | changes))


def test_what_passed_once_is_told_from_what_must_not():
    """Settings that passed are remembered, and 1 == 1.0 == True."""
    for _ in range(2):
        whole, one = hypersimplex_loss(X, LABELS, 1.0), hypersimplex_loss(X, LABELS, 1)
        assert whole != one
        with pytest.raises(TypeError, match="k must be a real number, a Tensor or 'targets', got bool"):
            hypersimplex_loss(X, LABELS, True)
        hypersimplex_loss(X, LABELS, label_smoothing=1, ignore_index=0)
        with pytest.raises(TypeError, match="label_smoothing must be a real number, got bool"):
            hypersimplex_loss(X, LABELS, label_smoothing=True, ignore_index=0)
        with pytest.raises(TypeError, match="ignore_index must be an integer, got bool"):
            hypersimplex_loss(X, LABELS, label_smoothing=1, ignore_index=False)
        with pytest.raises(TypeError, match="k must be a real number, a Tensor or 'targets', got list"):
            hypersimplex_loss(X, LABELS, [1])
        with pytest.raises(TypeError, match="target must hold class indices"):
            hypersimplex_loss(X, LABELS.int())
        with pytest.raises(ValueError, match="got shape \\[4\\]"):
            hypersimplex_loss(X, LABELS[:4])


def test_weights_are_looked_at_in_every_call():
    for _ in range(2):
        for name, size in (("weight", 4), ("sample_weight", 5)):
            for value in (torch.rand(size), torch.rand(size, dtype=torch.float64), torch.rand(2, size).T[:, 0]):
                found = hypersimplex_loss(X, LABELS, **{name: value})
                weights = value if name == "weight" else value[:, None]
                terms = hypersimplex_loss(X, LABELS, reduction="none") * weights
                torch.testing.assert_close(found, terms.sum() / weights.expand(5, 4).sum(), check_dtype=False)
            with torch.no_grad():
                hypersimplex_loss(X, LABELS, **{name: torch.rand(size).requires_grad_()})
            value = torch.rand(size).requires_grad_()
            assert torch.autograd.grad(hypersimplex_loss(X, LABELS, **{name: value}), value)[0].abs().sum() > 0
            for wrong in (torch.rand(size + 1), torch.rand(1, size), torch.ones(size, dtype=torch.bool)):
                with pytest.raises((TypeError, ValueError), match=f"{name} must"):
                    hypersimplex_loss(X, LABELS, **{name: wrong})


def test_what_is_remembered_is_bounded_and_holds_nothing_of_the_user(monkeypatch):
    monkeypatch.setattr(_calls, "_known", known := {})
    monkeypatch.setattr(_calls, "_KNOWN_AT_MOST", 3)
    for n in range(1, 9):
        x = torch.randn(n, 3)
        hypersimplex_loss(x, torch.zeros(n, dtype=torch.long))
        hypersimplex_loss(x, torch.zeros(n, dtype=torch.long), torch.ones(3))
        hypersimplex_loss(x, torch.zeros(n, dtype=torch.long), tau=torch.ones(3), weight=torch.ones(3))
        soft_binary_argmax(x, 1)
        soft_binary_argmax(x, 1, torch.tensor(1.0))
        assert 1 <= len(known) <= 3
    settings = [value for call in known.values() if isinstance(call, _loss_ops.LossCall) for value in call.settings]
    assert not any(isinstance(value, torch.Tensor) for value in (*settings, *itertools.chain(*known)))


def test_what_is_remembered_tells_calls_apart():
    x = torch.randn(4, 3, dtype=torch.bfloat16)
    labels = torch.zeros(4, dtype=torch.long)
    for _ in range(2):
        assert hypersimplex_loss(x, labels).dtype == torch.bfloat16
        assert soft_binary_argmax(x, 1).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert hypersimplex_loss(x, labels).dtype == torch.float32
            assert soft_binary_argmax(x, 1).dtype == torch.float32
        with pytest.raises(TypeError, match="k must be"):
            soft_binary_argmax(x, True)
        with pytest.raises(TypeError, match="k must be"):
            soft_binary_argmax(x, [1])
        assert ((soft_binary_argmax(x, 1, dim=0).sum(0) - 1).abs() < 0.02).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["squared", "fenchel_young"])
@pytest.mark.parametrize(("index", "place"), [(4, 0), (12, 3), (-1, 4), (-100, 2)])
def test_class_index_out_of_range(reduction, kind, index, place):
    """Worded as torch.nn.functional.cross_entropy words it."""
    target = LABELS.clone()
    target[place] = index
    with pytest.raises(IndexError, match=re.escape(f"Target {index} is out of bounds.")):
        hypersimplex_loss(X, target, kind=kind, reduction=reduction, ignore_index=2)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: HyperSimplexLoss(0), ValueError, "num_classes must be at least 1 or None, got 0"),
        (lambda: HyperSimplexLoss(2.0), TypeError, "num_classes must be an integer, got float"),
        (lambda: HyperSimplexLoss(3, tau=-1.0), ValueError, "tau must lie in (0, inf), got -1.0"),
        (lambda: HyperSimplexLoss(3, kind="l2"), ValueError, "kind must be one of"),
        (lambda: HyperSimplexLoss(3, reduction="avg"), ValueError, "reduction must be one of"),
        (lambda: HyperSimplexLoss(3, label_smoothing=-0.1), ValueError, "label_smoothing must lie in [0, 1], got -0.1"),
        (lambda: HyperSimplexLoss(3, momentum=0.0), ValueError, "momentum must lie in (0, 1] or be None, got 0.0"),
        (lambda: HyperSimplexLoss(3, momentum="0.1"), TypeError, "momentum must be a real number"),
        (lambda: HyperSimplexLoss(3, memory=-1), ValueError, "memory must be at least 0, got -1"),
        (lambda: HyperSimplexLoss(3, memory=1.5), TypeError, "memory must be an integer, got float"),
        (
            lambda: HyperSimplexLoss(3, memory=5, reduction="none"),
            ValueError,
            "reduction must be 'mean' or 'sum' with a memory, got 'none'",
        ),
        (
            lambda: HyperSimplexLoss(4, memory=5)(X, LABELS, torch.ones(4)),
            ValueError,
            "sample_weight must have shape [5], got [4]",
        ),
        (lambda: HyperSimplexLoss(3)(X, LABELS), ValueError, "input must have 3 classes, got shape [5, 4]"),
        (lambda: HyperSimplexLoss(3).predict(X), ValueError, "input must have 3 classes, got shape [5, 4]"),
        (lambda: HyperSimplexLoss(3).scores(X.long()), TypeError, "input must be float16"),
        (lambda: HyperSimplexLoss().predict(X), ValueError, "the number of classes is not known yet"),
        (
            lambda: HyperSimplexLoss(3).fold_into(torch.nn.ReLU()),
            TypeError,
            "linear must be a layer with weight and bias",
        ),
        (
            lambda: HyperSimplexLoss(3).fold_into(torch.nn.Linear(2, 4)),
            ValueError,
            "linear must have 3 outputs, got weight of shape [4, 2]",
        ),
        (
            lambda: HyperSimplexLoss(3).calibrate(X[:, :3], iter([])),
            TypeError,
            "target must be a Tensor, got list_iterator",
        ),
        (
            lambda: HyperSimplexLoss(3).calibrate(torch.nn.Identity(), LABELS),
            TypeError,
            "model must be a Tensor of logits beside targets, got Identity",
        ),
        (
            lambda: HyperSimplexLoss(3).calibrate(torch.nn.Identity(), [X]),
            TypeError,
            "loader must yield tuples (input, target), got Tensor",
        ),
        (
            lambda: HyperSimplexLoss(3).calibrate(torch.nn.Identity(), []),
            ValueError,
            "loader must yield at least one batch, got none",
        ),
        (lambda: HyperSimplexLoss(3).calibrate(X, LABELS), ValueError, "input must have 3 classes, got shape [5, 4]"),
        (lambda: SoftBinaryArgmax("1"), TypeError, "k must be a real number or a Tensor, got str"),
        (lambda: SoftBinaryArgmax(1, 0.0), ValueError, "tau must lie in (0, inf), got 0.0"),
    ],
)
def test_modules(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("classes", "labels", "error", "message"),
    [
        (1, [1, -1, 1, 1, -1], ValueError, "target must lie in [0, 1], got -1"),
        (1, [1, 2, 1, 2, 1], ValueError, "target must lie in [0, 1], got 2"),
        (3, [1, 2, 3, 1, 2], IndexError, "Target 3 is out of bounds."),
        (3, [1, -1, 1, 1, -1], IndexError, "Target -1 is out of bounds."),
        (
            3,
            [1.0, 2.0, 0.0, 1.0, 2.0],
            TypeError,
            "target must hold class indices as int64 or uint8, got torch.float32",
        ),
    ],
)
def test_labels_of_other_conventions(train, classes, labels, error, message):
    module = HyperSimplexLoss(classes).train(train)
    with pytest.raises(error, match=re.escape(message)):
        module(X[:, :classes], torch.tensor(labels))
