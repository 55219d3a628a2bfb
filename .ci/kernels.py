"""Registers, shared memory and spills of every CUDA kernel, from what `ptxas -v` prints on standard input.

A kernel that spills more than `SPILLS` grants it is an error, or one with a stack for other variables, which lie in
memory where registers are meant; and so is a report without kernels.
"""

import re
import subprocess
import sys
from typing import NamedTuple

# Bytes stored or loaded, the larger of both, that a kernel may spill, and why that is no harm.
ONCE = "values kept over a whole pass, stored and loaded once per tile and phase, outside the loops over entries"
SPILLS = {
    "project_team": (96, ONCE + ", in which the instruction budget allows none"),
    "project_long": (144, ONCE + ", which takes its route by them; the budget allows one access, for double"),
    "multiply_team": (48, ONCE),
    "loss_team": (112, ONCE + "; two loads inside for double"),
}

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


class Kernel(NamedTuple):
    """What ptxas says of one kernel for one architecture; sizes in bytes."""

    symbol: str
    architecture: str
    registers: int
    shared: int
    stack: int
    stores: int
    loads: int


def parse(report: str) -> list[Kernel]:
    """Every kernel in the report, sorted by symbol."""
    kernels = []
    for part in report.split("ptxas info    : Compiling entry function")[1:]:
        part = "Compiling entry function" + part
        entry, spill, used = ENTRY.search(part), SPILL.search(part), USED.search(part)
        if not (entry and spill and used):
            raise ValueError(f"a report of ptxas not understood: {part[:300]}")
        shared = SHARED.search(part)
        kernels.append(
            Kernel(*entry.groups(), int(used[1]), int(shared[1]) if shared else 0, *map(int, spill.groups()))
        )
    return sorted(kernels)


def readable(symbols: list[str]) -> list[str]:
    """`name<type>` for each symbol; where no demangler is at hand, the symbol."""
    try:
        done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    except FileNotFoundError:
        return symbols
    namespaces = re.compile(r"\(anonymous namespace\)::|hypersimplex::|cuda::|^void ")
    return [re.sub(r"\(.*", "", namespaces.sub("", line)) for line in done.stdout.splitlines()]


def granted(symbol: str) -> int:
    """The bytes that this kernel may spill."""
    return max((most for name, (most, _) in SPILLS.items() if f"{len(name)}{name}" in symbol), default=0)


def main() -> int:
    """Print the table; 1 where a kernel spills more than granted."""
    kernels = parse(sys.stdin.read())
    if not kernels:
        print("error: no kernel in the report")
        return 1
    failures = 0
    print(
        "| kernel | architecture | registers | bytes of shared memory | of stack | of spill stores | of spill loads |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, kernel in zip(readable([k.symbol for k in kernels]), kernels, strict=True):
        print("|", " | ".join(map(str, (name, *kernel[1:]))), "|")
        if max(kernel.stack, kernel.stores, kernel.loads) > granted(kernel.symbol):
            failures += 1
            what = "has a larger stack" if kernel.stack > max(kernel.stores, kernel.loads) else "spills more"
            print(f"error: {name}, {kernel.architecture}: {what} than the {granted(kernel.symbol)} bytes granted")
    for name, (most, reason) in SPILLS.items():
        print(f"{name} may spill {most} bytes: {reason}.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
