"""How many loads the CUDA kernels have on their way at once, from what `cuobjdump -sass` prints on standard input.

Whether the next load is issued before the last one has arrived is the compiler's choice: a condition on each of them,
or a store in between, and a loop pays the whole latency of memory for every load. A kernel with fewer loads together
than `LEAST` asks for is an error, and so is a listing without one of these kernels.
"""

import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

LDG_128 = r"LDG\.E\.128\."


class Loads(NamedTuple):
    """Loads that match `load` before an instruction that matches `reader` needs one of them."""

    kernel: str
    types: str
    what: str
    load: str
    reader: str
    least: int


LEAST = (
    Loads("project_short", "float double __half __nv_bfloat16", "staged rows", r"LDG\.E\.", r"STS\b", 8),
    Loads("multiply_short", "float double __half __nv_bfloat16", "staged rows", r"LDG\.E\.", r"STS\b", 8),
    Loads("project_team", "float double", "packs of 16 bytes", LDG_128, ".", 4),
    Loads("multiply_team", "float double", "packs of 16 bytes", LDG_128, ".", 4),
    Loads("project_team", "__half __nv_bfloat16", "packs of 16 bytes", LDG_128, ".", 2),
    Loads("multiply_team", "__half __nv_bfloat16", "packs of 16 bytes", LDG_128, ".", 2),
)
MANGLED = {"float": "f", "double": "d"}

INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)\s*(.*?) ;")
TARGET = re.compile(r"\b0x([0-9a-f]+)$")
REGISTER = re.compile(r"\bR(\d+)")


def functions(listing: str) -> Iterator[tuple[str, str, str]]:
    """Architecture, symbol and text of every kernel."""
    for code in re.split(r"\bcode for (?=sm_)", listing)[1:]:
        for function in code.split("Function : ")[1:]:
            yield code.split()[0], function.split()[0], function


def most_at_once(text: str, load: str, reader: str) -> int:
    """The most loads that are on their way when a reader needs one, within a run of instructions without branches."""
    instructions = [match.groups() for match in INSTRUCTION.finditer(text)]
    targets = {
        int(m[1], 16) for _, name, operands in instructions if name[:3] == "BRA" and (m := TARGET.search(operands))
    }
    most = 0
    pending: dict[int, int] = {}  # register: number of the load that fills it
    for number, (address, name, operands) in enumerate(instructions):
        written, _, read = operands.partition(",")
        if name.startswith("ST") or not written.strip().startswith("R"):
            read = operands
        if int(address, 16) in targets:
            pending.clear()
        if any(int(register) in pending for register in REGISTER.findall(read)):
            if re.match(reader, name):
                most = max(most, len(set(pending.values())))
            pending.clear()
        if re.match(load, name):
            width = 4 if ".128" in name else 2 if ".64" in name else 1
            first = int(written.strip()[1:])
            pending.update(dict.fromkeys(range(first, first + width), number))
        elif name in ("BRA", "EXIT"):
            pending.clear()
    return most


def main() -> int:
    """Print the table; 1 where loads are too few."""
    kernels = list(functions(sys.stdin.read()))
    failures = 0
    print("| kernel | architecture | loads | at once | at least |")
    print("|---|---|---|---|---|")
    for kernel, types, what, load, reader, least in LEAST:
        for storage in types.split():
            symbol = f"{len(kernel)}{kernel}I{MANGLED.get(storage, f'{len(storage)}{storage}')}E"
            found = [(arch, most_at_once(text, load, reader)) for arch, name, text in kernels if symbol in name]
            for architecture, most in found:
                print(f"| {kernel}<{storage}> | {architecture} | {what} | {most} | {least} |")
            if not found or min(most for _, most in found) < least:
                failures += 1
                print(f"error: {kernel}<{storage}>: {'too few loads at once' if found else 'not in the listing'}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
