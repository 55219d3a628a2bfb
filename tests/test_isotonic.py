"""The native isotonic regression against scipy and a plain loop, its products against dense Jacobians."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from . import native_order as native
from .cases import INF, NAN, all_types, assert_close, half_types
from .native_order import KL, Term

LENGTHS = (1, 2, 31, 32, 33, 1000, 4096, 4097, 70_000)
LONG = 10_000  # entries; more than this is left to the compiled backends
ROUNDING = {torch.float64: 1e-12, torch.float32: 1.2e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}

KINDS = {
    "random": torch.randn,
    "sorted": lambda n: torch.randn(n).sort().values,
    "reversed": lambda n: torch.randn(n).sort(descending=True).values,
    "sawtooth": lambda n: (torch.arange(n) % 97).float(),
    "falling_sawtooth": lambda n: -(torch.arange(n) % 97).float(),
    "rising_teeth": lambda n: torch.arange(n) // 97 - 0.02 * (torch.arange(n) % 97),
    "constant": lambda n: torch.full((n,), 0.3),
    "ties": lambda n: torch.randn(n).round(),
    "trend": lambda n: torch.randn(n) + 0.01 * torch.arange(n),
    "fall": lambda n: torch.randn(n) - 0.01 * torch.arange(n),
    "offset": lambda n: 1e6 + torch.randn(n).double(),
    "one_peak": lambda n: torch.arange(n).double() - 2 * (torch.arange(n) - 2 * n // 3).clamp(min=0),
}


def scipy_rows(x, weight, increasing):
    optimize = pytest.importorskip("scipy.optimize")
    x = x.double().cpu().numpy()
    weight = None if weight is None else weight.double().cpu().numpy()
    rows = [
        optimize.isotonic_regression(x[i], weights=None if weight is None else weight[i], increasing=increasing).x
        for i in range(len(x))
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(x.shape)


def pooled(a, b):
    """Plain pool adjacent violators for KL, non-increasing, in float64: the regression of one vector."""
    blocks = []  # [log sum exp(a), log sum exp(b), elements]
    for u, v in zip(a.tolist(), b.tolist(), strict=True):
        block = [u, v, 1]
        while blocks and blocks[-1][0] - blocks[-1][1] < block[0] - block[1]:
            last = blocks.pop()
            block = [np.logaddexp(last[0], block[0]), np.logaddexp(last[1], block[1]), last[2] + block[2]]
        blocks.append(block)
    return torch.tensor([value for u, v, count in blocks for value in [u - v] * count], dtype=torch.float64)


def assert_blocks(r, expected, increasing):
    """A new block wherever the float64 regression moves by more than rounding; inside a block it does not move."""
    out = native.starts(r.blocks, r.out.shape[-1])
    assert out[:, :1].all()
    step = (-1) ** (not increasing) * expected.diff(dim=-1)
    scale = max(float(expected.abs().max()), 1e-300)
    assert out[:, 1:][step > 1e-9 * scale].all()
    assert (step[~out[:, 1:]].abs() <= 1e-11 * scale).all()


@pytest.fixture
def lengths(backend):
    return [n for n in LENGTHS if backend != "simt" or n <= LONG]


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_scipy(device, lengths, kind, increasing):
    for n in lengths:
        x = torch.stack([KINDS[kind](n).double() for _ in range(2)]).to(device)
        for weight in (None, torch.rand(x.shape, dtype=x.dtype, device=device) + 0.1):
            r = native.isotonic(x, weight=weight, increasing=increasing)
            expected = scipy_rows(x, weight, increasing)
            assert_close(r.out, expected, 1e-12)
            assert_blocks(r, expected, increasing)
            assert ((r.out.diff(dim=-1) >= 0) if increasing else (r.out.diff(dim=-1) <= 0)).all()


@all_types
@pytest.mark.parametrize("n", [1, 33, 1000, 5000])
def test_types(device, n, dtype):
    x, w = torch.randn(3, n).to(dtype).to(device), (torch.rand(3, n) + 0.5).to(dtype).to(device)
    out = native.isotonic(x, weight=w, increasing=True).out
    # The float64 block means, rounded once.
    wide = native.isotonic(x.double(), weight=w.double(), increasing=True).out
    assert torch.equal(out, once(wide, dtype))


def once(wide, dtype):
    """Nearest number of the dtype, ties to even, from float64 in one step."""
    if dtype in (torch.float64, torch.float32):
        return wide.to(dtype)
    nearest = wide.to(dtype)
    for toward in (INF, -INF):
        other = torch.nextafter(nearest, torch.full_like(nearest, toward))
        closer = (other.double() - wide).abs() < (nearest.double() - wide).abs()
        nearest = torch.where(closer, other, nearest)
    return nearest


@half_types
def test_halves_are_rounded_once(device, dtype):
    """Means that a float32 in between would move to a tie, and then to the wrong side."""
    unit = torch.finfo(dtype).eps
    tie = 1 + unit / 2
    x = torch.tensor([[1 + unit, 1.0]], device=device, dtype=dtype)
    for shift, expected in ((2**-40, 1 + unit), (-(2**-40), 1.0), (0, 1.0)):
        out = native.isotonic(x, increasing=True, scale=1 + shift / tie).out
        assert out.tolist() == [[expected, expected]]


@all_types
def test_accuracy_of_long_blocks(device, dtype):
    """One block of many elements far from 0, and one of both signs that nearly cancel."""
    n = 9000
    x = 1000 + torch.linspace(1, 0, n, dtype=torch.float64)
    x = torch.stack([x, x * (-1.0) ** torch.arange(n)]).to(dtype).to(device)
    expected = scipy_rows(x, None, True)
    out = native.isotonic(x, increasing=True).out
    assert_close(out, expected, ROUNDING[dtype])


@pytest.mark.parametrize("kind", ["random", "ties", "sorted", "reversed"])
def test_columns_and_strides(device, kind):
    for n, columns in ((5, 3), (70, 33), (700, 10), (4200, 2)):
        x = torch.stack([KINDS[kind](n).double() for _ in range(columns)], 1).to(device)
        w = torch.rand(n, columns, dtype=x.dtype, device=device) + 0.1
        alone = native.isotonic(x.t().contiguous(), weight=w.t().contiguous(), increasing=True)
        r = native.isotonic(x, weight=w, dim=0, increasing=True)
        assert torch.equal(r.out.t(), alone.out)
        assert torch.equal(r.blocks, alone.blocks)
        wide = torch.zeros(n, 2 * columns, dtype=x.dtype, device=device)
        wide[:, ::2] = x
        out = native.isotonic(wide[:, ::2], weight=w, dim=0, increasing=True, like=x).out
        assert torch.equal(out.t(), alone.out)
        # One weight for all vectors.
        shared = w[:, :1].expand(n, columns)
        expected = native.isotonic(x, weight=shared.contiguous(), dim=0).out
        assert torch.equal(native.isotonic(x, weight=shared, dim=0).out, expected)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty(device, shape):
    x = torch.empty(shape, device=device)
    r = native.isotonic(x)
    assert r.out.shape == shape
    assert native.block_product(x, r.blocks).shape == shape


@all_types
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("divergence", [native.L2, KL])
def test_a_special_value_makes_its_vector_nan(device, divergence, value, dtype):
    for n, place in ((1, 0), (40, 39), (5000, 0), (5000, 4500)):
        clean = torch.randn(3, n).sort(descending=True).values.to(dtype).to(device)
        bad = clean.clone()
        bad[1, place] = value
        zero = torch.zeros_like(clean)
        cases = [(bad, zero, None), (zero, bad, None)] + [(clean, zero, bad.abs() + 1)] * (divergence == native.L2)
        for a, b, weight in cases:
            r = native.isotonic(a, Term(b), weight, divergence=divergence, share=divergence == KL)
            assert r.out.isnan().tolist() == [[i == 1] * n for i in range(3)]
            assert (r.blocks[:, 0] & 1).tolist() == [1, 0, 1]
            if r.share is not None:
                assert r.share.isnan().tolist() == r.out.isnan().tolist()
            product = native.block_product(clean, r.blocks)
            assert product.isnan().tolist() == r.out.isnan().tolist()


@all_types
@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF, -INF])
def test_a_weight_out_of_range_makes_its_vector_nan(device, value, dtype):
    for n, place in ((1, 0), (40, 39), (5000, 4500)):
        x, weight = torch.randn(3, n).to(dtype).to(device), torch.ones(3, n).to(dtype).to(device)
        weight[1, place] = value
        r = native.isotonic(x, weight=weight, increasing=True)
        assert r.out.isnan().tolist() == [[i == 1] * n for i in range(3)]
        assert (r.blocks[:, 0] & 1).tolist() == [1, 0, 1]


def test_ties_are_not_pooled(device):
    x = torch.tensor([[1.0, 1.0, 3.0, 1.0, 2.0, 2.0]], device=device)
    r = native.isotonic(x, increasing=True)
    assert r.out.tolist() == [[1, 1, 2, 2, 2, 2]]
    assert native.starts(r.blocks, 6).tolist() == [[True, True, True, False, True, True]]
    r = native.isotonic(torch.zeros(1, 5, device=device), Term(torch.zeros(1, 5, device=device)), divergence=KL)
    assert native.starts(r.blocks, 5).all()


def permutations(count, n, device):
    order = torch.stack([torch.randperm(n) for _ in range(count)])
    return order.to(torch.int32).to(device)


@pytest.mark.parametrize("result", [native.REGRESSION, native.PRIMAL, native.EXP_PRIMAL])
@pytest.mark.parametrize("divergence", [native.L2, KL])
def test_results_are_scaled_and_scattered(backend, device, divergence, result):
    for n in (1, 33, 1000) if backend == "simt" else (1, 33, 1000, 9000):
        a = torch.randn(3, n, dtype=torch.float64).sort(descending=True).values.to(device)
        b = torch.randn(3, n, dtype=torch.float64).sort(descending=True).values.to(device)
        order = permutations(3, n, device)
        v = native.isotonic(Term(a, 1.5), Term(b, 0.5), divergence=divergence).out
        primal = 1.5 * a - v
        expected = (v, primal, primal.exp())[result]
        options = {"divergence": divergence, "result": result}
        out = native.isotonic(Term(a, 1.5), Term(b, 0.5), scale=-2.0, order=order, **options).out
        assert_close(out.gather(1, order.long()), -2 * expected, 1e-13)
        columns = native.isotonic(
            Term(a.t().contiguous(), 1.5),
            Term(b.t().contiguous(), 0.5),
            **{"scale": -2.0, "order": order.t().contiguous(), "dim": 0, **options},
        ).out
        assert torch.equal(columns.t(), out)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("logarithm", [False, True])
def test_ramp_and_logarithm(device, logarithm, scale):
    n = 300
    a = (torch.rand(2, n, dtype=torch.float64) + 0.1).sort(descending=True).values.to(device)
    ramp = scale * torch.arange(n, 0, -1, dtype=torch.float64, device=device).expand(2, n)
    for divergence in (native.L2, KL):
        out = native.isotonic(Term(a, 2.0, True), Term(None, scale, logarithm), divergence=divergence).out
        b = ramp.log() if logarithm else ramp
        expected = native.isotonic((2 * a).log(), Term(b), divergence=divergence).out
        assert_close(out, expected, 1e-13)
        # As data that all vectors share, and as data of each.
        for data in (ramp[:1].expand(2, n), ramp.contiguous()):
            b = Term(data, 1.0, logarithm)
            assert_close(native.isotonic(Term(a, 2.0, True), b, divergence=divergence).out, expected, 1e-13)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 100.0, 2000.0])
def test_kl(device, lengths, spread):
    for n in lengths:
        a = spread * torch.randn(2, n, dtype=torch.float64).sort(descending=True).values
        b = torch.arange(n, 0, -1, dtype=torch.float64).log().expand(2, n)
        b = torch.stack([b[0], torch.randn(n, dtype=torch.float64).sort(descending=True).values])
        r = native.isotonic(a.to(device), Term(b.to(device)), divergence=KL, share=True)
        expected = torch.stack([pooled(*pair) for pair in zip(a, b, strict=True)])
        assert (r.out.cpu() - expected).abs().max() <= 1e-12 * max(1, float(a.abs().max()))
        assert_blocks(r, expected, False)
        starts = native.starts(r.blocks, n)
        block = starts.cumsum(1) - 1
        peak = b.clone()  # relative to each block's first element
        for row, at, values in zip(peak, starts, b, strict=True):
            row.copy_(values[at.nonzero().flatten()][(at.cumsum(0) - 1)])
        weight = (b - peak).exp()
        total = torch.zeros_like(b).scatter_add_(1, block, weight)
        assert_close(r.share, weight / total.gather(1, block), 1e-12)


def dense(starts, weight, product):
    """The matrix of a product: block by block."""
    n = len(starts)
    block = starts.cumsum(0)
    same = (block[:, None] == block[None, :]).double()
    total = same @ weight
    if product == native.RATIO:
        return same / total[:, None]
    mean = same * weight[None, :] / total[:, None]
    if product == native.TRANSPOSED:
        return mean.t()
    return mean if product == native.MEAN else torch.diag(weight) @ (torch.eye(n, dtype=mean.dtype) - mean)


@all_types
@pytest.mark.parametrize("product", [native.MEAN, native.RATIO, native.TRANSPOSED, native.RESIDUAL])
@pytest.mark.parametrize("weighted", [False, True])
def test_products(device, product, weighted, dtype):
    for n in (1, 2, 31, 32, 33, 600):
        x, v = torch.randn(3, n), torch.randn(3, n).to(dtype)
        weight = (torch.rand(3, n) + 0.5).to(dtype) if weighted else None
        w = torch.ones(3, n, dtype=torch.float64) if weight is None else weight.double()
        r = native.isotonic(x.to(device))
        starts = native.starts(r.blocks, n)
        expected = torch.stack([dense(starts[i], w[i], product) @ v[i].double() for i in range(3)])
        order = permutations(3, n, device)
        in_place = order.cpu().long()
        scattered = [None if t is None else torch.empty_like(t).scatter_(1, in_place, t) for t in (v, weight)]
        for ordered in [(True,) * 3, (False,) * 3, (True, False, False), (False, True, False), (False, False, True)]:
            arguments = [scattered[i] if ordered[i] else (v, weight)[i] for i in range(2)]
            arguments = [None if t is None else t.to(device) for t in arguments]
            for dim in (1, 0):
                placed = [t if t is None or dim == 1 else t.t().contiguous() for t in (*arguments, order)]
                out = native.block_product(
                    placed[0], r.blocks, product, weight=placed[1], order=placed[2], ordered=ordered, scale=3.0, dim=dim
                )
                out = (out if dim == 1 else out.t()).cpu()
                assert_close(out.gather(1, in_place) if ordered[2] else out, 3 * expected, ROUNDING[dtype])
        without = native.block_product(
            v.to(device), r.blocks, product, weight=None if weight is None else weight.to(device), scale=3.0
        )
        assert_close(without, 3 * expected, ROUNDING[dtype])


@pytest.mark.parametrize("kind", ["random", "sorted", "reversed", "rising_teeth", "trend", "one_peak"])
def test_long_products(backend, device, kind):
    n = 9000 if backend == "simt" else 70_000
    x = KINDS[kind](n).double()[None].to(device)
    r = native.isotonic(x, increasing=True)
    v, w = torch.randn(1, n, dtype=torch.float64), torch.rand(1, n, dtype=torch.float64) + 0.5
    block = native.starts(r.blocks, n).cumsum(1) - 1

    def total(t):
        return torch.zeros_like(t).scatter_add_(1, block, t).gather(1, block)

    mean = torch.where(total(w) == w, v, total(w * v) / total(w))
    expected = (mean, total(v) / total(w), w * total(v) / total(w), w * (v - mean))
    for product in range(4):
        out = native.block_product(v.to(device), r.blocks, product, weight=w.to(device))
        assert_close(out, expected[product], 1e-12)


vectors = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=200)


@given(vectors, st.booleans(), st.booleans())
def test_properties(numbers, increasing, weighted):
    x = torch.tensor([numbers], dtype=torch.float64)
    n = x.shape[1]
    weight = torch.rand(1, n, dtype=x.dtype) + 0.1 if weighted else None
    r = native.isotonic(x, weight=weight, increasing=increasing)
    direction = 1 if increasing else -1
    assert (direction * r.out.diff(dim=-1) >= 0).all()
    assert torch.equal(native.isotonic(r.out, weight=weight, increasing=increasing).out, r.out)
    assert_close(native.block_product(x, r.blocks, weight=weight), r.out, 1e-12)  # the mean of every block
    mirrored = native.isotonic(x.flip(1), weight=None if weight is None else weight.flip(1), increasing=not increasing)
    assert_close(mirrored.out.flip(1), r.out, 1e-12)
    shifted = native.isotonic(x + 8, weight=weight, increasing=increasing).out
    assert_close(shifted, r.out + 8, 1e-12)


@given(vectors)
def test_soft_rank_moves_with_its_entries(numbers):
    """Sorting, regression and scattering: a permutation of the input permutes the result, whose sum is that of w."""
    x = torch.tensor([numbers], dtype=torch.float64)
    n = x.shape[1]

    def soft_rank(x):
        values, order = native.sort(x, descending=True)
        return native.isotonic(Term(values), Term(None), result=native.PRIMAL, order=order).out

    rank, turn = soft_rank(x), torch.randperm(n)
    assert math.isclose(rank.sum(), n * (n + 1) / 2, rel_tol=1e-12)
    assert_close(soft_rank(x[:, turn]), rank[:, turn], 1e-12)


@pytest.mark.parametrize(("shape", "dim"), [((1, 8_400_001), 1), ((1_400_000, 6), 0)], ids=["one", "columns"])
def test_results_of_many_megabytes(backend, shape, dim):
    if backend != "cpu":
        pytest.skip("what the CPU asks of memory")
    x = torch.randn(shape)
    r = native.isotonic(x, dim=dim, increasing=True)
    expected = scipy_rows(x.movedim(dim, 1), None, True)
    assert_close(r.out.movedim(dim, 1), expected, 1e-6)
    mean = native.block_product(x, r.blocks, dim=dim)
    assert_close(mean.movedim(dim, 1), expected, 1e-6)


def test_threads(backend):
    if backend != "cpu":
        pytest.skip("the CPU's threads")

    def fingerprint():
        generator = torch.Generator().manual_seed(0)
        results = []
        for shape, dim in (((1, 70_000), 1), ((3, 40_000), 1), ((200, 300), 1), ((9000, 20), 0)):
            x = torch.randn(shape, generator=generator)
            tilted = x + 1e-3 * torch.arange(shape[dim]).unflatten(0, (-1, 1) if dim == 0 else (1, -1))
            w = torch.rand(shape, generator=generator) + 0.1
            for a in (x, tilted, x.sort(dim).values):
                r = native.isotonic(a, weight=w, dim=dim, increasing=True)
                results += [r.out, r.blocks, native.block_product(x, r.blocks, weight=w, dim=dim)]
            a = x.sort(dim, descending=True).values
            results += native.isotonic(a, Term(None, 1.0, True), divergence=KL, dim=dim, share=True)
        return results

    expected = fingerprint()
    try:
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            for actual, one in zip(fingerprint(), expected, strict=True):
                assert torch.equal(actual, one)
    finally:
        torch.set_num_threads(1)
