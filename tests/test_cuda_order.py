"""The regimes of the CUDA kernels that sort and pool, each forced on vectors so short that the emulator runs them."""

import math

import pytest
import torch

from . import native_order as native
from .cases import assert_close
from .native_order import KL, L2, Term, sort
from .test_isotonic import KINDS, assert_blocks, permutations, pooled, scipy_rows

# A team of lanes per vector, a block, and tiles of 1024 entries (float64: 512; pooling: 2048).
REGIMES = ["short", "block", "grid:threads=64"]
SHAPES = [((5, 1), 1), ((7, 13), 1), ((3, 33), 1), ((2, 500), 1), ((40, 3), 0), ((300, 5), 0), ((2, 70, 3), 1)]


def special(x):
    """Scatter numbers over x that sort in ways of their own, and ties."""
    places = torch.randint(0, x.numel(), (max(1, x.numel() // 3),))
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 1e-40, -1e-40])
    x.view(-1)[places] = values[torch.randint(0, len(values), places.shape)].to(x.dtype)
    return x


def assert_sorted(x, dim, descending, wide=False):
    values, order = sort(x, descending, dim, wide=wide)
    expected = torch.sort(x, dim=dim, descending=descending, stable=True)
    assert torch.equal(order.long().cpu(), expected.indices.cpu())
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    assert torch.equal(values.view(bits), x.gather(dim, expected.indices).view(bits))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("regime", REGIMES)
def test_sort_in_every_regime(on_device, monkeypatch, regime, dtype, descending):
    device, _ = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    for shape, dim in SHAPES:
        for x in (torch.randn(shape).to(dtype), special(torch.randn(shape).to(dtype)), torch.zeros(shape, dtype=dtype)):
            assert_sorted(x.to(device), dim, descending, wide=descending)


@pytest.mark.parametrize("n", [1023, 1024, 1025, 3000, 5121])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("regime", ["", "block:threads=64", "grid:threads=64"])
def test_sort_of_longer_vectors(on_device, monkeypatch, regime, dtype, n):
    device, launches = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    for x in (special(torch.randn(2, n)), torch.arange(n).expand(2, n) // 7, torch.arange(n, 0, -1).expand(2, n)):
        launches()
        assert_sorted(x.to(dtype).to(device), 1, n % 2 == 0)
        tile = (64 if regime.startswith("grid") else 512) * (16 if dtype == torch.float32 else 8)
        merged = any("merge_tiles" in name for name in launches() or ())
        assert device.type == "cuda" or merged == (n > tile)


# Of one piece, of the chunks of a warp and of several, and of tiles joined in one level and in three.
POOLED = [("short", (1, 32, 33, 1000)), ("block", (5, 64, 4100)), ("grid:threads=64", (3, 2048, 2049, 9000))]


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("regime", "lengths"), POOLED)
def test_regression_in_every_regime(on_device, monkeypatch, regime, lengths, kind, increasing):
    device, _ = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    for n in lengths:
        x = torch.stack([KINDS[kind](n).double() for _ in range(3)]).to(device)
        for weight in (None, torch.rand(x.shape, dtype=x.dtype, device=device) + 0.1):
            expected = scipy_rows(x, weight, increasing)
            for dim in (1, 0):
                placed = [t if t is None or dim == 1 else t.t().contiguous() for t in (x, weight)]
                r = native.isotonic(placed[0], weight=placed[1], dim=dim, increasing=increasing)
                out = r.out if dim == 1 else r.out.t()
                assert_close(out, expected, 1e-12)
                assert_blocks(native.Isotonic(out, r.blocks, None), expected, increasing)
                assert ((-1) ** (not increasing) * out.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("spread", [1.0, 2000.0])
@pytest.mark.parametrize(("regime", "lengths"), POOLED)
def test_kl_in_every_regime(on_device, monkeypatch, regime, lengths, spread):
    device, _ = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    for n in lengths:
        a, b = (torch.randn(2, n, dtype=torch.float64).sort(descending=True).values for _ in range(2))
        a, order = spread * a, permutations(2, n, device)
        r = native.isotonic(a.to(device), Term(b.to(device)), divergence=KL, share=True, order=order)
        expected = torch.stack([pooled(*pair) for pair in zip(a, b, strict=True)])
        out = r.out.gather(1, order.long()).cpu()
        assert (out - expected).abs().max() <= 1e-12 * max(1, float(a.abs().max()))
        block = native.starts(r.blocks, n).cumsum(1) - 1
        total = torch.zeros_like(b).scatter_add_(1, block, r.share.cpu())
        assert (total.gather(1, block) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("divergence", [L2, KL])
@pytest.mark.parametrize(("regime", "lengths"), POOLED)
def test_special_values_in_every_regime(on_device, monkeypatch, regime, lengths, divergence):
    device, _ = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    for n in lengths:
        x = torch.randn(3, n).sort(descending=True).values.to(device)
        zero = torch.zeros_like(x)
        for value, place in ((math.nan, n - 1), (math.inf, 0), (-math.inf, n // 2)):
            bad = x.clone()
            bad[1, place] = value
            for a, b in ((bad, zero), (zero, bad)):
                r = native.isotonic(a, Term(b), divergence=divergence, share=divergence == KL)
                assert r.out.isnan().tolist() == [[i == 1] * n for i in range(3)]
                assert r.share is None or torch.equal(r.share.isnan(), r.out.isnan())
                assert (r.blocks[1] == 0).all()
                assert torch.equal(native.block_product(x, r.blocks).isnan(), r.out.isnan())


@pytest.mark.parametrize("kind", ["random", "sorted", "reversed", "rising_teeth", "trend", "one_peak"])
@pytest.mark.parametrize(("regime", "lengths"), POOLED)
def test_block_products_in_every_regime(on_device, monkeypatch, regime, lengths, kind):
    device, _ = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    for n in lengths:
        x = torch.stack([KINDS[kind](n).double() for _ in range(3)]).to(device)
        r = native.isotonic(x, increasing=True)
        v, w = torch.randn(3, n, dtype=torch.float64), torch.rand(3, n, dtype=torch.float64) + 0.5
        block = native.starts(r.blocks, n).cumsum(1) - 1

        def total(t, block=block):
            return torch.zeros_like(t).scatter_add_(1, block, t).gather(1, block)

        mean = torch.where(total(w) == w, v, total(w * v) / total(w))
        expected = (mean, total(v) / total(w), w * total(v) / total(w), w * (v - mean))
        order = permutations(3, n, device)
        scattered = torch.empty_like(v).scatter_(1, order.cpu().long(), v).to(device)
        for product in range(4):
            out = native.block_product(
                scattered, r.blocks, product, weight=w.to(device), order=order, ordered=(True, False, False)
            )
            assert_close(out, expected[product], 1e-12)


@pytest.mark.parametrize(("regime", "lengths"), POOLED)
def test_blocks_do_not_touch_each_other(on_device, monkeypatch, regime, lengths):
    device, _ = on_device
    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    n = lengths[-1]
    x = -(torch.arange(n, dtype=torch.float64) // (n // 5)).expand(2, n).contiguous()
    x[:, 1::2] += 0.25  # blocks of about n / 5 elements
    blocks = native.isotonic(x.to(device)).blocks
    block = native.starts(blocks, n).cumsum(1) - 1
    v = torch.randn(2, n, dtype=torch.float64)
    expected = native.block_product(v.to(device), blocks).cpu()
    for value in (math.nan, math.inf, 1e300):
        wild = v.clone()
        wild[0, n // 2] = value
        out = native.block_product(wild.to(device), blocks).cpu()
        others = block != block[0, n // 2]
        others[1] = True
        assert torch.equal(out[others], expected[others])
        assert not (out[~others].abs() < 1e200).any()
    # The same of the regression: masked elements leave the others exact.
    masked = torch.randn(1, n, dtype=torch.float64).sort().values
    masked[0, n // 2 :] = -1e30
    out = native.isotonic(masked.to(device)).out.cpu()
    assert_close(out[:, : n // 2], scipy_rows(masked[:, : n // 2], None, False), 1e-12)
