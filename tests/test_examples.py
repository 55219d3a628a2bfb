"""The examples run, and show what they say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lines_of(name, *launcher):
    """What an example prints, on one thread: a table's lines, split at blanks."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *(launcher or ("-W", "error")), f"examples/{name}.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def large_batch_small_memory(lines):
    _, *rows = lines
    off, accuracy = ({way: float(numbers[i]) for way, *numbers in rows} for i in range(2))
    assert list(off) == ["at_once", "two_passes", "added_up"]
    assert off["two_passes"] < 0.01 < 10 < off["added_up"]  # percent
    assert min(accuracy.values()) > 90


def ddp(lines):
    _, alone, over_group, each = lines
    assert over_group[1:3] == ["processes,", "group"]
    values, exact, own = (row[-3:] for row in (alone, over_group, each))
    assert float(values[0]) == pytest.approx(float(exact[0]), rel=1e-3)
    assert values[1] == exact[1]
    assert float(exact[2]) < 1e-4 < 1e-2 < float(own[2])


CHECKS = {check.__name__: check for check in (large_batch_small_memory, ddp)}


LAUNCHERS = {"ddp": [("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", size) for size in ("2", "4")]}


@pytest.mark.parametrize(("name", "launcher"), [(n, launcher) for n in CHECKS for launcher in LAUNCHERS.get(n, [()])])
def test_example(name, launcher):
    CHECKS[name](lines_of(name, *launcher))


def test_every_example_is_run():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(CHECKS)
