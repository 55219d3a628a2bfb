"""The emulator under the CUDA kernels: right kernels pass under every schedule, and each kind of fault is reported."""

import math
import os
import random
import struct
import subprocess
import sys
from fractions import Fraction
from itertools import accumulate

import pytest
import torch

from tests import simt

SEEDS = range(25)
NO_RACES = "AddressSanitizer takes the place of the race detector"
KERNEL = r"kernel .*_kernel\(.*\), block \(\d+, 0, 0\), thread \(\d+, 0, 0\): "
SEED = r" \[SIMT_SEED=\d+\]$"


@pytest.fixture(scope="module")
def faults():
    return simt.load("_simt_faults")


@pytest.fixture(params=SEEDS)
def seed(request, faults):
    simt.Device(faults).seed = request.param


@pytest.fixture
def numbers():
    generator = random.Random(0)
    return [generator.randrange(1000) for _ in range(1024)]


# ---- right kernels ----


def test_block_reduction(faults, seed, numbers):
    for blocks, threads in ((1, 32), (2, 64), (8, 256), (4, 1024)):
        size = len(numbers) // blocks
        expected = [sum(numbers[b * size : (b + 1) * size]) for b in range(blocks)]
        assert faults.block_sum(numbers, blocks, threads) == expected


@pytest.mark.parametrize("size", [1, 31, 33, 512, 1000])
def test_block_scan(faults, seed, numbers, size):
    assert faults.block_scan(numbers[:size]) == list(accumulate(numbers[:size]))


@pytest.mark.parametrize("width", [1, 2, 8, 16, 32])
def test_groups_of_lanes(faults, seed, numbers, width):
    out = faults.group_sum(numbers[:64], width)
    for first in range(0, 64, width):
        rounds = first % 32 // width + 1
        assert out[first : first + width] == [sum(numbers[first : first + width]) * width ** (rounds - 1)] * width


