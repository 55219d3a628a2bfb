"""What the main kernels have to do for the benchmark's cases, and what that takes at least: predictions, no times.

An issue floor is the number of instructions of all warps over the number that a GPU issues in a second; a memory floor
is the number of bytes that go through its memory over the bandwidth of a copy. The larger of both is what a kernel
takes at least: waiting for memory, for barriers and for launches comes on top.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from bench.budget.kernels import Counts
from bench.speed.cases import DTYPES, GPU, INPUTS, Case

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"float32": "float", "bfloat16": "bfloat16"}
_SAMPLED = 1 << 18  # entries of a case of which sweeps are counted
_SAMPLED_OF, _DEVIATIONS = 255, 5  # as in csrc/cuda/tuning.h and long_vectors.cu
_STATE_BYTES = {"projection": 400, "loss": 416}  # at least what solver.cuh and loss_sums.cuh keep per vector


class Device(NamedTuple):
    """What of a GPU a prediction needs; copy: bytes per second, read and written, as measured elsewhere."""

    name: str
    copy: float
    multiprocessors: int = 132
    clock: float = 1.755e9
    clusters: tuple[int, ...] = (66, 32, 15, 7)  # of 2, 4, 8 and 16 blocks that run at once
    shared: int = 233_472
    shared_per_block: int = 232_448

    @property
    def issued(self) -> float:
        """Instructions of warps per second."""
        return self.multiprocessors * 4 * self.clock


DEVICES = (Device("H100", 3.0e12), Device("H200", 4.3e12))


class Plan(NamedTuple):
    """As in csrc/cuda/tuning.h."""

    regime: str
    group: int
    columns: int
    threads: int
    blocks: int
    shared_bytes: int
    tiles: int
    teams: int
    resident: int
    staged: int
    list_bytes: int


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What one kernel takes at least for a case; instructions are those of warps."""

    case: Case
    kernel: str
    device: Device
    plan: Plan
    blocks: int  # per multiprocessor
    sweeps: float
    instructions: float
    moved: float
    copied: float  # bytes of a copy that does the same: reads what is read and writes what is written, once

    @property
    def issue(self) -> float:
        """The issue floor in seconds."""
        return self.instructions / self.device.issued

    @property
    def share(self) -> float:
        """The share of a copy's speed that is left if nothing but issue and memory takes time."""
        return self.copied / self.device.copy / max(self.issue, self.moved / self.device.copy)


@functools.cache
def _program() -> str:
    compiler = shutil.which("c++") or shutil.which("g++") or "c++"
    folder = tempfile.mkdtemp(prefix="budget-")
    program = f"{folder}/plans"
    source = str(Path(__file__).with_name("plans.cpp"))
    subprocess.run([compiler, "-O2", "-std=c++17", f"-I{ROOT / 'csrc'}", source, "-o", program], check=True)
    return program


def _ask(what: str, *numbers: float) -> list[str]:
    text = " ".join(repr(number) for number in numbers)
    return subprocess.run([_program(), what], input=text, check=True, capture_output=True, text=True).stdout.split()


@functools.cache
def plan_of(case: Case, device: Device, backward: bool = False) -> Plan:
    """The plan that the host makes for a case."""
    size = DTYPES[case.dtype].itemsize
    adjacent = case.layout == "columns"
    packs = case.n * size % 16 == 0 and not adjacent
    loss = case.operation == "loss"
    problem = (case.n, case.vectors, int(adjacent), int(packs), size, _STATE_BYTES[case.operation])
    limits = (device.multiprocessors, device.shared_per_block, device.shared, *device.clusters)
    regime, *numbers = _ask("plan", *limits, *problem, int(loss), int(backward))
    return Plan(regime, *map(int, numbers))


