"""The stretches of the main kernels that are counted, and how they are told in a listing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from bench.budget.sass import Code, Instruction, Loop, functions

TYPES = {"float": ("f", 4), "double": ("d", 8), "half": ("6__half", 2), "bfloat16": ("13__nv_bfloat16", 2)}

_LOAD, _KEEP, _RECALL, _STORE = r"LDG\.E\.128", r"STS\.128", r"LDS\.128", r"STG\.E\.128"
_ARITHMETIC = "FFMA|FADD|DADD|DFMA"
_LANE_BITS = 5
_LOCAL = "LDL|STL"
_BARRIERS = r"BAR\.(SYNC|RED)|UCGABAR_ARV"

_LIST = r"STS(?!\.128)"
_RECALL_WIDE = r"LDS\.(64|128)"
_STEP = (r"MUFU\.RCP64H", 2)  # Newton's divisions; a secant has more
_TURN = (_BARRIERS, "FFMA|DFMA")
_SOLVE = (_BARRIERS, "FMNMX")


class Stretch(NamedTuple):
    """A loop over entries, told by what it does with memory; of those that do the same, the one that does most.

    Attributes:
        kernel, name: what it is part of, and what it is called.
        each: what there is one of for every 16 bytes of entries or, where `entries` is given, for so many of them.
        has, lacks: further instructions that are there, and that are not.
    """

    kernel: str
    name: str
    each: str
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    entries: float = 0


class Path(NamedTuple):
    """The main path through a kernel, or a turn of its innermost loop with all of `inside`; see `Code.path`."""

    kernel: str
    name: str
    marks: str
    inside: tuple[str, ...] = ()
    rare: tuple[str, int] | None = None


class Counts(NamedTuple):
    """What was counted in a stretch or on a path; zero is what does not apply."""

    instructions: float  # per entry of a stretch
    at_once: int  # loads of 16 bytes that are on their way when the first is needed
    local: int  # accesses to local memory in one turn
    barriers: int


COUNTED: tuple[Stretch | Path, ...] = (
    # The least and the greatest are taken of 32 entries a lane, once, and over the lanes.
    Path("project_short", "row", rf"{_LOAD}|{_STORE}|MUFU\.RSQ|FFMA", rare=("FMNMX", 2 * 32 + 2 * 5)),
    Path("project_short", "sweep", "FFMA", ("VOTE", "FFMA"), _STEP),
    Path("project_short", "sweep after counts alone", "FFMA", ("VOTE", "FFMA"), ("FSETP", 2 * 64)),  # two an entry
    Stretch("project_team", "first pass", _LOAD, (_KEEP,), (_STORE,)),
    Stretch("project_team", "sweep", _RECALL, (_ARITHMETIC,), (_STORE, _KEEP)),
    Stretch("project_team", "last pass", _STORE, (_RECALL,)),
    Stretch("project_team", "first pass, read again", _LOAD, (_ARITHMETIC,), (_STORE,)),
    Stretch("project_team", "sweep, read again", _LOAD, (_ARITHMETIC,), (_STORE, _KEEP)),
    Stretch("project_team", "last pass, read again", _STORE, (_LOAD,)),
    Stretch("project_long", "lists", _LOAD, (_LIST,), ("STG", _KEEP)),
    Stretch("project_long", "lists, open", _LOAD, (_LIST, _STORE), ()),
    Stretch("project_long", "last pass", _STORE, (_LOAD,), ("STS",)),
    Path("project_team", "turn of the first warp", rf"{_BARRIERS}|SHFL", _TURN),
    Path("project_team", "turn of another warp", _BARRIERS, _TURN, ("SHFL", 6)),
    # Of four classes a thread; each access holds an entry of all of them, and the kernels have loops of 8 bytes too.
    Stretch("loss_team", "first pass", "FMNMX", (r"LDG\.E",), (), 0.5),
    Stretch("loss_team", "sweep", _RECALL_WIDE, (_ARITHMETIC,), ("STS", "LDG"), 4),
    Stretch("loss_team", "loss", _RECALL_WIDE, (_ARITHMETIC, r"LDG\.E\.64"), ("STS", "DMUL"), 4),
    Path("loss_team", "turn of the first warp", rf"{_BARRIERS}|SHFL", _SOLVE),
    Path("loss_team", "turn of another warp", _BARRIERS, _SOLVE, ("SHFL", 30)),
    Stretch("loss_gradient_wide", "gradient", r"STG\.E\.(64|128)", (_ARITHMETIC,), ("LDS",), 4),
)


SINGLE = ("project_short", "loss_team", "loss_gradient_wide")  # told by arithmetic in float32
TOLD = "sm_90"  # where all has to be found; elsewhere what can be told is reported
FLAGS = {"loss_team": "Lb1E"}  # the other arguments of a kernel's template


def symbol_part(kernel: str, mangled: str) -> str:
    """What stands in the symbol of a kernel for a type."""
    return f"{len(kernel)}{kernel}I{mangled}{FLAGS.get(kernel, '')}E"


class Report(NamedTuple):
    """All counts of a listing: by architecture, kernel<type> and name."""

    counts: dict[tuple[str, str, str], Counts]
    missing: list[str]


def _matches(code: Code, loop: Loop, stretch: Stretch) -> bool:
    has = all(code.count(loop, pattern) for pattern in (stretch.each, *stretch.has))
    return has and not any(code.count(loop, pattern) for pattern in stretch.lacks) and not code.inner(loop)


def _count(code: Code, what: Stretch | Path, bytes_per_entry: int) -> Counts | None:
    if isinstance(what, Stretch):
        loops = [loop for loop in code.loops if _matches(code, loop, what)]
        if not loops:
            return None
        loop = max(loops, key=lambda each: (code.count(each, what.each), -len(each.members)))
        accesses = code.count(loop, what.each)
        taken = code.path(f"{what.each}|{_LOAD}|{_RECALL}|{_ARITHMETIC}", loop)
        per_entry = len(taken) / (accesses * (what.entries or 16 / bytes_per_entry))
        load = rf"{_LOAD}|{_RECALL}" if not what.entries else rf"{_LOAD}|LDG\.E\.64|{_RECALL_WIDE}"
        at_once = code.at_once(loop, load)
        return Counts(round(per_entry, 2), at_once, code.count(loop, _LOCAL), 0)
    inside = None
    if what.inside:
        marked = [loop for loop in code.loops if all(code.count(loop, pattern) for pattern in what.inside)]
        if not marked:
            return None
        inside = marked[0]
    taken = code.path(what.marks, inside, rare=what.rare)
    instructions, local, barriers = len(taken), _number_of(_LOCAL, taken), _number_of(_BARRIERS, taken)
    for loop in code.begun(taken, inside):
        if code.inner(loop) or not code.count(loop, "SHFL"):
            barriers += _number_of(_BARRIERS, code.path("(?!)", loop))  # the shortest way to meet: not a grid's
        else:  # an exchange among lanes that is left as a loop takes a turn per bit of a lane's number
            instructions += _LANE_BITS * len(code.path("(?!)", loop)) - 1
    return Counts(instructions, 0, local, barriers)


def _number_of(pattern: str, instructions: Iterable[Instruction]) -> int:
    return sum(bool(re.match(pattern, each.name)) for each in instructions)


def report(listing: str, counted: Iterable[Stretch | Path] = COUNTED) -> Report:
    """Count all that is counted in a listing of one or several objects."""
    wanted = list(counted)
    counts, missing = {}, []
    for code in functions(listing):
        for name, (mangled, size) in TYPES.items():
            for what in wanted:
                if symbol_part(what.kernel, mangled) not in code.symbol:
                    continue
                if what.kernel in SINGLE and name == "double":
                    continue
                found = _count(code, what, size)
                if found is None and code.architecture == TOLD:
                    missing.append(f"{what.kernel}<{name}>, {code.architecture}: {what.name}")
                elif found:
                    counts[code.architecture, f"{what.kernel}<{name}>", what.name] = found
    return Report(counts, missing)