@pytest.mark.parametrize("cluster", [1, 2, 8])
def test_cluster_exchange(faults, seed, numbers, cluster):
    blocks = [numbers[b * 32 : (b + 1) * 32] for b in range(16)]
    sums = [[sum(column) for column in zip(*blocks[c : c + cluster], strict=True)] for c in range(0, 16, cluster)]
    assert faults.cluster_sum(numbers[:512], cluster, 32) == [v for b in range(16) for v in sums[b // cluster]]


@pytest.mark.parametrize("polling", [False, True])
def test_grid_barrier(faults, seed, numbers, polling):
    assert faults.grid_rotate(numbers[:256], 32, 5, polling) == numbers[5:256] + numbers[:5]


def test_last_block_and_atomics(faults, seed, numbers):
    assert faults.last_block_sum(numbers[:100], 64) == sum(numbers[:100])
    digits = [v % 10 for v in numbers]
    assert faults.histogram(digits, 10, 96) == [digits.count(b) for b in range(10)]


def test_a_seed_repeats_its_schedule(faults):
    device = simt.Device(faults)
    messages = []
    for seed in (5, 6, 5):
        device.seed = seed
        with pytest.raises(RuntimeError) as error:
            faults.barrier_in_both_branches()
        messages.append(str(error.value))
    assert messages[0] == messages[2] != messages[1]
    assert "SIMT_SEED=5]" in messages[0]


def test_environment_sets_the_seed():
    command = [sys.executable, "-c", "from tests import simt; print(simt.Device(simt.load('_simt_faults')).seed)"]
    done = subprocess.run(command, env={**os.environ, "SIMT_SEED": "123"}, capture_output=True, text=True, check=True)
    assert done.stdout == "123\n"


def test_launches_are_recorded(faults):
    device = simt.Device(faults)
    device.take_launches()
    faults.block_scan([1])
    faults.empty(1, 1, 0, 1, False)
    assert [name.rpartition("::")[2].partition("(")[0] for name in device.take_launches()] == [
        "scan_kernel",
        "empty_kernel",
    ]
    assert device.take_launches() == []


# ---- threads that do not meet ----

DIVERGENCE = {
    "barrier_in_branch": r"(__syncthreads .* cannot be reached|returns from the kernel while .* at __syncthreads)",
    "barrier_in_both_branches": r"divergent barrier: reaches __syncthreads at .*barriers\.cu:\d+ while .* already at",
    "warp_waits_for_barrier": r"nobody can go on.* 31 threads at __syncthreads .* 1 thread at __syncwarp ",
    "cluster_barrier_in_branch": r"(cluster barrier .* cannot be reached|returns .* while .* at cluster barrier)",
    "grid_barrier_without_cooperation": r"grid barrier .* not cooperative",
    "lanes_returned": r"(.*the mask names lane \d+, which is absent|returns from the kernel while lane \d+ waits)",
    "lanes_elsewhere": r"divergent warp: reaches __\w+ at .* while lane \d+ waits for it at __\w+",
    "source_outside_mask": r"shuffle reads lane 16, which takes no part",
    "caller_outside_mask": r".*the mask leaves out the caller",
    "partial_warp": r".*the mask names lane 16, which is absent",
    "poll_for_ever": r"nobody gets anywhere",
}


@pytest.mark.parametrize("fault", DIVERGENCE)
def test_divergence_is_reported(faults, fault):
    device = simt.Device(faults)
    for seed in (0, 1) if fault == "poll_for_ever" else SEEDS:
        device.seed = seed
        with pytest.raises(RuntimeError, match=KERNEL + DIVERGENCE[fault] + ".*" + SEED):
            getattr(faults, fault)()


def test_a_failed_launch_leaves_no_trace(faults, numbers):
    for _ in SEEDS:
        with pytest.raises(RuntimeError, match="divergent barrier"):
            faults.barrier_in_both_branches()
        assert faults.block_sum(numbers, 1, 256) == [sum(numbers)]


# ---- memory ----


@pytest.mark.skipif(simt.sanitized(), reason=NO_RACES)
@pytest.mark.parametrize(
    "fault",
    ["missing_barrier", "missing_syncwarp", "missing_second_barrier", "wrong_scope", "shuffle_for_barrier"],
)
def test_missing_barrier_is_a_race(faults, seed, fault):
    pattern = r"race: byte \d+ of shared memory is (loaded|stored) by block .*, then (loaded|stored), and no barrier"
    with pytest.raises(RuntimeError, match=KERNEL + pattern + r".*\[barriers\.cu:\d+\]" + SEED):
        getattr(faults, fault)(list(range(64)))


@pytest.mark.skipif(not simt.sanitized(), reason="the race is reported before it bites")
def test_missing_barrier_shows_in_the_result(faults, seed):
    x = list(range(64))
    assert faults.missing_barrier(x) != x[::-1]


@pytest.mark.skipif(simt.sanitized(), reason="AddressSanitizer ends the process")
def test_store_outside_shared_memory(faults, seed):
    faults.store_outside_shared(8, 8)
    with pytest.raises(RuntimeError, match=KERNEL + r"byte 32 of shared memory is stored, but the block has 32"):
        faults.store_outside_shared(8, 9)


def test_memory_of_an_ended_block(faults):
    device = simt.Device(faults)
    for seed in SEEDS:
        device.seed = seed
        with pytest.raises(RuntimeError, match=r"of block [01] of the cluster, which has ended"):
            faults.read_ended_block()


def test_mapped_address_must_be_shared(faults):
    with pytest.raises(RuntimeError, match="map_shared_rank of an address outside"):
        faults.map_outside()


def test_fresh_shared_memory_is_nan(faults):
    assert math.isnan(faults.read_fresh_shared())


def test_assertion_and_trap(faults):
    with pytest.raises(RuntimeError, match=r"thread \(31, 0, 0\): assertion `int\(threadIdx\.x\) < limit` failed at"):
        faults.failed_assertion()
    with pytest.raises(RuntimeError, match=r"__trap\(\)"):
        faults.trap()


@pytest.mark.parametrize(
    ("statement", "report"),
    [
        ("store_outside(31, 32)", "heap-buffer-overflow"),
        ("store_outside_shared(7, 8)", "use-after-poison"),
    ],
)
def test_sanitizer_catches_store_out_of_bounds(statement, report):
    simt.build(sanitize=True, target="_simt_faults")
    environment = {**os.environ, **simt.sanitizer_environment()}
    within = statement.replace("31", "32").replace("7", "8")
    for call, status in ((within, 0), (statement, 1)):
        command = [sys.executable, "-c", f"from tests import simt; simt.load('_simt_faults').{call}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) == status, done.stderr
    assert report in done.stderr
    assert "in kernel (anonymous namespace)::fill_" in done.stderr


# ---- launches ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 32, 0, 1, False), "invalid configuration"),
        ((1, 1025, 0, 1, False), "invalid configuration"),
        ((6, 32, 0, 4, False), "invalid configuration"),
        ((16, 32, 0, 16, False), "invalid configuration"),
        ((1, 32, 49 << 10, 1, False), "invalid argument"),
        ((1000, 1024, 0, 1, True), "too many blocks in cooperative launch"),
    ],
)
def test_launches_beyond_the_device_are_refused(faults, arguments, message):
    with pytest.raises(RuntimeError, match=message):
        faults.empty(*arguments)


def test_the_device_can_be_changed(faults):
    device = simt.Device(faults)
    faults.empty(16, 1024, 0, 8, False)
    with device.changed({device.MULTIPROCESSORS: 1}), pytest.raises(RuntimeError, match="too many blocks"):
        faults.empty(3, 1024, 0, 1, True)
    faults.empty(3, 1024, 0, 1, True)


def test_a_changed_device_knows_nothing_of_what_kernels_were_allowed(faults):
    device = simt.Device(faults)
    assert faults.set_shared_limit(100_000) == 100_000
    faults.empty(1, 32, 100_000, 1, False)
    with device.changed({device.MULTIPROCESSORS: 1}), pytest.raises(RuntimeError, match="invalid argument"):
        faults.empty(1, 32, 100_000, 1, False)


def test_clusters_at_once(faults):
    device = simt.Device(faults)
    with device.changed({device.MULTIPROCESSORS: 132}):
        assert [faults.clusters_at_once(size, False) for size in (2, 4, 8)] == [66, 32, 15]
        with pytest.raises(RuntimeError, match="cluster misconfiguration"):
            faults.clusters_at_once(16, False)
        assert faults.clusters_at_once(16, True) == 7
        with pytest.raises(RuntimeError, match="cluster misconfiguration"):
            faults.clusters_at_once(32, True)
    with device.changed({device.CLUSTERS_AT_ONCE + 8: 0, device.CLUSTERS_AT_ONCE + 16: 0}):
        faults.empty(4, 32, 0, 4, False)
        assert faults.clusters_at_once(8, False) == 0
        with pytest.raises(RuntimeError, match="invalid configuration"):
            faults.empty(8, 32, 0, 8, False)
    with device.changed({device.CLUSTER_LAUNCH: 0}):
        assert faults.clusters_at_once(2, False) == 0
        with pytest.raises(RuntimeError, match="invalid configuration"):
            faults.empty(2, 32, 0, 2, False)


def test_clusters_of_launches_are_recorded(faults):
    device = simt.Device(faults)
    device.take_clusters()
    for size in (1, 4, 8):
        faults.empty(16, 32, 0, size, False)
    assert device.take_clusters() == [1, 4, 8]
    assert device.take_clusters() == []


def test_a_limit_of_shared_memory_that_is_lowered(faults):
    device = simt.Device(faults)
    with device.changed({device.MULTIPROCESSORS: 5}):
        for size in (60_000, 100_000, 100_000):
            assert faults.set_shared_limit(size) == size
        with pytest.raises(RuntimeError, match=r"empty_kernel.*: the limit .* is lowered from 100000 to 60000 bytes"):
            faults.set_shared_limit(60_000)


# ---- arithmetic ----


def values():
    """float64 numbers at, between and beside float16 and bfloat16 numbers."""
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    x = torch.cat([every.view(torch.float16).double()[::37], every.view(torch.bfloat16).double()[::37]])
    x = x[torch.isfinite(x)]
    middle = (x[:-1] + x[1:]) / 2
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(1000, dtype=torch.float64, generator=generator) * torch.logspace(-45, 38, 1000).double()
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 65519.99, 65520.0, 2.0**-25, 2.0**-24 * 1.5])
    halfway = 1 + 2.0**-11 + torch.tensor([0, 1, -1], dtype=torch.float64) * 2.0**-40
    return torch.cat([x, middle, torch.nextafter(middle, x[1:]), spread, special.double(), halfway]).float().double()


