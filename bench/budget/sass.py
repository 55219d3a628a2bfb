"""Instructions of compiled kernels, their loops, and the path that most threads take through them.

All comes from what `cuobjdump -sass` prints. A loop is what leads back to where it began. The main
path through an acyclic stretch is, of all ways through it, the one with the most instructions that match `marks`
and, of those, the shortest: marks say what every thread surely does, and slow ways of arithmetic, special values and
empty iterations are longer ways round to the same.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+) )?\s*([A-Z][\w.]*)\s*(.*?) ;")
_TARGET = re.compile(r"\b0x([0-9a-f]+)\)?$")
_REGISTER = re.compile(r"\bR(\d+)")
_ASTRAY = {"DIV", "CONV"}  # branches of warps that have lost threads
_NEVER = "!PT"
_CALLED = 1000  # what a call of arithmetic's slow way weighs: more than any way round it


class Instruction(NamedTuple):
    """One line of a listing; `guard` is the predicate it depends on, or empty."""

    address: int
    guard: str
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a branch or a call leads, if that is written there and warps whose threads stay together go there."""
        found = _TARGET.search(self.operands)
        kind, _, rest = self.name.partition(".")
        return int(found[1], 16) if found and kind in {"BRA", "CALL"} and rest not in _ASTRAY else None

    @property
    def ends(self) -> bool:
        """Whether nothing that follows is reached through it."""
        kind, _, rest = self.name.partition(".")
        conditional = self.guard or "," in self.operands or rest in _ASTRAY
        return (kind in {"EXIT", "RET"} and not self.guard) or (kind in {"BRA", "BRX", "BRXU"} and not conditional)

    @property
    def leaves(self) -> bool:
        """Whether the kernel or the function ends here."""
        return not self.guard and self.name.split(".")[0] in {"EXIT", "RET"}


class Loop(NamedTuple):
    """Numbers of the instructions of a loop, those of loops inside it included; all its turns begin at `first`."""

    first: int
    members: frozenset[int]


