"""The benchmark of the CUDA kernels, as far as it can be told without a GPU: what is compared computes the same, the
tables say what the records hold."""

import dataclasses
import json
import os
from types import SimpleNamespace

import pytest
import torch

import bench.__main__ as command
from bench.results import ResultsFile
from bench.speed import cases, gpu, gpu_tables, measure, nvcc, peers, thread_per_row
from bench.speed.cases import Case
from bench.speed.contender import COPY, OURS
from bench.speed.measure import Effort
from bench.speed.peers import THREAD_PER_ROW
from hypersimplex_ext import reference
from tests import simt

from .cases import clear_of_kinks, draw, masses

EFFORT = Effort(rounds=1, seconds=0.0)


# ---- a thread per row, on the emulator ----


@pytest.fixture(scope="module")
def kernels():
    return thread_per_row.Kernels(simt.library("thread_per_row"), lambda: 0)


MODERATE = [
    "normal",
    "narrow",
    "wide",
    "constant",
    "two_point",
    "bfloat16_rounded",
    "lattice",
    "thirds",
    "sorted",
    "steps",
]


@pytest.mark.parametrize("name", MODERATE)
def test_a_thread_per_row_projects(kernels, name):
    n = 150
    x, tau = draw(name, n)
    k = torch.tensor(masses(n))
    x = x.expand(len(k), n).contiguous()
    leaf = x.clone().requires_grad_()
    y = thread_per_row.project(leaf, k, tau, 1, kernels)
    expected = reference.project_bisection(x.double(), k.double(), tau)
    accuracy = 4e-7 * max(1.0, float((x / tau).abs().max()))
    assert (y.double() - expected).abs().max() <= accuracy
    v = torch.randn(x.shape)
    (grad,) = torch.autograd.grad(y, leaf, v)
    product, _ = reference.jvp(x.double(), v.double(), reference.threshold(x, k, tau), tau)
    clear = clear_of_kinks(x, k, tau, margin=2 * accuracy)
    torch.testing.assert_close(grad[clear].double() * tau, product[clear] * tau, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
def test_a_thread_per_row_takes_any_number_of_rows_and_columns(kernels, rows):
    x = torch.randn(rows, 9)
    y = thread_per_row.project(x, 2, 0.7, 1, kernels)
    torch.testing.assert_close(y, reference.project_bisection(x, 2, 0.7), rtol=0, atol=1e-6)
    assert torch.equal(thread_per_row.project(x.t(), 2, 0.7, 0, kernels), y.t())
    assert thread_per_row.project(x.bfloat16(), 2, 0.7, 1, kernels).dtype == torch.bfloat16


def test_a_failed_launch_of_a_thread_per_row_is_an_error(kernels):
    device = simt.Device(SimpleNamespace(__file__=simt.library("thread_per_row")))
    most, device[1] = device[1], 32  # threads per block
    try:
        with pytest.raises(RuntimeError, match="thread_per_row_pool: CUDA error 9"):
            thread_per_row.project(torch.randn(3, 9), 2, 1.0, 1, kernels)
    finally:
        device[1] = most


def test_nvcc_compiles_a_thread_per_row_once(monkeypatch, tmp_path):
    try:
        nvcc.nvcc()
    except RuntimeError:
        pytest.skip("no CUDA toolkit")
    monkeypatch.setattr(nvcc, "BUILD", tmp_path / "build")
    library = nvcc.compiled(thread_per_row.SOURCE, "sm_90")
    assert library.read_bytes().startswith(b"\x7fELF")
    monkeypatch.setattr(nvcc, "nvcc", None)
    assert nvcc.compiled(thread_per_row.SOURCE, "sm_90") == library
    assert os.listdir(library.parent) == [library.name]


def test_nvcc_that_fails_or_is_absent_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(nvcc, "BUILD", tmp_path / "build")
    program = tmp_path / "bin" / "nvcc"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'no such architecture' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"nvcc could not compile thread_per_row\.cu: no such architecture"):
        nvcc.compiled(thread_per_row.SOURCE, "sm_1")
    monkeypatch.delenv("CUDA_HOME")
    with pytest.raises(RuntimeError, match="no nvcc on PATH, in CUDA_HOME or in CUDA_PATH"):
        nvcc.compiled(thread_per_row.SOURCE, "sm_1")


# ---- what is compared ----


@pytest.fixture
def here(monkeypatch, kernels):
    """A function that takes a GPU's case to this machine, with the same contenders, the thread per row emulated."""
    monkeypatch.setattr(thread_per_row, "on_gpu", lambda: kernels)
    for table in (peers.CONTENDERS, peers.LOSSES):
        monkeypatch.setitem(
            table, THREAD_PER_ROW, dataclasses.replace(table[THREAD_PER_ROW], applies=lambda case: True)
        )
    return lambda case: dataclasses.replace(case, device="cpu")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """A function that gives a record made here what one made on a GPU has."""
    described = {"copy_bandwidth": 1e9, "sm_clock": 1980.0, "memory_clock": 3201.0}

    def dress(record, device="cuda"):
        record = json.loads(json.dumps(record))
        record["case"]["device"] = device
        record["build"].update(cuda="13.0", cuda_architectures=["90-real"])
        for system in record["systems"].values():
            system["forward_called"], system["both_called"] = system["forward"], system["both"]
        return {**record, "gpu": described, "driver": "580.1"}

    return dress