@pytest.mark.parametrize(("name", "dtype"), [("through_half", torch.float16), ("through_bfloat16", torch.bfloat16)])
def test_halves_round_as_torch_does(faults, name, dtype):
    x = values()
    out = torch.tensor([getattr(faults, name)(v) for v in x.tolist()])
    torch.testing.assert_close(out, x.float().to(dtype).float(), rtol=0, atol=0, equal_nan=True)


def test_halves_round_doubles_once(faults):
    assert faults.through_half(1 + 2.0**-11 + 2.0**-40) == 1 + 2.0**-10
    assert faults.through_half(1 + 2.0**-11) == 1
    assert faults.through_bfloat16(1 + 2.0**-8 + 2.0**-40) == 1 + 2.0**-7
    assert faults.through_bfloat16(1 + 2.0**-8) == 1


def test_every_half_has_its_value(faults):
    bits = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    out = torch.tensor([faults.half_of_bits(b & 0xFFFF) for b in bits.tolist()])
    torch.testing.assert_close(out, bits.view(torch.float16).float(), rtol=0, atol=0, equal_nan=True)


def rounded(exact):
    """The float32 numbers below, nearest to (None where the test is not about it), above and toward zero."""
    nearest = struct.unpack("f", struct.pack("f", float(exact)))[0]

    def step(v, direction):
        return float(torch.nextafter(torch.tensor(v), torch.tensor(direction)))

    down = nearest if Fraction(nearest) <= exact else step(nearest, -math.inf)
    up = nearest if Fraction(nearest) >= exact else step(nearest, math.inf)
    return [down, up, down if exact > 0 else up]


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div"])
def test_directed_rounding(faults, operation):
    generator = random.Random(1)
    exactly = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
    }[operation]
    for _ in range(3000):
        a, b = (
            float(torch.tensor(generator.choice([-1, 1]) * generator.uniform(1, 2) * 2.0 ** generator.randrange(-9, 9)))
            for _ in range(2)
        )
        down, _, up, zero = faults.float_directed(operation, a, b)
        assert [down, up, zero] == rounded(exactly(Fraction(a), Fraction(b))), (a, b)


def test_doubles_round_to_floats(faults):
    generator = random.Random(2)
    for _ in range(3000):
        v = generator.uniform(-2, 2) * 2.0 ** generator.randrange(-100, 100)
        down, nearest, up, zero = faults.float_of_double(v)
        assert [down, up, zero] == rounded(Fraction(v))
        assert nearest == struct.unpack("f", struct.pack("f", v))[0]
    largest = struct.unpack("f", b"\xff\xff\x7f\x7f")[0]
    assert faults.float_of_double(1e300) == [largest, math.inf, math.inf, largest]