@functools.cache
def _searches(case: Case, together: int) -> list[list[str]]:
    """How csrc/newton.h searches the vectors of a case, `together` of a tile, in the letters of plans.cpp."""
    # A long vector is solved in as many steps as one of the same inputs that is shorter.
    n = min(case.n, _SAMPLED)
    vectors = max(min(case.vectors, _SAMPLED // n) // together, 1) * together
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(vectors, n, generator=generator)
    if INPUTS[case.inputs].draw is not torch.randn:
        raise ValueError(f"{case.label}: of normal inputs alone")
    x = x.to(DTYPES[case.dtype]).double()
    if case.operation == "loss":
        masses = torch.randint(case.vectors, (vectors, n), generator=generator).eq(0).sum(1).tolist()
    else:
        masses = [max(case.k * n // case.n, 1)] * vectors
    numbers: list[float] = [n, vectors, case.tau]
    for k, row in zip(masses, x.tolist(), strict=True):
        numbers += [k, *row]
    letters = _ask("searches", *numbers)
    return [letters[i : i + together] for i in range(0, vectors, together)]


def sweeps_of(case: Case, together: int) -> float:
    """How often `together` vectors of a case are swept until all are solved, on average."""
    return statistics.mean(max(map(len, tile)) - 1 for tile in _searches(case, together))


def sweeps_of_loss(case: Case, together: int) -> tuple[float, float]:
    """The same where the sweep that sums the loss up confirms what is nearly found, and how often that one is taken."""
    return tuple(statistics.mean(each) for each in zip(*map(sweeps_of_tile, _searches(case, together)), strict=True))


def sweeps_of_tile(searches: Sequence[str]) -> tuple[int, int]:
    """As `sweeps_of_loss`, of the letters of its vectors."""
    sweeps = last = 0
    guessed: set[int] = set()  # in vain, which is done once
    for letters in itertools.zip_longest(*searches, fillvalue="d"):
        wrong = {i for i, letter in enumerate(letters) if letter == "w"}
        if "s" not in letters and not any(letters[i] in "rw" for i in guessed):
            last += 1
            if not wrong:
                break
            guessed |= wrong
        sweeps += 1
    return sweeps, last


def _blocks(plan: Plan, registers: int, device: Device) -> int:
    """Blocks of a multiprocessor."""
    warps = plan.threads // 32
    by_registers = 65_536 // (-(-registers * 32 // 256) * 256 * warps)
    by_shared = device.shared // (plan.shared_bytes + 1024)
    return min(by_registers, by_shared, 64 // warps, 32)


class _Costs:
    """The counts of one kernel for one type."""

    def __init__(self, counts: Mapping[tuple[str, str, str], Counts], kernel: str, dtype: str) -> None:
        self._of = {key[2]: value for key, value in counts.items() if key[:2] == ("sm_90", f"{kernel}<{NAMES[dtype]}>")}

    def __getitem__(self, name: str) -> float:
        return self._of[name].instructions

    def turn(self, plan: Plan) -> float:
        """Of a block, beside the entries: the first warp adds up for all, and decides."""
        return self["turn of the first warp"] + (plan.threads // 32 - 1) * self["turn of another warp"]


def predictions(
    counts: Mapping[tuple[str, str, str], Counts], registers: Mapping[tuple[str, str], int], device: Device
) -> Iterator[Prediction]:
    """Predict every case of the GPU's benchmark that projects or sums a loss."""
    for case in GPU:
        if case.operation == "projection":
            yield _projection(case, counts, registers, device)
        elif case.operation == "loss" and case.vectors % 4 == 0 and case.vectors >= 32:  # wide.cuh
            yield from _loss(case, counts, registers, device)


def _projection(
    case: Case,
    counts: Mapping[tuple[str, str, str], Counts],
    registers: Mapping[tuple[str, str], int],
    device: Device,
) -> Prediction:
    plan = plan_of(case, device)
    if plan.list_bytes:
        return _long(case, plan, counts, registers, device)
    entries, read = case.vectors * case.n, float(case.bytes)
    short = plan.regime == "short"
    kernel = "project_short" if short else "project_team"
    cost = _Costs(counts, kernel, case.dtype)
    sweeps = sweeps_of(case, plan.columns)
    if short:
        # From the third sweep on counts alone are taken first, and at last they suffice.
        counting = max(sweeps - 2, 0) * (cost["sweep after counts alone"] - cost["sweep"])
        instructions = plan.tiles * (cost["row"] + max(sweeps - 1, 1) * cost["sweep"] + counting)
        moved = 2 * read
    else:
        again = "" if plan.resident else ", read again"
        per_entry = cost["first pass" + again] + sweeps * cost["sweep" + again] + cost["last pass" + again]
        instructions = entries / 32 * per_entry + plan.tiles * plan.blocks * (sweeps + 1) * cost.turn(plan)
        moved = 2 * read if plan.resident else (sweeps + 3) * read
    blocks = _blocks(plan, registers["sm_90", f"{kernel}<{NAMES[case.dtype]}>"], device)
    return Prediction(case, kernel, device, plan, blocks, sweeps, instructions, moved, 2 * read)


def _long(
    case: Case,
    plan: Plan,
    counts: Mapping[tuple[str, str, str], Counts],
    registers: Mapping[tuple[str, str], int],
    device: Device,
) -> Prediction:
    """Of one long vector, if its sample helps."""
    cost, turn = _Costs(counts, "project_long", case.dtype), _Costs(counts, "project_team", case.dtype).turn(plan)
    entries, read = case.vectors * case.n, float(case.bytes)
    sampled = case.n // _SAMPLED_OF
    share = sampled * case.k / case.n
    few = share <= _DEVIATIONS * math.sqrt(share * (1 - share / sampled)) + 3
    sweeps = sweeps_of(case, 1)
    per_entry = cost["lists, open"] if few else cost["lists"] + cost["last pass"]
    # One or two roots of the sample; its check, the ends of the bracket, and the search among the lists.
    turns = sweeps + 3 if few else 3 * sweeps + 4
    instructions = entries / 32 * per_entry + plan.tiles * plan.blocks * turns * turn
    blocks = _blocks(plan, registers["sm_90", f"project_long<{NAMES[case.dtype]}>"], device)
    moved = (2 if few else 3) * read
    return Prediction(case, "project_long", device, plan, blocks, sweeps, instructions, moved, 2 * read)


def _loss(
    case: Case,
    counts: Mapping[tuple[str, str, str], Counts],
    registers: Mapping[tuple[str, str], int],
    device: Device,
) -> Iterator[Prediction]:
    entries, read = case.vectors * case.n, float(case.bytes)
    name = NAMES[case.dtype]
    plan, cost = plan_of(case, device), _Costs(counts, "loss_team", case.dtype)
    sweeps, last = sweeps_of_loss(case, plan.columns)
    per_entry = cost["first pass"] + sweeps * cost["sweep"] + last * cost["loss"]
    instructions = entries / 32 * per_entry + plan.tiles * plan.blocks * (sweeps + last + 1) * cost.turn(plan)
    blocks = _blocks(plan, registers["sm_90", f"loss_team<{name}>"], device)
    yield Prediction(case, "loss_team", device, plan, blocks, sweeps, instructions, read, read)
    plan, cost = plan_of(case, device, True), _Costs(counts, "loss_gradient_wide", case.dtype)
    blocks = _blocks(plan, registers["sm_90", f"loss_gradient_wide<{name}>"], device)
    instructions = entries / 32 * cost["gradient"]
    yield Prediction(case, "loss_gradient_wide", device, plan, blocks, 0, instructions, 2 * read, 2 * read)
