"""The instruction budget: how kernels are counted, on kernels known by hand and against what the emulator counts."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from bench import predict
from bench.budget import budget, kernels, workload
from bench.budget.kernels import Counts, Stretch
from bench.budget.kernels import Path as Way
from bench.budget.sass import functions
from bench.speed.cases import Case

HAND = Path(__file__).with_name("by_hand.cu")
toolkit = pytest.mark.skipif(not (shutil.which("nvcc") and shutil.which("cuobjdump")), reason="no CUDA toolkit")
emulator = pytest.mark.skipif(not importlib.util.find_spec("tests.simt"), reason="no emulator")


def listing(*lines):
    text = "\tcode for sm_90\n\t\tFunction : _Z6kernelIfEvv\n"
    for i, line in enumerate(lines):
        text += f"        /*{16 * i:04x}*/    {line} ;   /* 0x01 */\n"
    (code,) = functions(text)
    return code


# ---- loops and ways, of listings ----


def test_loops_and_the_ways_through_them():
    code = listing(
        "S2R R0, SR_TID.X",  # 0
        "LDG.E.128 R4, [R2.64]",  # 1: the outer loop
        "@P0 BRA 0x60",  # 2
        "FADD R4, R4, R4",  # 3: the inner one, of two instructions
        "@P1 BRA 0x30",  # 4
        "FADD R5, R5, R5",  # 5
        "@P2 BRA 0x10",  # 6
        "EXIT",  # 7
    )
    inner, outer = code.loops
    assert sorted(inner.members) == [3, 4]
    assert sorted(outer.members) == [1, 2, 3, 4, 5, 6]
    assert code.inner(outer) == [inner]
    assert [each.name for each in code.path("FADD", inner)] == ["FADD", "BRA"]
    # The way with the most marks, and without them the shortest; of the inner loop only its beginning.
    assert [each.address // 16 for each in code.path("FADD", outer)] == [1, 2, 3, 5, 6]
    assert [each.address // 16 for each in code.path("MUFU", outer)] == [1, 2, 6]
    assert [each.address // 16 for each in code.path("MUFU")] == [0, 1, 7]


def test_a_rare_mark_is_passed_as_often_as_it_may_be():
    branch = ["@P0 BRA 0x{}0", "SHFL R1, R1", "NOP", "FADD R2, R2, R1"]
    lines = [line.format(format(4 * i + 4, "x")) for i in range(3) for line in branch]
    code = listing(*lines, "EXIT")
    for most in range(4):
        taken = [each.name for each in code.path("MUFU", rare=("SHFL", most))]
        assert taken.count("SHFL") == most


def test_loads_at_once():
    loads = ["LDG.E.128 R4, [R2.64]", "LDG.E.128 R8, [R2.64]"]
    for lines, most in (
        ([*loads, "FADD R20, R4, R20"], 2),
        ([loads[0], "FADD R20, R7, R20", loads[1]], 1),
        ([loads[0], "@P1 BRA 0x30", loads[1]], 1),
        ([loads[0], "STG.E.128 [R2.64], R4", loads[1]], 1),
    ):
        code = listing(*lines, "@P0 BRA 0x0", "EXIT")
        assert code.at_once(code.loops[-1], r"LDG\.E\.128") == most


# ---- kernels that are known by hand ----


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    compiled = tmp_path_factory.mktemp("by_hand") / "by_hand.o"
    command = ["nvcc", "-O3", "-std=c++17", "-arch=sm_90", "-c", str(HAND), "-o", str(compiled)]
    subprocess.run(command, check=True, capture_output=True)
    printed = subprocess.run(["cuobjdump", "-sass", str(compiled)], check=True, capture_output=True, text=True).stdout
    counted = [Stretch(kernel, "loop", r"STG\.E\.128") for kernel in ("together", "singly", "indexed")]
    barriers = Way("turns", "turn", "SHFL", ("BAR", "SHFL"))
    return kernels.report(printed, [*counted, barriers]), list(functions(printed))


@toolkit
@pytest.mark.parametrize(("kernel", "packs"), [("together", 4), ("singly", 1)])
def test_instructions_of_an_entry(by_hand, kernel, packs):
    report, codes = by_hand
    counts = report.counts["sm_90", f"{kernel}<float>", "loop"]
    assert not report.missing
    assert counts.at_once == packs
    assert counts.local == counts.barriers == 0
    (code,) = (code for code in codes if f"{kernel}I" in code.symbol)
    (loop,) = code.loops
    names = [each.name.split(".")[0] for each in code.path("FADD", loop)]
    assert names.count("FADD") == 3 * 4 * packs
    assert names.count("LDG") == names.count("STG") == packs
    # Three additions an entry, a load and a store for four, and addresses: two for each of these, the end of the loop.
    exact = 3 + (1 + 1) / 4
    assert counts.instructions == round(len(names) / (4 * packs), 2)
    assert exact < counts.instructions <= exact + (2 + 2) / 4 + 3 / (4 * packs)


@toolkit
def test_turns_and_barriers(by_hand):
    report, _ = by_hand
    counts = report.counts["sm_90", "turns<float>", "turn"]
    assert counts.barriers == 3
    # Barriers, a load and a store, shuffles and additions, two branches with what they ask; and not the 50 products.
    assert 3 + 2 + 10 + 4 <= counts.instructions <= 3 + 2 + 10 + 4 + 6


@toolkit
def test_local_memory(by_hand):
    report, _ = by_hand
    assert report.counts["sm_90", "indexed<float>", "loop"].local == 1


# ---- the emulator's own counts ----


@pytest.fixture
def device(monkeypatch):
    simt = importlib.import_module("tests.simt")
    kernels_on_cpu = importlib.import_module("hypersimplex_ext._backends")
    module = simt.load("_C_simt")
    conftest = importlib.import_module("tests.conftest")
    backend = kernels_on_cpu.Backend(module.cuda, conftest._call_simt, False)
    monkeypatch.setitem(kernels_on_cpu.BACKENDS, "cpu", backend)
    return simt.Device(module)


def searches(x, masses):
    numbers = [x.shape[1], x.shape[0], 1.0]
    for k, row in zip(masses, x.tolist(), strict=True):
        numbers += [k, *row]
    return workload._ask("searches", *numbers)


@emulator
@pytest.mark.parametrize("regime", ["block:threads=64", "cluster:blocks=2,threads=64", "block:threads=64,stream=1"])
def test_loads_and_barriers_that_the_emulator_executes(device, monkeypatch, regime):
    """By the sweeps that newton.h takes on the host, and the passes and barriers that are counted in the kernel."""
    from hypersimplex_ext import soft_binary_argmax

    monkeypatch.setenv("HYPERSIMPLEX_REGIME", regime)
    torch.manual_seed(5)
    rows, n, k = 3, 2048, 300
    x = torch.randn(rows, n)
    device.take_counts()
    soft_binary_argmax(x, k)
    counts = device.take_counts()
    took = [len(letters) - 1 for letters in searches(x, [k] * rows)]
    blocks = 2 if "cluster" in regime else 1
    again = sum(took) + rows if "stream" in regime else 0  # all sweeps, and the last pass
    assert counts["packs"] == n // 4 * (rows + again)
    turns = sum(took) + rows
    counted = {
        name: counts.barriers
        for (architecture, kernel, name), counts in budget.load().counts.items()
        if (architecture, kernel) == ("sm_90", "project_team<float>") and name.startswith("turn")
    }
    barriers = counted["turn of the first warp"]
    assert counted["turn of another warp"] == barriers
    # Of a turn, and before and behind all turns of a tile. A cluster meets once more in a turn, and at last.
    assert counts["block_barriers"] == blocks * (barriers * turns + 2 * rows)
    assert counts["cluster_barriers"] == (turns + rows if blocks > 1 else 0)


@emulator
@pytest.mark.parametrize(("classes", "columns"), [(12, 1), (64, 4)])
def test_meetings_of_a_loss(device, monkeypatch, classes, columns):
    """Of a cluster: for moments, for sweeps, and for the loss, whose sweep confirms thresholds that are nearly found.

    Where it does not, the search goes on, and the loss is summed up once more.
    """
    from hypersimplex_ext import hypersimplex_loss

    monkeypatch.setenv("HYPERSIMPLEX_REGIME", f"cluster:blocks=2,columns={columns},threads=64")
    torch.manual_seed(columns)
    x, target = torch.randn(600, classes), torch.randint(classes, (600,))
    device.take_counts()
    hypersimplex_loss(x, target)
    letters = searches(x.T, target.bincount(minlength=classes).tolist())
    tiles = [letters[i : i + columns] for i in range(0, classes, columns)]
    took = [workload.sweeps_of_tile(tile) for tile in tiles]
    alone = [max(map(len, tile)) - 1 for tile in tiles]
    meetings = sum(1 + sweeps + last for sweeps, last in took)
    assert device.take_counts()["cluster_barriers"] == meetings + len(tiles)  # and when blocks leave
    assert meetings < sum(1 + sweeps + 1 for sweeps in alone)
    assert any(last == 2 for _, last in took)


def test_sweeps_of_a_tile():
    """Before every sweep: searching, nearly found and rightly or wrongly so, done."""
    assert workload.sweeps_of_tile(["sssd"]) == (3, 1)
    assert workload.sweeps_of_tile(["ssrd"]) == (2, 1)
    assert workload.sweeps_of_tile(["ssrd", "srd"]) == (2, 1)
    assert workload.sweeps_of_tile(["ssrd", "d"]) == (2, 1)
    assert workload.sweeps_of_tile(["ssrd", "sssd"]) == (3, 1)
    assert workload.sweeps_of_tile(["swsrd", "srd"]) == (4, 2)  # after a wrong guess none
    assert workload.sweeps_of_tile(["swd"]) == (2, 2)


# ---- the budget ----

KEY = ("sm_90", "project_team<float>", "sweep")


@pytest.mark.parametrize(
    ("now", "complaint"),
    [
        (Counts(10.4, 4, 1, 2), None),
        (Counts(10.6, 4, 1, 2), "10.6 instructions, 10 in the budget"),
        (Counts(9, 3, 1, 2), "3 loads at once, 4 in the budget"),
        (Counts(9, 4, 2, 2), "2 accesses to local memory, 1 in the budget"),
        (Counts(9, 4, 0, 3), "3 barriers, 2 in the budget"),
    ],
)
def test_what_is_worse_than_the_budget(tmp_path, now, complaint):
    before = budget.Budget({KEY: Counts(10, 4, 1, 2)}, {KEY[:2]: 64})
    budget.save(before, tmp_path / "budget.json")
    assert budget.load(tmp_path / "budget.json") == before
    found = list(budget.worse(budget.Budget({KEY: now}, {KEY[:2]: 64}), before))
    assert len(found) == (complaint is not None)
    assert all(complaint in line for line in found)


def test_registers_and_what_is_new_or_gone():
    one, other = {KEY: Counts(10, 4, 1, 2)}, {(*KEY[:2], "first pass"): Counts(1, 1, 0, 0)}
    assert list(budget.worse(budget.Budget(one, {KEY[:2]: 68}), budget.Budget(one, {KEY[:2]: 64})))
    assert len(list(budget.worse(budget.Budget(other, {}), budget.Budget(one, {})))) == 2
    elsewhere = {("sm_80", *key[1:]): counts for key, counts in one.items()}
    assert not list(budget.worse(budget.Budget(one, {}), budget.Budget(one | elsewhere, {})))


def test_registers_in_a_report():
    printed = (
        "arch = sm_90\n Function _Z12project_teamIfEEvv:\n  REG:64 STACK:0 SHARED:0 LOCAL:0\n Function _Z1fv:\n  REG:9"
    )
    assert budget.usage(printed) == {("sm_90", "project_team<float>"): 64}


# ---- what follows ----


def test_a_prediction_by_hand(monkeypatch):
    names = ("first pass", "sweep", "last pass", "turn of the first warp", "turn of another warp")
    costs = zip(names, (10, 8, 6, 500, 100), strict=True)
    counts = {("sm_90", "project_team<float>", name): Counts(cost, 4, 0, 0) for name, cost in costs}
    case = Case("gpu-rows", 4096, 8192, 4096, device="cuda")
    monkeypatch.setattr(workload, "GPU", [case])
    monkeypatch.setattr(workload, "sweeps_of", lambda case, together: 3.0)
    h100 = workload.DEVICES[0]
    (prediction,) = workload.predictions(counts, {("sm_90", "project_team<float>"): 64}, h100)
    plan = prediction.plan
    assert (plan.regime, plan.blocks, plan.tiles) == ("block", 1, 4096)
    warps = plan.threads // 32
    expected = 4096 * (8192 * (10 + 3 * 8 + 6) / 32 + 4 * (500 + (warps - 1) * 100))
    assert prediction.instructions == pytest.approx(expected)
    assert prediction.issue == pytest.approx(expected / (132 * 4 * 1.755e9))
    assert prediction.moved == prediction.copied == 2 * 4 * 4096 * 8192
    assert prediction.share == pytest.approx(min(1, prediction.copied / h100.copy / prediction.issue))
    assert prediction.blocks == min(
        65536 // (64 * plan.threads), h100.shared // (plan.shared_bytes + 1024), 64 // warps
    )


@pytest.mark.parametrize(("k", "moved", "per_entry", "turns"), [(50_000_000, 3, 15 + 6, 13), (5, 2, 7, 6)])
def test_a_prediction_of_a_long_vector(monkeypatch, k, moved, per_entry, turns):
    costs = zip(("lists", "lists, open", "last pass"), (15, 7, 6), strict=True)
    counts = {("sm_90", "project_long<float>", name): Counts(cost, 4, 0, 0) for name, cost in costs}
    turn = {"turn of the first warp": 500, "turn of another warp": 100}
    counts |= {("sm_90", "project_team<float>", name): Counts(cost, 0, 0, 2) for name, cost in turn.items()}
    case = Case("gpu-rows", 1, 100_000_000, k, device="cuda")
    monkeypatch.setattr(workload, "GPU", [case])
    monkeypatch.setattr(workload, "sweeps_of", lambda case, together: 3.0)
    registers = {("sm_90", "project_long<float>"): 64}
    (prediction,) = workload.predictions(counts, registers, workload.DEVICES[1])
    assert (prediction.plan.regime, prediction.plan.blocks, prediction.blocks) == ("grid", 264, 2)
    expected = 1e8 * per_entry / 32 + 264 * turns * (500 + 15 * 100)
    assert prediction.instructions == pytest.approx(expected)
    assert (prediction.moved, prediction.copied) == (moved * 4e8, 2 * 4e8)


def test_the_table_in_the_readme():
    """Printed anew it is the same, and each of its lines says what it is."""
    printed = list(predict.lines(budget.load()))
    assert all(line.startswith("| predicted:") for line in printed[2:])
    assert "\n".join(printed) in (Path(__file__).parents[1] / "README.md").read_text()
