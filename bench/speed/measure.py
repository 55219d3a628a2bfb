"""How a case is measured: agreement first, then memory, then time, in turns.

Agreement: what computes the same thing is compared with the float64 reference, result and gradient, and is not timed
when it is wrong. Time: the contenders take turns in a new random order every round, so that a machine that is busy for
a while is busy for all of them, and a ratio is the median of the ratios within the rounds. Memory: the peak of the
process's resident set, which counts every allocator. On a GPU every case is timed twice, by what the device spends and
by what the caller waits for: bench/speed/clocks.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import gc
import hashlib
import importlib.machinery
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hypersimplex_ext
from bench.results import Record, environment
from bench.speed import gpu, overhead, peers
from bench.speed.cases import DENSE, DTYPES, FENCHEL_YOUNG, HALF_MASS, Case
from bench.speed.clocks import Clock, DeviceClock, HostClock
from bench.speed.contender import OURS, Contender, Prepared
from hypersimplex_ext import reference

# Largest error of a contender that is timed: of an entry of the projection; else relative to the largest entry.
TOLERANCES = {"float32": 1e-4, "float64": 1e-9, "bfloat16": 1e-2, "float16": 1e-2}
_KINK = 1e-5  # an entry this close to 0 or 1 may be active or not, depending on rounding
_CHECKED = 1 << 20  # entries that are compared with the reference: as many vectors as fit, at least one
_CHECKED_SLOWLY = 20_000  # entries for a reference that takes them one by one
_BLOCK = 1 << 22  # logits of a loss that the reference takes at a time
_WARM_SECONDS = 0.05  # calls shorter than this are made once, untimed, before each sample
_ONCE_SECONDS = 3.0  # a call longer than this is its contender's only sample


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure: a contender takes part in `rounds` rounds, or in 3 or more that take `seconds` together.

    A call of several seconds is made once.

    Attributes:
        brief: whether, where a GPU is short of time, only those take part that targets are about.
    """

    rounds: int
    seconds: float
    brief: bool = False


def measure(case: Case, effort: Effort) -> Record:
    """Measure a case and return its record.

    Returns:
        The case and the effort; the environment; `systems`, by name of the contender: `same`, `error` and
        `gradient_error` (largest, against float64; None where nothing can be compared), `memory` (peak of forward and
        backward in bytes beside the input; in the group "memory"), `forward` and `both` (seconds of a call: median,
        p20, p80, number of samples, and `ratio` to this package); or only `failure`, for a peer that failed. On a GPU
        `forward_called` and `both_called` as well, what the caller waits for, and `gpu`: see
        `bench.speed.gpu.describe`. In the group "loss-overhead" `parts` as well: see `bench.speed.overhead.parts`.

    Raises:
        RuntimeError: this package disagrees with the reference.
    """
    with _threads(case.threads or torch.get_num_threads()):
        x, v, classes = case.draw()
        check = _check(case, x, v, classes)
        systems: dict[str, Record] = {}
        ready: dict[str, Prepared] = {}
        for name, contender in peers.contenders(case, effort.brief).items():
            try:
                prepared = contender.prepare(case, x, v, classes)
                systems[name] = _inspect(case, contender, prepared, check)
                ready[name] = prepared
            except Exception as failure:  # whatever a peer raises is its result
                if name == OURS:
                    raise RuntimeError(f"{case.label}, {case.inputs}: {failure}") from failure
                systems[name] = {"failure": f"{type(failure).__name__}: {failure}".partition("\n")[0]}
        if case.group != "memory":
            for (suffix, clock), direction in itertools.product(_clocks(case.device).items(), ("forward", "both")):
                functions = {name: getattr(prepared, direction) for name, prepared in ready.items()}
                for name, record in _summarise(_alternate(functions, effort, clock)).items():
                    systems[name][direction + suffix] = record
        profile = {"parts": overhead.parts(case)} if case.group == "loss-overhead" else {}
        device = {"gpu": gpu.describe()} if case.device == "cuda" else {}
        return {**_key(case, effort), **environment(torch.device(case.device)), **device, **profile, "systems": systems}


def key(case: Case, effort: Effort) -> Record:
    """Return what makes a record of this case worth keeping: the same case, effort, machine, versions and build."""
    with _threads(case.threads or torch.get_num_threads()):
        place = environment(torch.device(case.device))
    place.pop("date")
    return {**_key(case, effort), **place}


