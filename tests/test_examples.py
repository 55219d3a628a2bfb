"""The examples run, and show what they say."""

import importlib.util
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


def boosting_lightgbm(lines):
    accuracy = {" ".join(line[:-1]): line[-1] for line in lines}
    assert float(accuracy["Fenchel-Young"]) > 94
    assert accuracy["Fenchel-Young, native"] == accuracy["Fenchel-Young"]
    assert float(accuracy["gradient off by, relative"]) < 1e-6


def boosting_xgboost(lines):
    accuracy, called, found = ({" ".join(line[:-3]): float(line[i]) for line in lines[1:]} for i in (-3, -2, -1))
    assert accuracy["Fenchel-Young"] > accuracy["Fenchel-Young, without thresholds"] + 2
    assert called["Fenchel-Young"] < called["Fenchel-Young, rare class five times"]
    assert found["Fenchel-Young"] < found["Fenchel-Young, rare class five times"]


CHECKS = {check.__name__: check for check in (large_batch_small_memory, ddp, boosting_lightgbm, boosting_xgboost)}
NEEDED = {"boosting_lightgbm": "lightgbm", "boosting_xgboost": "xgboost"}


LAUNCHERS = {"ddp": [("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", size) for size in ("2", "4")]}


@pytest.mark.parametrize(("name", "launcher"), [(n, launcher) for n in CHECKS for launcher in LAUNCHERS.get(n, [()])])
def test_example(name, launcher):
    if importlib.util.find_spec(NEEDED.get(name, "torch")) is None:
        pytest.skip(f"{NEEDED[name]} is not installed")
    CHECKS[name](lines_of(name, *launcher))


def test_every_example_is_run():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(CHECKS)
