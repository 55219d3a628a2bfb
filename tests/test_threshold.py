"""The projection: every length, layout, dtype and distribution against the float64 reference, and its promises."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hypersimplex_ext import _layout, binary_argmax, reference, soft_binary_argmax

from .cases import (
    DISTRIBUTIONS,
    INF,
    LENGTHS,
    NAN,
    TEMPERATURES,
    all_types,
    assert_close,
    assert_projection,
    draw,
    masses,
    numbers,
)

LONG = 10_000  # entries; more than this is left to the compiled backends


@pytest.mark.parametrize(
    ("tau", "expected"), [(0.01, (0, 1, 0)), (1, (0, 0.8, 0.2)), (10, (0.25333, 0.40333, 0.34333))]
)
def test_illustration_of_the_paper(device, tau, expected):
    y = soft_binary_argmax(torch.tensor([0.1, 1.6, 1.0], device=device), 1, tau)
    torch.testing.assert_close(y.cpu(), torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-5)


@all_types
@pytest.mark.parametrize("n", LENGTHS)
def test_lengths(backend, device, n, dtype):
    if backend == "simt" and n > LONG:
        pytest.skip("long vectors are slow to emulate; test_cuda forces their kernels on short ones")
    for count in (1, 3, 17) if n <= LONG else (1,):
        x = torch.randn(count, n, dtype=torch.float64).to(dtype).to(device)
        for k in (1, n / 2, n - 1 if n > 1 else 0.25):
            assert_projection(soft_binary_argmax(x, k), x, k)
            columns = x.t().contiguous()
            assert_projection(soft_binary_argmax(columns, k, dim=0), columns, k, dim=0)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions(backend, device, name):
    for n in (17, 64, 1000) if backend == "simt" else (2, 17, 64, 1000, 5000):
        x, tau = draw(name, n)
        x = torch.stack([x, x.flip(0), x[torch.randperm(n)]]).to(device)
        columns = x.t().contiguous()
        for k in masses(n):
            assert_projection(soft_binary_argmax(x, k, tau), x, k, tau)
            assert_projection(soft_binary_argmax(columns, k, tau, dim=0), columns, k, tau, dim=0)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_long_vectors(backend, device, name):
    if backend == "simt":
        pytest.skip("long vectors are slow to emulate")
    x, tau = draw(name, 150_000)
    for k in (1, 5, 75_000, 149_999.5):
        assert_projection(soft_binary_argmax(x.to(device), k, tau), x, k, tau)


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 10, 15, 16, 17, 31, 32, 33, 48, 100])
@pytest.mark.parametrize("n", [5, 70, 700])
def test_columns(device, n, columns):
    x = torch.randn(n, columns, device=device)
    k = torch.rand(columns, device=device) * n
    y = soft_binary_argmax(x, k, dim=0)
    assert_projection(y, x, k.double().cpu(), dim=0)
    # Columns side by side do not see one another.
    alone = torch.cat([soft_binary_argmax(x[:, i : i + 1], k[i : i + 1], dim=0) for i in range(columns)], 1)
    assert_close(y, alone, 1e-6)


LAYOUTS = {
    "contiguous": lambda x: x,
    "permuted": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "reversed_dimensions": lambda x: x.permute(2, 1, 0).contiguous().permute(2, 1, 0),
    "strided": lambda x: torch.stack([x, -x], -1)[..., 0],
    "sliced": lambda x: torch.cat([x, x], 0)[: x.shape[0], 1:, :-1],
    "expanded_first": lambda x: x[:1].expand_as(x),
    "expanded_middle": lambda x: x[:, :1].expand_as(x),
    "expanded_last": lambda x: x[..., :1].expand_as(x),
    "expanded_all": lambda x: x[0, 0, 0].expand_as(x),
    "offset": lambda x: torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_layouts(device, layout, dim):
    x = LAYOUTS[layout](torch.randn(5, 21, 34, device=device))
    y = soft_binary_argmax(x, 2.5, dim=dim)
    assert_projection(y, x, 2.5, dim=dim)
    # The same bits whatever the layout, and a dense layout is kept.
    assert torch.equal(y, soft_binary_argmax(x.contiguous(), 2.5, dim=dim))
    if torch.empty_like(x).stride() == x.stride():
        assert y.stride() == x.stride()


@pytest.mark.parametrize("shape", [(7,), (1, 7), (7, 1), (2, 3, 4, 5), (2, 1, 4, 1, 3)])
def test_every_dimension(device, shape):
    x = torch.randn(shape, device=device)
    for permuted in (x, x.permute(*reversed(range(x.ndim)))):
        for dim in range(-x.ndim, x.ndim):
            k = permuted.shape[dim] * 0.4
            assert_projection(soft_binary_argmax(permuted, k, dim=dim), permuted, k, dim=dim)


def test_matrices_are_never_copied():
    x = torch.randn(40, 30)
    for t in (x, x.t(), x[::2, ::3], x[:1].expand(40, 30), x[:, :1].expand(40, 30)):
        for dim in (0, 1):
            assert _layout.vectors(t, dim)[0] is t
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    for dim in (0, 1):
        assert _layout.vectors(images, dim)[0] is images


@given(data=st.data())
def test_any_tensor(data):
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4), label="sizes")
    order = data.draw(st.permutations(range(len(sizes))), label="order")
    steps = data.draw(st.lists(st.integers(1, 3), min_size=len(sizes), max_size=len(sizes)), label="steps")
    dim = data.draw(st.integers(0, len(sizes) - 1), label="dim")
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), label="dtype")
    scale = data.draw(st.sampled_from([1e-3, 1.0, 30.0, 1e6]), label="scale")
    spread = data.draw(st.sampled_from([0.0, 0.25, 1.0]), label="spacing of a lattice")
    full = torch.randn([size * step for size, step in zip(sizes, steps, strict=True)])
    full = ((full / spread).round() * spread if spread else full) * scale
    x = full.to(dtype).permute(order)[tuple(slice(None, None, steps[i]) for i in order)]
    rest = _layout.rest(x.shape, dim)
    n = x.shape[dim]
    k = torch.rand(rest, dtype=torch.float64) * n
    k = torch.where(torch.rand(rest) < 0.5, k.round(), k)
    tau = torch.rand(rest, dtype=torch.float64) * scale + 1e-3
    assert_projection(soft_binary_argmax(x, k, tau, dim=dim), x, k, tau, dim=dim)


def test_k_and_tau_broadcast(device):
    x = torch.randn(4, 11, 6, device=device)
    for shape in [(), (1,), (6,), (4, 1), (4, 6)]:
        k, tau = 11 * torch.rand(shape, device=device), 0.1 + torch.rand(shape, device=device)
        y = soft_binary_argmax(x, k, tau, dim=1)
        k, tau = (t.double().cpu().expand(4, 6) for t in (k, tau))
        assert_projection(y, x, k, tau, dim=1)
    integers = torch.randint(0, 12, (4, 6), device=device)
    assert_projection(soft_binary_argmax(x, integers, dim=1), x, integers.cpu(), dim=1)


# ---- special values ----

SPECIAL = [  # entries, k, y
    ((1, NAN, 2), 1, (NAN, NAN, NAN)),
    ((NAN, INF, -INF), 1, (NAN, NAN, NAN)),
    ((INF, 1, 2), 1, (1, 0, 0)),
    ((INF, INF, 2), 1, (0.5, 0.5, 0)),
    ((INF, INF, INF), 2, (2 / 3, 2 / 3, 2 / 3)),
    ((INF, 1, 1), 2, (1, 0.5, 0.5)),
    ((INF, 1.8, 1.2, -INF), 1.5, (1, 0.5, 0, 0)),
    ((INF, -INF, 1), 2, (1, 0, 1)),
    ((-INF, 1, 0.5), 1, (0, 0.75, 0.25)),
    ((-INF, -INF, 0.5), 2, (0, 0, 1)),
    ((-INF, -INF, -INF), 2, (0, 0, 0)),
    ((-INF, -INF, 0.5), 1, (0, 0, 1)),
    ((-INF, 0.0, 0.5), 0.5, (0, 0, 0.5)),
    ((1, 2, 3), 0, (0, 0, 0)),
    ((1, 2, 3), 3, (1, 1, 1)),
    ((INF, 2, -INF), 0, (0, 0, 0)),
    ((6e4, -6e4, 0), 1, (1, 0, 0)),
    ((5, 5, -5, -5), 2, (1, 1, 0, 0)),
    ((7,), 0.25, (0.25,)),
    ((7,), 1, (1,)),
]


@all_types
@pytest.mark.parametrize(("entries", "k", "expected"), SPECIAL)
def test_special_values(device, entries, k, expected, dtype):
    x = torch.tensor(entries, dtype=torch.float64).to(dtype).to(device)
    plain = torch.randn(len(entries), device=device).to(dtype)
    both = torch.stack([plain, x, plain])
    expected = numbers(*expected).to(dtype)
    y = soft_binary_argmax(both, k).cpu()
    torch.testing.assert_close(y[1], expected, equal_nan=True)
    columns = soft_binary_argmax(both.t().contiguous(), k, dim=0).cpu()
    torch.testing.assert_close(columns[:, 1], expected, equal_nan=True)
    for neighbour in (y[0], y[2], columns[:, 0], columns[:, 2]):
        assert torch.equal(neighbour, soft_binary_argmax(plain, k).cpu())


def test_the_largest_numbers(device):
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        largest = torch.finfo(dtype).max
        x = torch.tensor([largest, -largest, 0, largest], dtype=dtype, device=device)
        for k, expected in [(1, (0.5, 0, 0, 0.5)), (2, (1, 0, 0, 1)), (2.5, (1, 0, 0.5, 1)), (3.75, (1, 0.75, 1, 1))]:
            assert soft_binary_argmax(x, k).tolist() == list(expected)
            assert soft_binary_argmax(x, k, 1e-30).tolist() == list(expected)


@pytest.mark.parametrize("place", [0, 1, 500, 4095, 4096, 9998, 9999])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_special_value_anywhere_in_a_long_vector(device, place, value):
    x = torch.randn(10_000, device=device)
    x[place] = value
    y = soft_binary_argmax(x, 100).cpu()
    if value != value:
        assert y.isnan().all()
    else:
        assert y[place] == (1 if value > 0 else 0)
        rest = torch.cat([x[:place], x[place + 1 :]])
        expected = soft_binary_argmax(rest, 99 if value > 0 else 100).cpu()
        assert_close(torch.cat([y[:place], y[place + 1 :]]), expected, 1e-6)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 3)])
def test_nothing(device, shape):
    x = torch.randn(shape, device=device, requires_grad=True)
    for dim in range(len(shape)):
        y, t = soft_binary_argmax(x, 0, dim=dim, return_threshold=True)
        assert y.shape == shape
        assert t.shape == _layout.rest(shape, dim)
        y.sum().backward()
        assert x.grad.shape == shape


def test_mask(device):
    x = torch.randn(6, 5, 9, device=device)
    mask = torch.rand(6, 5, 9, device=device) < 0.6
    y = soft_binary_argmax(x, 2, mask=mask)
    assert torch.equal(y, soft_binary_argmax(x.masked_fill(~mask, -INF), 2))
    assert (y[~mask] == 0).all()
    shared = mask[:1, :, :1]
    assert torch.equal(
        soft_binary_argmax(x, 2, dim=1, mask=shared), soft_binary_argmax(x, 2, dim=1, mask=shared.expand_as(x))
    )
    poisoned = x.masked_fill(~mask, NAN)
    assert torch.equal(soft_binary_argmax(poisoned, 2, mask=mask), y)


@pytest.mark.parametrize("n", [3, 10, 100, 300, 1000])
@pytest.mark.parametrize(
    ("dtype", "tau"),
    [(torch.float32, tau) for tau in (1e30, 1e35, 1e36, 1e37, 1e38, 1e45)] + [(torch.float64, 1e300)],
)
def test_temperatures_whose_multiples_overflow(device, n, dtype, tau):
    """Neither sums of n temperatures nor a threshold below every number may spoil a vector, or the one beside it."""
    rows = torch.arange(70)
    largest = torch.finfo(dtype).max
    x = (
        torch.randn(70, n, dtype=dtype)
        * torch.tensor([1.0, min(tau, largest / 8), largest / 8], dtype=dtype)[rows % 3, None]
    )
    x[::5, 0], x[::7, 1] = -largest, largest
    if dtype == torch.float64:  # a difference of two entries is a number
        x = x / 4
    x, small = x.to(device), 0.5**64  # keeps the reference's sums finite
    for k in (1, n / 2, n - 1):
        expected = reference.project_bisection(x.double() * small, k, tau * small)
        assert_close(soft_binary_argmax(x, k, tau), expected, 1e-6)
    taus = torch.tensor([tau, 1.0], dtype=torch.float64)[rows % 2].to(device)
    assert torch.equal(soft_binary_argmax(x, 1, taus)[1::2], soft_binary_argmax(x, 1)[1::2])


# ---- promises ----


@all_types
def test_threshold(device, dtype):
    x = torch.randn(5, 40, 3, device=device).to(dtype)
    tau = 0.5 + torch.rand(5, 3, device=device)
    y, t = soft_binary_argmax(x, 7.5, tau, dim=1, return_threshold=True)
    assert t.shape == (5, 3)
    assert t.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not t.requires_grad
    again = ((x.double() - t.double().unsqueeze(1)) / tau.double().unsqueeze(1)).clamp(0, 1)
    assert_close(y, again, {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-6))


def test_threshold_without_active_entries(device):
    x = torch.tensor([[5.0, 5, -5, -5], [5, 4, 1, 0]], device=device)
    for dtype in (torch.float32, torch.float64, torch.float16):
        _, t = soft_binary_argmax(x.to(dtype), 2, return_threshold=True)
        assert t.tolist() == [-0.5, 2.0]  # the middle of [-5, 4] and of [1, 3]
    _, t = soft_binary_argmax(x, torch.tensor([0, 4], device=device), return_threshold=True)
    assert t.tolist() == [INF, -INF]


@all_types
@pytest.mark.parametrize(
    ("shape", "dim", "k"),
    [((40, 10), 1, 3), ((40, 300), 1, 3), ((3, 2500), 1, 900), ((300, 5), 0, 40), ((90, 70), 0, 40), ((20_000,), 0, 2)],
)
def test_nothing_changes_where_no_threshold_is_asked_for(device, dtype, shape, dim, k):
    x = torch.randn(shape, device=device).to(dtype)
    x.view(-1)[::97] = INF  # vectors that go other ways
    x.view(-1)[:2] = NAN
    y, _ = soft_binary_argmax(x, k, dim=dim, return_threshold=True)
    for _ in range(2):  # the second call is one that is known
        assert torch.equal(soft_binary_argmax(x, k, dim=dim).nan_to_num(2.0), y.nan_to_num(2.0))
    assert torch.equal(soft_binary_argmax(x.requires_grad_(), k, dim=dim).nan_to_num(2.0), y.nan_to_num(2.0))


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 16, 32])
def test_sums_of_identical_entries_do_not_drift(device, columns):
    """Rounding that goes the same way at every addition is the worst for sums in float32."""
    for n in (300, 5000):
        for value in (0.123, -7.7, 1e-40):
            x = torch.full((n, columns), value, device=device)
            for k in (1, 7, 11, 0.77 * n, n - 1):
                assert_projection(soft_binary_argmax(x, k, dim=0), x, k, dim=0)


def test_shift_changes_nothing(device):
    x = torch.randn(3, 500, device=device).mul(64).round().div(64)  # so that the shifted entries are exact
    y = soft_binary_argmax(x, 50)
    assert_close(soft_binary_argmax(x + 1024, 50), y, 1e-6)


def test_order_is_kept(device):
    x = torch.randn(3, 500, device=device).sort().values
    assert (soft_binary_argmax(x, 50.5, 2.0).diff() >= 0).all()


@pytest.mark.parametrize("shape", [(4, 300), (3, 70_000), (40_000, 10), (300_000,), (3000, 40), (50_000, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_repeat_whatever_the_number_of_threads(set_threads, shape, dtype):
    x = torch.randn(shape).to(dtype)
    v = torch.randn_like(x)
    results = []
    for threads in (1, 2, 3, 2):
        set_threads(threads)
        for dim in range(x.ndim):
            leaf = x.clone().requires_grad_()
            tau = torch.tensor(0.7, requires_grad=True)
            y, t = soft_binary_argmax(leaf, 2.5, tau, dim=dim, return_threshold=True)
            gradients = torch.autograd.grad(y, (leaf, tau), v)
            results.append((dim, y.detach(), t, *gradients))
    for dim, *values in results:
        first = next(others for d, *others in results if d == dim)
        for value, other in zip(values, first, strict=True):
            assert torch.equal(value, other)


def test_large_tau_spreads_evenly(device):
    y = soft_binary_argmax(torch.randn(1000, device=device), 250, 1e9)
    assert_close(y, torch.full((1000,), 0.25), 1e-6)


def test_temperatures_of_the_cases_are_used():
    assert set(TEMPERATURES) <= set(DISTRIBUTIONS)


# ---- the hard limit ----


@given(
    values=st.lists(st.sampled_from([-INF, -2.0, -1.0, 0.0, 0.5, 3.0, INF]), min_size=1, max_size=12), data=st.data()
)
def test_binary_argmax_by_the_definition(values, data):
    k = data.draw(st.integers(0, len(values)), label="k")
    ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))
    expected = [float(i in ranked[:k] and values[i] != -INF) for i in range(len(values))]
    assert binary_argmax(torch.tensor(values), k).tolist() == expected


def test_binary_argmax_is_the_limit(device):
    x = torch.randn(4, 9, 5, device=device)
    for dim in range(3):
        assert torch.equal(binary_argmax(x, 2, dim), soft_binary_argmax(x, 2, 1e-6, dim).round())
    x.requires_grad_()
    assert not binary_argmax(x, 2).requires_grad
    rows = binary_argmax(torch.tensor([[1.0, NAN], [1.0, 2.0]], device=device), 1)
    torch.testing.assert_close(rows.cpu(), torch.tensor([[NAN, NAN], [0.0, 1.0]]), equal_nan=True)
    assert binary_argmax(torch.randn(3, 0, device=device), 0).shape == (3, 0)