class Code:
    """The instructions of one kernel, with the functions that it calls behind them."""

    def __init__(self, symbol: str, architecture: str, text: str) -> None:
        self.symbol, self.architecture = symbol, architecture
        self.instructions = [
            Instruction(int(address, 16), guard or "", name, operands)
            for address, guard, name, operands in _INSTRUCTION.findall(text)
            if guard != _NEVER and name != "NOP"
        ]
        self._number: dict[int, int] = {}
        following = 0  # where padding was left out, what comes behind it
        for address in range(0, self.instructions[-1].address + 16, 16):
            self._number[address] = following
            following += self.instructions[following].address == address
        named = {self._number[each.target] for each in self.instructions if each.target is not None}
        behind = [i + 1 for i, each in enumerate(self.instructions[:-1]) if each.ends]
        self._unnamed = [i for i in behind if i not in named]  # what only a table of branches can lead to
        self._followers = [list(self._ways(i)) for i in range(len(self.instructions))]
        self._order, self._backward = self._walk()

    def _ways(self, i: int) -> Iterator[int]:
        each = self.instructions[i]
        if not each.ends and i + 1 < len(self.instructions):
            yield i + 1
        if each.name.split(".")[0] == "BRA" and each.target is not None:
            yield self._number[each.target]
        if each.name.startswith("BRX"):
            yield from self._unnamed

    @functools.cached_property
    def called(self) -> list[int]:
        """Numbers of the first instructions of all functions that are called."""
        targets = {each.target for each in self.instructions if each.name.startswith("CALL")}
        return sorted(self._number[target] for target in targets if target is not None)

    def _walk(self) -> tuple[list[int], set[tuple[int, int]]]:
        """All that is reached, each before what follows it, and the edges that lead back."""
        finished: list[int] = []
        backward = set()
        state = [0] * len(self.instructions)  # 1: on the way here, 2: finished
        for root in [*reversed(self.called), 0]:
            stack = [(root, iter(self._followers[root]))] if not state[root] else []
            state[root] = state[root] or 1
            while stack:
                i, ways = stack[-1]
                follower = next(ways, None)
                if follower is None:
                    state[i] = 2
                    finished.append(i)
                    stack.pop()
                elif state[follower] == 1:
                    backward.add((i, follower))
                elif state[follower] == 0:
                    state[follower] = 1
                    stack.append((follower, iter(self._followers[follower])))
        return finished[::-1], backward

    @functools.cached_property
    def loops(self) -> list[Loop]:
        """Every loop, inner ones first."""
        before: dict[int, list[int]] = {}
        for i, followers in enumerate(self._followers):
            for follower in followers:
                before.setdefault(follower, []).append(i)
        members: dict[int, set[int]] = {}
        reached = set(self._order)
        for last, first in self._backward:
            inside = members.setdefault(first, {first})
            left = [last]
            while left:
                i = left.pop()
                if i not in inside and i in reached:
                    inside.add(i)
                    left.extend(before.get(i, []))
        return sorted(
            (Loop(first, frozenset(inside)) for first, inside in members.items()), key=lambda x: len(x.members)
        )

    @functools.cached_property
    def _heads(self) -> dict[int, Loop]:
        return {loop.first: loop for loop in self.loops}

    def begun(self, taken: Iterable[Instruction], loop: Loop | None = None) -> list[Loop]:
        """The loops, but for one, that begin on a path."""
        heads = (self._heads.get(self._number[each.address]) for each in taken)
        return [head for head in heads if head and head != loop]

    def inner(self, loop: Loop) -> list[Loop]:
        """The loops inside a loop."""
        return [other for other in self.loops if other.members < loop.members]

    def within(self, loop: Loop) -> list[Instruction]:
        """The instructions of a loop, those of loops inside it included."""
        return [self.instructions[i] for i in sorted(loop.members)]

    def count(self, loop: Loop, pattern: str) -> int:
        """How many of a loop's instructions match."""
        return sum(bool(re.match(pattern, each.name)) for each in self.within(loop))

    def path(
        self, marks: str, loop: Loop | None = None, start: int = 0, rare: tuple[str, int] | None = None
    ) -> list[Instruction]:
        """The main path through a turn of a loop, or from `start` to the end; of loops inside, their first instruction.

        `rare` is a further mark, and how often the path passes it at most.
        """
        first = loop.first if loop else start
        inside: set[int] = set()
        for other in self.loops:
            if other != loop and (loop is None or other.members < loop.members):
                inside |= other.members
        rarely, most = rare or ("(?!)", 0)
        # For each number of rare marks left to pass: marks, minus instructions, follower, rare marks left behind it.
        best: dict[int, dict[int, tuple[int, int, int, int]]] = {}
        for i in reversed(self._order):
            if loop and i not in loop.members:
                continue
            each = self.instructions[i]
            passes = int(bool(re.match(rarely, each.name)))
            met = int(bool(re.match(marks, each.name))) + passes
            cost = 0 if i in inside else _CALLED if each.name.startswith("CALL") else 1
            for left in range(passes, most + 1):
                ways = [(0, 0, -1, 0)] if (loop is None and each.leaves) else []
                for follower in self._followers[i]:
                    if (i, follower) in self._backward:
                        ways += [(0, 0, -1, 0)] if loop and follower == first else []
                    elif left - passes in best.get(follower, {}):
                        ways.append((*best[follower][left - passes][:2], follower, left - passes))
                if ways:
                    way = max(ways)
                    best.setdefault(i, {})[left] = (way[0] + met, way[1] - cost, *way[2:])
        if most not in best.get(first, {}):
            raise ValueError(f"{self.symbol}: no way through from instruction {first}")
        taken, i, left = [], first, most
        while i >= 0:
            if i not in inside or i in self._heads:
                taken.append(self.instructions[i])
            i, left = best[i][left][2:]
        return taken

    def at_once(self, loop: Loop, load: str) -> int:
        """The most loads of a loop that are on their way before one of them is needed or a branch comes."""
        most = 0
        pending: dict[int, int] = {}  # register: number of the load that fills it
        for number, each in enumerate(self.within(loop)):
            written, _, read = each.operands.partition(",")
            if each.name.startswith("ST") or not written.strip().startswith("R"):
                read = each.operands
            if any(int(register) in pending for register in _REGISTER.findall(read)):
                pending.clear()
            if re.match(load, each.name) and written.strip().startswith("R"):
                width = 4 if ".128" in each.name else 2 if ".64" in each.name else 1
                first = int(written.strip()[1:].split(".")[0])
                pending.update(dict.fromkeys(range(first, first + width), number))
                most = max(most, len(set(pending.values())))
            elif each.name.split(".")[0] in {"BRA", "EXIT"}:
                pending.clear()
        return most


def functions(listing: str) -> Iterator[Code]:
    """Every kernel of a listing, of one object or of several."""
    for code in re.split(r"\bcode for (?=sm_)", listing)[1:]:
        for function in code.split("Function : ")[1:]:
            yield Code(function.split()[0], code.split()[0], function)
