"""Two rules that the linters do not know: what is private to torch stays in one room, and no file grows too long.

    python .ci/rooms.py              private names of torch in the package, but for _torch_private.py
    python .ci/rooms.py --lengths    source files of more than 400 lines

Private is what begins with one underscore and is imported from torch, or is an attribute that nothing in the package
defines, or a method in which a class of torch finds itself overridden.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
ROOM = "_torch_private.py"
MOST_LINES = 400
OF_NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}
KINDS = torch.nn.Module, torch.nn.modules.lazy.LazyModuleMixin, torch.Tensor, torch.autograd.Function


def is_private(name: str) -> bool:
    """Whether a name begins with one underscore, and is more than that."""
    return name.startswith("_") and not name.startswith("__") and name != "_"


INHERITED = {name for kind in KINDS for name in dir(kind) if is_private(name)}


def defined(tree: ast.AST) -> set[str]:
    """The names that a file gives to what is its own."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.level:  # of the package
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def private_names(tree: ast.AST, own: set[str]) -> Iterator[tuple[int, str]]:
    """Line and name of everything private to torch."""
    for node in ast.walk(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            of_torch = getattr(node.value, "id", "") == "torch"
            found = [node.attr] if of_torch or node.attr not in own | OF_NAMED_TUPLES else []
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            found = [a.value for a in node.args[1:2] if isinstance(a, ast.Constant) and a.value not in own]
        elif isinstance(node, ast.ClassDef):
            methods = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name in INHERITED]
            yield from ((f.lineno, f.name) for f in methods)
        yield from ((node.lineno, name) for name in found if any(map(is_private, name.split("."))))


def foreign_names(package: Path) -> list[str]:
    """What stands where it must not."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}
    own = set().union(*(defined(tree) for path, tree in trees.items()))
    return [
        f"{path.name}:{line}: {name} is private to torch: {ROOM} is its room"
        for path, tree in trees.items()
        if path.name != ROOM
        for line, name in sorted(private_names(tree, own))
    ]


def long_files() -> list[str]:
    """Source files of more than `MOST_LINES` lines."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    kinds = (".py", ".h", ".cpp", ".cu", ".cuh")
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in listed.split() if name.endswith(kinds)}
    return [f"{name}: {length} lines, at most {MOST_LINES}" for name, length in lengths.items() if length > MOST_LINES]


if __name__ == "__main__":
    complaints = long_files() if "--lengths" in sys.argv[1:] else foreign_names(ROOT / "hypersimplex_ext")
    print("\n".join(complaints))
    sys.exit(bool(complaints))