MOVING = [case for case in cases.GPU_SMOKE if case.group != "order"]


@pytest.mark.parametrize("case", MOVING, ids=lambda case: case.label)
def test_what_is_compared_computes_the_same(here, as_on_a_gpu, case):
    record = measure.measure(here(case), EFFORT)
    same = {name for name, system in record["systems"].items() if system.get("same")}
    assert same == {OURS, "torch, bisection", THREAD_PER_ROW}, record["systems"]
    others = {"F.cross_entropy"} if case.operation == "loss" else set()
    assert set(record["systems"]) - same == {"torch.softmax", "torch.sort", COPY} | others
    for system in record["systems"].values():
        assert system["both"]["median"] > 0
    printed = gpu_tables.tables([as_on_a_gpu(record)])
    assert printed.count(case.label) == 3
    assert "1980 MHz" in printed


@pytest.mark.parametrize("case", [c for c in cases.GPU_SMOKE if c.group == "order"], ids=lambda case: case.label)
def test_sorting_and_ranking_are_measured_beside_torch_sort(here, as_on_a_gpu, case):
    assert {OURS, COPY} <= set(peers.contenders(case)) <= {OURS, COPY, "torch.sort"}
    printed = gpu_tables.tables([as_on_a_gpu(measure.measure(here(case), EFFORT))])
    assert printed.count(case.label) == 1


def test_cases_are_those_that_were_asked_for():
    assert all(case.device == "cuda" for case in cases.GPU)
    assert len({case.label for case in cases.GPU}) == len(cases.GPU) == len(set(cases.GPU))
    ordered = {(c.vectors, c.n) for c in cases.GPU if c.group == "order"}
    assert ordered == {(4096, 1000), (10, 8192), (64, 262_144)}
    chosen = [case for case in cases.GPU if case.group != "order"]
    sizes = [(16_384, 1024), (65_536, 128), (4096, 8192), (64, 262_144), (1, 10**8), (10, 8192)]
    assert {(c.vectors, c.n) for c in chosen if c.operation == "projection"} == set(sizes)
    losses = [(8192, 10), (65_536, 10), (65_536, 1000), (8192, 32_000)]
    assert {(c.n, c.vectors) for c in chosen if c.operation == "loss"} == set(losses)
    assert {c.dtype for c in chosen} == {"float32", "bfloat16"}
    assert {c.k for c in chosen if c.n == 1024} == {5, 512}
    serial = [c for c in chosen if THREAD_PER_ROW in peers.contenders(c)]
    assert {c.n for c in chosen} - {c.n for c in serial} == {10**8}


def test_the_same_numbers_are_drawn_on_every_device():
    case = cases.GPU_SMOKE[0]
    first = dataclasses.replace(case, device="cpu").draw()
    second = dataclasses.replace(case, device="meta").draw()
    assert [t.device.type for t in second] == ["meta"] * 3
    assert all(a.shape == b.shape for a, b in zip(first, second, strict=True))


# ---- tables ----


def record_of(case, seconds, bandwidth=1e12):
    """A record in which contenders, ours first, take so many seconds in every direction; ratios are theirs to ours."""
    ours = seconds[OURS]
    systems = {}
    for name, time in seconds.items():
        times = {"median": time, "p20": time, "p80": time, "samples": 3, "ratio": time / ours}
        directions = ("forward", "both", "forward_called", "both_called")
        systems[name] = {"same": True, "error": 0.0, "gradient_error": None, **dict.fromkeys(directions, times)}
    return {"case": dataclasses.asdict(case), "systems": systems, "gpu": {"copy_bandwidth": bandwidth}}


def test_bandwidth_counts_what_has_to_be_moved():
    rows = Case("gpu-rows", 100, 50, 5, dtype="bfloat16", device="cuda")
    record = record_of(rows, {OURS: 0.5})
    assert gpu_tables.bandwidth(record, "forward") == 2 * 10_000 / 0.5
    assert gpu_tables.bandwidth(record, "both") == 5 * 10_000 / 0.5
    batch = Case("gpu-loss", 10, 50, 0, "loss", "columns", device="cuda")
    record = record_of(batch, {OURS: 0.5})
    assert gpu_tables.bandwidth(record, "forward") == (2000 + 400) / 0.5
    assert gpu_tables.bandwidth(record, "both") == (6000 + 800) / 0.5


