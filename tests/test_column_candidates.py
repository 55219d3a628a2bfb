"""Many classes, few samples each: the loss from the tops of its columns, and where those cannot be had."""

import pytest
import torch

from hypersimplex_ext import hypersimplex_loss

from .cases import INF
from .test_loss import IGNORED, KINDS, assert_loss

SAMPLES, CLASSES = 2053, 389  # several panels of columns, the last one not full

INPUTS = {
    "normal": lambda x: x,
    "far from zero": lambda x: x + 1e4,
    "tied": lambda x: x.round(),
    "heavy-tailed": lambda x: x.exp() ** 4,  # the sample misleads
    "short-tailed": lambda x: x.sigmoid().round(),
    "sorted": lambda x: x.sort(0).values,  # so does a sample of a trend
    "constant": torch.zeros_like,
    "masked": lambda x: x.masked_fill(x > 0.5, -1e9),
    "-inf": lambda x: x.masked_fill(x > 0.5, -INF),
}


@pytest.fixture(autouse=True)
def solver_runs(used):
    """Every test here is one of column_candidates.h, though it may leave some panels to the general search."""
    yield
    assert "column_candidates" in used()


def make(name="normal", dtype=torch.float32):
    torch.manual_seed(0)
    x = INPUTS[name](torch.randn(SAMPLES, CLASSES, dtype=torch.float64)).to(dtype)
    return x, torch.randint(CLASSES, (SAMPLES,))


COMPARABLE = ("normal", "far from zero", "sorted", "masked", "-inf")  # what the reference takes, away from kinks


@pytest.mark.parametrize("tau", [1e-2, 1.0, 30.0])
@pytest.mark.parametrize("name", COMPARABLE)
def test_squared(name, tau):
    assert_loss(*make(name), tau=tau, kind="squared")


@pytest.mark.parametrize("tau", [1.0, 30.0])
@pytest.mark.parametrize("name", ["normal", "sorted", "masked"])
def test_fenchel_young(name, tau):
    assert_loss(*make(name), tau=tau, kind="fenchel_young")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", INPUTS)
def test_wide_equals_narrow(name, dtype):
    """A class's loss does not depend on how many others lie beside it: columns taken one by one go another way."""
    x, target = make(name, dtype)
    x.requires_grad_()
    wide = hypersimplex_loss(x, target, reduction="sum")
    (grad,) = torch.autograd.grad(wide, x)
    leaf = x.detach().T.contiguous().requires_grad_()
    narrow = sum(hypersimplex_loss(leaf[c], (target == c).to(dtype), reduction="sum") for c in range(CLASSES))
    (expected,) = torch.autograd.grad(narrow, leaf)
    torch.testing.assert_close(wide, narrow, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, expected.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1},
        {"label_smoothing": 1.0},
        {"weight": True},
        {"sample_weight": True},
        {"k": 0.01},
        {"k": 7},
    ],
    ids=str,
)
def test_options(options, kind):
    x, target = make()
    target[::5] = IGNORED
    options = dict(options)
    if "weight" in options:
        options["weight"] = torch.rand(CLASSES)
    if "sample_weight" in options:
        options["sample_weight"] = torch.rand(SAMPLES)
    assert_loss(x, target, options.pop("k", "targets"), kind=kind, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype):
    assert_loss(*make(dtype=dtype), kind="squared")


def test_one_class_in_the_majority():
    """Its mass is not small: the panel it lies in is solved the general way, with the same results."""
    x, target = make()
    target[: SAMPLES // 2] = 3
    assert_loss(x, target, kind="squared")


@pytest.mark.parametrize("value", [float("nan"), INF])
def test_special_values_stay_in_their_class(value):
    x, target = make()
    clean = hypersimplex_loss(x, target, reduction="none").sum(0)
    x[5, 20] = value
    terms = hypersimplex_loss(x, target, reduction="none").sum(0)
    total = hypersimplex_loss(x, target, reduction="sum")
    assert terms[20].isnan() if value != INF else terms[20].isfinite()
    torch.testing.assert_close(total, terms.sum(), equal_nan=True, rtol=1e-5, atol=1e-6)
    others = torch.arange(CLASSES) != 20
    assert torch.equal(terms[others], clean[others])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(set_threads, threads):
    x, target = make()
    x.requires_grad_()
    results = []
    for count in (1, threads):
        set_threads(count)
        value = hypersimplex_loss(x, target)
        results.append((value, *torch.autograd.grad(value, x)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
