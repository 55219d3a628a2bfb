"""The committed budget: what the main kernels were compiled to, and what has become worse since."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench.budget.kernels import COUNTED, TYPES, Counts, Stretch, report, symbol_part

FILE = Path(__file__).with_name("budget.json")
RISE = 1.05  # of instructions and registers, beyond which the check fails

Key = tuple[str, str, str]


class Budget(NamedTuple):
    """Counts by architecture, kernel<type> and stretch; registers by architecture and kernel<type>."""

    counts: dict[Key, Counts]
    registers: dict[tuple[str, str], int]


def of_objects(objects: Iterable[Path]) -> Budget:
    """Disassemble object files and count; needs the toolkit's cuobjdump."""
    counts: dict[Key, Counts] = {}
    registers: dict[tuple[str, str], int] = {}
    missing: list[str] = []
    for path in objects:
        found = report(_printed("-sass", path))
        counts |= found.counts
        missing += found.missing
        registers |= usage(_printed("-res-usage", path))
    if missing:
        raise ValueError("not found in the kernels: " + "; ".join(missing))
    return Budget(counts, registers)


def _printed(option: str, path: Path) -> str:
    done = subprocess.run(
        ["cuobjdump", option, str(path)], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.stdout.decode()


def usage(printed: str) -> dict[tuple[str, str], int]:
    """Registers of the main kernels, from what `cuobjdump -res-usage` prints."""
    registers = {}
    for part in re.split(r"^arch = ", printed, flags=re.MULTILINE)[1:]:
        for symbol, used in re.findall(r"Function (\w+):\s+REG:(\d+)", part):
            for kernel in dict.fromkeys(what.kernel for what in COUNTED):
                for name, (mangled, _) in TYPES.items():
                    if symbol_part(kernel, mangled) in symbol:
                        registers[part.split()[0], f"{kernel}<{name}>"] = int(used)
    return registers


def save(budget: Budget, path: Path = FILE) -> None:
    """Write a budget, one kernel's stretch a line."""
    lines = [json.dumps([*key, *counts]) for key, counts in sorted(budget.counts.items())]
    lines += [json.dumps([*key, registers]) for key, registers in sorted(budget.registers.items())]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def load(path: Path = FILE) -> Budget:
    """Read what `save` wrote."""
    budget = Budget({}, {})
    for line in json.loads(path.read_text()):
        if len(line) == 3:
            budget.registers[line[0], line[1]] = line[2]
        else:
            budget.counts[line[0], line[1], line[2]] = Counts(*line[3:])
    return budget


def worse(now: Budget, before: Budget) -> Iterator[str]:
    """What has risen above the budget, for the architectures that were compiled."""
    compiled = {key[0] for key in now.counts}
    for key, counts in before.counts.items():
        if key[0] not in compiled:
            continue
        name = f"{key[1]}, {key[0]}, {key[2]}"
        found = now.counts.get(key)
        if found is None:
            yield f"{name}: not found"
            continue
        if found.instructions > RISE * counts.instructions:
            yield f"{name}: {found.instructions:g} instructions, {counts.instructions:g} in the budget"
        if found.at_once < counts.at_once:
            yield f"{name}: {found.at_once} loads at once, {counts.at_once} in the budget"
        if found.local > counts.local:
            yield f"{name}: {found.local} accesses to local memory, {counts.local} in the budget"
        if found.barriers > counts.barriers:
            yield f"{name}: {found.barriers} barriers, {counts.barriers} in the budget"
    for kernel, registers in before.registers.items():
        if kernel[0] in compiled and now.registers.get(kernel, 0) > RISE * registers:
            yield f"{kernel[1]}, {kernel[0]}: {now.registers[kernel]} registers, {registers} in the budget"
    for key in now.counts.keys() - before.counts.keys():
        yield f"{key[1]}, {key[0]}, {key[2]}: not in the budget"


def table(budget: Budget) -> Iterator[str]:
    """Markdown: every count, and the registers."""
    yield "| kernel | architecture | registers | stretch | instructions | of 16 bytes at once | local | barriers |"
    yield "|---|---|---|---|---|---|---|---|"
    per_entry = {(what.kernel, what.name) for what in COUNTED if isinstance(what, Stretch)}
    for (architecture, kernel, name), counts in sorted(budget.counts.items()):
        unit = "an entry" if (kernel.split("<")[0], name) in per_entry else "a turn of a warp"
        registers = budget.registers.get((architecture, kernel), 0)
        yield (
            f"| {kernel} | {architecture} | {registers} | {name} | {counts.instructions:g} {unit} | "
            f"{counts.at_once or '-'} | {counts.local} | {counts.barriers} |"
        )
