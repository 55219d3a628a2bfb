"""Prepared calls: the second call of a signature gives what the first gave, and nothing of the user is remembered."""

import itertools

import pytest
import torch

from hypersimplex_ext import (
    _calls,
    hypersimplex_loss,
    isotonic_regression,
    soft_binary_argmax,
    soft_rank,
    soft_sort,
    sort,
)

CALLS = {
    "sort": lambda x, dim, flag, _: sort(x, dim, descending=flag).values,
    "regression": lambda x, dim, flag, _: isotonic_regression(x, dim=dim, increasing=flag),
    "rank": lambda x, dim, flag, strength: soft_rank(x, "l2", strength, dim, descending=flag),
    "rank kl": lambda x, dim, flag, strength: soft_rank(x, "kl", strength, dim, descending=flag),
    "sort l2": lambda x, dim, flag, strength: soft_sort(x, "l2", strength, dim, descending=flag),
    "sort kl": lambda x, dim, flag, strength: soft_sort(x, "kl", strength, dim, descending=flag),
    "projection": lambda x, dim, flag, strength: soft_binary_argmax(x, 1 + flag, strength, dim),
}
LAYOUTS = {
    "contiguous": lambda: torch.randn(3, 4, 5),
    "transposed": lambda: torch.randn(4, 5, 3).permute(2, 0, 1),
    "strided": lambda: torch.randn(3, 4, 10)[..., ::2],
    "one for all": lambda: torch.randn(1, 4, 5).expand(3, 4, 5),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_a_prepared_call_gives_what_the_first_gave(device, name, layout):
    x = LAYOUTS[layout]().to(device)
    upstream = torch.randn(3, 4, 5, device=device)
    results = []
    for _, (dtype, dim, flag, strength) in itertools.product(
        range(2), itertools.product((torch.float32, torch.float64), (0, 1, -1), (False, True), (1, 1.0, 0.3))
    ):
        leaf = x.to(dtype).requires_grad_()
        y = CALLS[name](leaf, dim, flag, strength)
        (grad,) = torch.autograd.grad(y, leaf, upstream.to(dtype))
        with torch.no_grad():
            assert torch.equal(CALLS[name](leaf, dim, flag, strength), y)
        results.append((y.detach(), grad))
    half = len(results) // 2
    for (first, first_grad), (second, second_grad) in zip(results[:half], results[half:], strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first_grad, second_grad)


@pytest.mark.parametrize("name", CALLS)
def test_prepared_calls_are_differentiated_twice_and_inside_transforms(name):
    x = torch.randn(3, 5, dtype=torch.float64)
    function = lambda x: (CALLS[name](x, 1, True, 0.7) ** 3).sum()  # noqa: E731
    function(x)  # prepares
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    along = torch.func.jvp(torch.func.grad(function), (x,), (torch.ones_like(x),))
    for found, expected in zip(along, (first, second), strict=True):
        torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["sort", "regression", "rank", "sort l2"])
def test_arguments_are_checked_in_every_call(name):
    x = torch.randn(3, 4)
    for _ in range(2):
        CALLS[name](x, 1, True, 1.0)
        with pytest.raises(TypeError):
            CALLS[name](x, True, True, 1.0)
        with pytest.raises(IndexError):
            CALLS[name](x, 2, True, 1.0)
        if "rank" in name or "l2" in name:
            with pytest.raises(TypeError):
                CALLS[name](x, 1, True, True)


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from tensors_in(part)
    elif hasattr(value, "args"):  # a partial call
        yield from tensors_in((*value.args, value.func))


def test_what_is_remembered_is_bounded_and_holds_no_data(monkeypatch):
    monkeypatch.setattr(_calls, "_KNOWN_AT_MOST", 40)
    for n in range(2, 9):
        x = torch.randn(n, 1000)
        for call in CALLS.values():
            call(x, 1, True, 1.0)
            assert 1 <= len(_calls._known) <= 40
        hypersimplex_loss(x, torch.zeros(n, dtype=torch.long))
    kept = [t for item in _calls._known.items() for t in tensors_in(item)]
    assert kept
    assert all(t.untyped_storage().nbytes() <= 8 for t in kept)
