"""The native sort against torch.sort: every length, layout, dtype and special value."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from . import native_order as native
from .cases import INF, NAN, all_types

LENGTHS = (1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000, 4096, 9000, 70_000)
LONG = 10_000  # entries; more than this is left to the compiled backends

KINDS = {
    "normal": torch.randn,
    "ties": lambda n: torch.randn(n).mul(3).round(),
    "constant": lambda n: torch.full((n,), 0.3),
    "sorted": lambda n: torch.randn(n).sort().values,
    "reversed": lambda n: torch.randn(n).sort(descending=True).values,
    "sawtooth": lambda n: (torch.arange(n) % 100).float(),
    "clustered": lambda n: 1 + 1e-9 * torch.randn(n, dtype=torch.float64),
    "clustered_masked": lambda n: torch.where(torch.rand(n) < 0.01, -1e30, 1 + 1e-6 * torch.randn(n).double()),
    "lower_halves": lambda n: 1 + torch.randint(1 << 20, (n,)).double() * 2.0**-52,
    "masked": lambda n: torch.where(torch.rand(n) < 0.5, -INF, torch.randn(n)),
    "scales": lambda n: torch.randn(n, dtype=torch.float64) * 10 ** (30 * torch.rand(n, dtype=torch.float64) - 15),
    "special": lambda n: torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, -NAN, 1e-40, -1e-40])[
        torch.randint(10, (n,))
    ],
}


def as_bits(t):
    return t.cpu().flatten().view(torch.uint8)


def assert_sorted(x, descending, dim=-1, **options):
    """Values to the bit: stable, so zeros of both signs keep their order."""
    expected = x.cpu().sort(dim=dim, descending=descending, stable=True)
    values, order = native.sort(x, descending, dim, **options)
    assert torch.equal(order.cpu().long(), expected.indices)
    assert torch.equal(as_bits(values), as_bits(expected.values))


@pytest.fixture
def longest(backend):
    return LONG if backend == "simt" else max(LENGTHS)


@all_types
@pytest.mark.parametrize("n", LENGTHS)
def test_lengths(device, longest, n, dtype):
    if n > longest:
        pytest.skip("long vectors are slow to emulate")
    for count in (1, 3) if n > 200 else (1, 3, 70):
        x = torch.randn(count, n, dtype=torch.float64).to(dtype).to(device)
        for descending in (False, True):
            assert_sorted(x, descending)
            assert_sorted(x.t().contiguous(), descending, 0, wide=True)


@all_types
@pytest.mark.parametrize("kind", KINDS)
def test_kinds(backend, device, kind, dtype):
    for n in (7, 64, 300) if backend == "simt" else (7, 64, 300, 3000, 20_000, 150_000):
        x = torch.stack([KINDS[kind](n) for _ in range(2)]).to(dtype).to(device)
        for descending in (False, True):
            assert_sorted(x, descending)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [1, 2, 10, 31, 32, 33, 100])
def test_columns(device, columns, dtype):
    for n in (5, 70, 700):
        x = torch.randn(n, columns).to(dtype).to(device)
        assert_sorted(x, True, 0)
        assert_sorted(x[:, ::3], False, 0)
        assert_sorted(x.expand(2, n, columns).contiguous(), True, 1)


def test_layouts(device):
    x = torch.randn(6, 50, 40, device=device)
    for view in (x[::2], x[:, ::3], x[..., 1::2], x.permute(2, 0, 1), x[:, :1].expand(6, 50, 40), x.flip(0)):
        for dim in range(3):
            like = torch.empty(view.shape, device=device)
            if native._layout.vectors(view, dim)[1].strides(like) is not None:
                assert_sorted(view, True, dim, like=like)
    # Results in another layout than the input.
    x = torch.randn(40, 30, device=device)
    assert_sorted(x, False, 1, like=torch.empty(30, 40, device=device).t())


def test_only_values_or_only_the_order(device):
    x = torch.randn(3, 500, device=device)
    values, order = native.sort(x)
    assert torch.equal(native.sort(x, order=False)[0], values)
    assert torch.equal(native.sort(x, values=False)[1], order)
    assert torch.equal(native.sort(x, values=False, wide=True)[1], order.long())


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty(device, shape):
    values, order = native.sort(torch.empty(shape, device=device))
    assert values.shape == order.shape == shape


@given(st.lists(st.floats(width=16), min_size=1, max_size=200), st.booleans())
def test_any_half_numbers(numbers, descending):
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert_sorted(torch.tensor(numbers, dtype=dtype), descending)


@given(st.lists(st.floats(), min_size=1, max_size=200), st.booleans())
def test_any_doubles(numbers, descending):
    assert_sorted(torch.tensor(numbers, dtype=torch.float64), descending)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_threads(backend, dtype):
    if backend != "cpu":
        pytest.skip("the CPU's threads")
    try:
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            for kind in ("normal", "ties", "clustered", "lower_halves", "masked", "special"):
                assert_sorted(KINDS[kind](200_000)[None].to(dtype), True)
            assert_sorted(torch.randn(3, 100_000).to(dtype), False)
            assert_sorted(torch.randn(10_000, 17).to(dtype), False, 0)
    finally:
        torch.set_num_threads(1)


def test_a_vector_that_is_too_long_is_an_error():
    x = torch.zeros(1, dtype=torch.float16).expand(2**32 + 1)
    with pytest.raises(ValueError, match=r"sort on the CPU takes vectors of at most 2\^32 entries, got 4294967297"):
        native.sort(x, values=False, order=False)