@pytest.mark.parametrize(
    ("case", "others", "time", "reached", "met"),
    [
        (Case("gpu-rows", 16_384, 1024, 5), {}, 2 * 2**26 / 0.81e12, 0.81, True),
        (Case("gpu-rows", 4096, 8192, 4096), {}, 2 * 2**27 / 0.79e12, 0.79, False),
        (Case("gpu-rows", 10, 8192, 4096), {THREAD_PER_ROW: 1.01}, 0.01, 101, True),
        (Case("gpu-rows", 10, 8192, 4096), {THREAD_PER_ROW: 0.99}, 0.01, 99, False),
        (Case("gpu-rows", 10, 8192, 4096), {}, 0.01, None, False),
        (Case("gpu-loss", 10, 8192, 0, "loss"), {"F.cross_entropy": 1.0}, 1.2, 1.2, True),
        (Case("gpu-loss", 10, 8192, 0, "loss"), {"F.cross_entropy": 1.0}, 1.21, 1.21, False),
        (Case("gpu-loss", 1000, 65_536, 0, "loss"), {"F.cross_entropy": 1.0}, 1.01, 1.01, False),
        (Case("gpu-loss", 1000, 65_536, 0, "loss"), {"F.cross_entropy": 1.0}, 1.0, 1.0, True),
    ],
)
def test_targets(case, others, time, reached, met):
    found = list(gpu_tables.targets(record_of(case, {OURS: time, **others})))
    assert len(found) == (2 if case.operation == "loss" else 1)
    for target in found:
        assert target.reached == (None if reached is None else pytest.approx(reached))
        assert target.met == met


def test_other_cases_have_no_target():
    others = [Case("gpu-rows", 65_536, 128, 64), Case("gpu-loss", 10, 65_536, 0, "loss")]
    assert [list(gpu_tables.targets(record_of(case, {OURS: 1.0}))) for case in others] == [[], []]
    concerned = [case for case in cases.GPU if list(gpu_tables.targets(record_of(case, {OURS: 1.0})))]
    assert len(concerned) == 2 * (2 + 1 + 1 + 1 + 1)  # both masses of 16384 x 1024; both dtypes of each


def test_the_table_command_prints_what_a_run_left(here, as_on_a_gpu, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(command.EFFORTS, "gpu", (cases.GPU_SMOKE, EFFORT))
    file = ResultsFile(tmp_path / "results.jsonl")
    for case in cases.GPU_SMOKE:
        file.append(as_on_a_gpu(measure.measure(here(case), EFFORT)))
    assert command.main(["table", "--gpu", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "copies 0.00 TB/s" in printed
    for case in MOVING:
        assert f"{case.label}, forward + backward" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path, capsys):
    assert command.main(["--gpu", "--out", str(tmp_path)]) == 1
    assert "error: a GPU is needed, and torch " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_kernels_nothing_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "require", lambda: torch.device("cpu"))
    monkeypatch.setattr(command, "build_info", lambda: SimpleNamespace(cuda=None))
    assert command.main(["--gpu", "--out", str(tmp_path)]) == 1
    assert "error: hypersimplex_ext is built without CUDA" in capsys.readouterr().err


# ---- the GPU's description ----


def smi(folder, monkeypatch, script):
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    gpu.driver.cache_clear()
    monkeypatch.setattr(gpu, "driver", gpu.driver.__wrapped__)


def test_what_nvidia_smi_reads(tmp_path, monkeypatch):
    answer = "1980, 3201, 1980, 3201, 700.00, [N/A]"
    smi(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/arguments; echo "{answer}"')
    told = gpu.readings(gpu._smi(list(gpu._READINGS)))
    assert told == {
        "sm_clock": 1980,
        "memory_clock": 3201,
        "largest_sm_clock": 1980,
        "largest_memory_clock": 3201,
        "power_limit": 700,
        "temperature": None,
    }
    asked = (tmp_path / "arguments").read_text()
    assert "--query-gpu=clocks.sm,clocks.mem," in asked
    assert "--format=csv,noheader,nounits" in asked


@pytest.mark.parametrize("script", ["exit 9", "echo No devices were found", "echo 1, 2; exit 6"])
def test_an_nvidia_smi_that_fails_tells_nothing(tmp_path, monkeypatch, script):
    smi(tmp_path, monkeypatch, script)
    assert gpu._smi(list(gpu._READINGS)) is None
    assert set(gpu.readings(None).values()) == {None}


def test_the_driver_is_named(tmp_path, monkeypatch):
    smi(tmp_path, monkeypatch, "echo 580.159.03")
    assert gpu.driver() == "580.159.03"


def test_a_copy_reads_and_writes(monkeypatch):
    """A tensor of 2^20 bytes, copied in 1 ms."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 22, 1 << 23))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(gpu, "_smi", lambda fields: None)
    times = iter([1e-3] * 20 + [5.0])
    clock = SimpleNamespace(time=lambda function, calls: (function(), next(times))[1])
    record = gpu._copying(torch.device("cpu"), clock)
    assert record["copy_bandwidth"] == 2 * (1 << 20) / 1e-3
    assert record["sm_clock"] is None


# ---- with a GPU ----


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_smoke_run_on_cuda(tmp_path):
    assert command.main(["--gpu-smoke", "--out", str(tmp_path)]) == 0
    records = ResultsFile(tmp_path / "results.jsonl").records
    assert [Case(**record["case"]) for record in records] == cases.GPU_SMOKE
    for record in records:
        assert record["gpu"]["copy_bandwidth"] > 1e9
        for name, system in record["systems"].items():
            assert "failure" not in system, (name, system)