def _key(case: Case, effort: Effort) -> Record:
    return {
        "case": dataclasses.asdict(case),
        "effort": dataclasses.asdict(effort),
        "versions": peers.versions(),
        "build": _build(),
        **({"driver": gpu.driver()} if case.device == "cuda" else {}),
    }


@functools.cache
def _clocks(device: str) -> dict[str, Clock]:
    """Return the clocks to measure by, and what they add to the name of a direction."""
    if device == "cuda":
        return {"": DeviceClock(torch.device(device)), "_called": HostClock(torch.cuda.synchronize)}
    return {"": HostClock()}


@functools.cache
def _build() -> Record:
    """Return version, vector extension and digest of the native core."""
    info = hypersimplex_ext.build_info()
    folder = Path(hypersimplex_ext.__file__).parent
    files = (folder / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    digest = next((hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in files if file.exists()), None)
    return {
        "version": info.version,
        "vector_extension": info.vector_extension,
        "cuda": info.cuda,
        "cuda_architectures": list(info.cuda_architectures),
        "digest": digest,
    }


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- agreement ----

Check = Callable[[Tensor, Tensor], "tuple[float | None, float | None]"]


def _inspect(case: Case, contender: Contender, prepared: Prepared, check: Check) -> Record:
    """Return what can be told without a clock; raise if the contender is wrong."""
    record: Record = {"same": contender.same(case)}
    result = prepared.to_tensor(prepared.forward())
    gradient = prepared.to_tensor(prepared.both())
    if record["same"]:
        record["error"], record["gradient_error"] = check(result, gradient)
        for name in ("error", "gradient_error"):
            if record[name] is not None and not record[name] <= TOLERANCES[case.dtype]:
                raise ArithmeticError(f"{name} {record[name]:.1e} against float64, {TOLERANCES[case.dtype]:g} allowed")
    if case.group == "memory":
        del result, gradient
        record["memory"] = peak_memory(prepared.both)
    return record


def _check(case: Case, x: Tensor, v: Tensor, classes: Tensor) -> Check:
    if case.operation == "loss":
        return _loss_check(case, x, peers.target_of(case, v, classes))
    return _projection_check(case, x, v) if case.operation == "projection" else _order_check(case, x, v)


def _order_check(case: Case, x: Tensor, v: Tensor) -> Check:
    """Compare a few vectors, which the reference takes one by one; values alone, as any vector may be near a kink."""
    count = min(case.vectors, max(_CHECKED_SLOWLY // case.n, 1))
    name, _, regularization = case.operation.partition(", ")
    z = x.narrow(1 - case.dim, 0, count).double()
    expected = {
        "sort": lambda: z.sort(case.dim).values,
        "regression": lambda: reference.isotonic_regression(z, dim=case.dim),
        "soft rank": lambda: reference.soft_rank(z, regularization, dim=case.dim),
        "soft sort": lambda: reference.soft_sort(z, regularization, dim=case.dim),
    }[name]()

    def check(result: Tensor, _: Tensor) -> tuple[float | None, float | None]:
        found = result.narrow(1 - case.dim, 0, count).double()
        return _largest(found - expected) / max(float(expected.abs().max()), 1e-30), None

    return check


def _projection_check(case: Case, x: Tensor, v: Tensor) -> Check:
    """Compare evenly spread vectors, and of these the gradients of those that have no entry near a kink."""
    count = min(case.vectors, max(_CHECKED // case.n, 1))
    chosen = torch.linspace(0, case.vectors - 1, count, dtype=torch.float64, device=x.device).long()

    def take(tensor: Tensor) -> Tensor:
        return tensor.index_select(1 - case.dim, chosen).double()

    z, tau = take(x), torch.full((count,), case.tau, dtype=torch.float64, device=x.device)
    state = reference.threshold(z, case.k, tau, case.dim)
    y = reference.evaluate(z, state, tau, case.dim)
    gradient = reference.jvp(z, take(v), state, tau, case.dim)[0]
    clear = _clear(z, state, case.tau, case.dim)

    def check(result: Tensor, their_gradient: Tensor) -> tuple[float | None, float | None]:
        return _largest(take(result) - y), _relative(take(their_gradient), gradient, clear)

    return check


def _loss_check(case: Case, x: Tensor, targets: Tensor) -> Check:
    """Compare the loss, and the gradients of the classes that have no entry near a kink.

    Of a grid's larger tensors, compare the gradients of evenly spread classes alone.
    """
    count = case.vectors if case.group != "loss-grid" else min(case.vectors, max(_CHECKED // case.n, 1))
    chosen = torch.linspace(0, case.vectors - 1, count, dtype=torch.float64, device=x.device).long()
    kind = "fenchel_young" if case.variant == FENCHEL_YOUNG else "squared"
    dense = case.variant == DENSE or case.vectors == 1
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    gradients, clears = [], []
    for columns in torch.split(chosen, max(_BLOCK // case.n, 1)):
        z = x[:, columns].double()
        target = targets[:, columns].double() if dense else (targets[:, None] == columns).double()
        mass = torch.full_like(target[0], case.n // 2) if case.variant == HALF_MASS else target.sum(0)
        terms, gradient = reference.loss(z, target, mass, case.tau, kind=kind)
        state = reference.threshold(z, mass, case.tau, 0)
        total += terms.sum() / x.numel()
        gradients.append(gradient / x.numel())
        clears.append(_clear(z, state, case.tau, 0))
    expected, clear = torch.cat(gradients, 1), torch.cat(clears, 1)
    least = torch.finfo(DTYPES[case.dtype]).smallest_normal * torch.finfo(DTYPES[case.dtype]).eps

    def check(result: Tensor, their_gradient: Tensor) -> tuple[float | None, float | None]:
        difference = their_gradient[:, chosen].double() - expected
        known = difference.sign() * (difference.abs() - least).clamp(min=0)  # gradients of a mean can be that small
        error = _largest(result.double() / total - 1) if count == case.vectors else None
        return error, _relative(expected + known, expected, clear)

    return check


def _clear(z: Tensor, state: Tensor, tau: float, dim: int) -> Tensor:
    """Return for each vector, with one entry along dim, whether no entry is so near a kink that rounding decides."""
    p, d = state.unsqueeze(dim + 1)
    u = ((z - p) - d) / tau
    clear: Tensor = (u.abs() > _KINK) & ((u - 1).abs() > _KINK)
    return clear.all(dim, keepdim=True)


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _relative(actual: Tensor, expected: Tensor, clear: Tensor) -> float | None:
    """Return the largest error relative to the largest entry, over the vectors that are clear; None without any."""
    scale = float(torch.where(clear, expected, 0.0).abs().max())
    return float(torch.where(clear, actual - expected, 0.0).abs().max()) / scale if scale > 0 else None


# ---- memory ----


def peak_memory(function: Callable[[], object]) -> int | None:
    """Return by how many bytes a call raises the process's resident set at its peak; None where Linux is not at hand.

    The function is called twice, so that what only a first call needs is not counted.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    function()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # or the call is served from pages that an earlier one left
    reset.write_text("5")  # the peak starts again from the present

    def kilobytes(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))

    before = kilobytes("VmRSS:")
    result = function()
    peak = kilobytes("VmHWM:")
    del result
    return 1024 * (peak - before)


# ---- time ----


def _alternate(
    functions: dict[str, Callable[[], Any]], effort: Effort, clock: Clock | None = None
) -> dict[str, list[float]]:
    """Return the seconds of a call in every round; a contender that drops out lacks the last rounds."""
    clock = clock or HostClock()
    calls, warm = {}, {}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for name, function in functions.items():
        duration = clock.time(function, 1)
        if duration > _ONCE_SECONDS:
            samples[name].append(duration)
            continue
        duration = min(clock.time(function, 1) for _ in range(2))
        calls[name] = clock.calls(duration)
        warm[name] = duration < _WARM_SECONDS
    spent = dict.fromkeys(calls, 0.0)
    order = list(calls)
    shuffle = random.Random(0).shuffle
    for _ in range(effort.rounds):
        shuffle(order)
        for name in order:
            if len(samples[name]) >= 3 and spent[name] > effort.seconds:
                continue
            if warm[name]:
                functions[name]()
            duration = clock.time(functions[name], calls[name])
            spent[name] += duration
            samples[name].append(duration / calls[name])
    return samples


def _summarise(samples: dict[str, list[float]]) -> dict[str, Record]:
    ours = samples[OURS]
    records = {}
    for name, times in samples.items():
        p20, median, p80 = np.quantile(times, (0.2, 0.5, 0.8))
        ratio = np.median([theirs / our for theirs, our in zip(times, ours, strict=False)])
        records[name] = {
            "median": float(median),
            "p20": float(p20),
            "p80": float(p80),
            "samples": len(times),
            "ratio": float(ratio),
        }
    return records
