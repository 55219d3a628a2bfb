"""Run pytest on several files at a time, a process for each, where pytest-xdist is missing.

    python -m bench.speed.pytest_files [option of pytest ...] file-or-folder ...

Every process has all options; what it prints is passed on line by line, behind the name of its file.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_WORKERS = 8
_NOTHING_CHOSEN = 5  # pytest's exit status for a file of which the options choose no test


def main(arguments: list[str]) -> int:
    """Run the tests, print how many passed and return the exit status."""
    start = time.monotonic()
    files, options = split(arguments)
    with ThreadPoolExecutor(_WORKERS) as pool:
        done = list(pool.map(lambda file: _run(file, options), files))
    counts = sum((counted for _, counted in done), Counter[str]())
    summary = ", ".join(f"{count} {what}" for what, count in counts.items()) or "no tests"
    print(f"{summary} in {time.monotonic() - start:.2f}s")
    return max((status for status, _ in done), default=_NOTHING_CHOSEN)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the test files, those in folders that are not ignored included, and the options."""
    ignored = {argument.partition("=")[2] for argument in arguments if argument.startswith("--ignore=")}
    files: list[str] = []
    options = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        path = Path(argument.partition("::")[0])
        if before in {"-k", "-m", "-p", "-W"} or not path.exists():
            options.append(argument)
        else:
            files += map(str, sorted(path.glob("test_*.py"))) if path.is_dir() else [argument]
    return [file for file in files if file not in ignored], options


def _run(file: str, options: list[str]) -> tuple[int, Counter[str]]:
    command = [sys.executable, "-m", "pytest", *options, file]
    closing = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            print(f"{Path(file).name}: {line}", end="", flush=True)
            closing = line if re.search(r"\bin \d+\.\d+s\b", line) else closing
    counts = Counter({what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|skipped|error)", closing)})
    return 0 if run.returncode == _NOTHING_CHOSEN else run.returncode, counts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
