"""torch, LightGBM and XGBoost in one process: any order of import, one set of threads, the same results."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARIES = ("torch", "lightgbm", "xgboost")

SCRIPT = """
import importlib, os, re, sys
if sys.argv[1] == "torch":  # before the others, which the package does not import by itself
    import hypersimplex_ext
    assert "hypersimplex_ext.boosting" not in sys.modules
    from hypersimplex_ext import boosting
    boosting.Objective()([0, 1, 1], __import__("numpy").zeros(3))
    assert not {"lightgbm", "xgboost", "sklearn"} & set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
import numpy as np
from hypersimplex_ext.boosting import LGBMClassifier, Objective, XGBClassifier

def runtimes():
    lines = open("/proc/self/maps").read().splitlines()
    return {os.path.realpath(line.split()[-1]) for line in lines if re.search(r"lib[gi]?omp[^/]*$", line)}

before = runtimes()
x = np.random.default_rng(0).normal(size=(40_000, 4))
y = (x[:, 0] + x[:, 1] > 0).astype(int)
objective = Objective()
objective(y, x[:, 0])
threads = [len(os.listdir("/proc/self/task"))]
for _ in range(3):  # in turns, so that a pool that is not shared would be made anew, or come on top
    for model in (LGBMClassifier(n_estimators=2, n_jobs=2, verbosity=-1), XGBClassifier(n_estimators=2, n_jobs=2)):
        model.fit(x, y)
        objective(y, x[:, 0])
        threads.append(len(os.listdir("/proc/self/task")))
assert runtimes() == before, "the core brings no OpenMP runtime of its own"
print(len(before), threads[0], threads[2], threads[-1], repr(model.thresholds_), objective(y, x[:, 0])[0].sum())
"""


def run(order):
    environment = os.environ | {
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, *order]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc to look into")
def test_any_order_of_import():
    for name in LIBRARIES[1:]:
        pytest.importorskip(name, reason=f"{name} is not installed")
    results = {}
    for order, process in [(order, run(order)) for order in itertools.permutations(LIBRARIES)]:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, (order, errors)
        results[order] = output.strip().split(" ", maxsplit=4)
    for order, (runtimes, first, second, last, values) in results.items():
        assert values == results[LIBRARIES][-1], order
        assert int(runtimes) <= 3, (order, "scikit-learn's, that of some builds of XGBoost, and one for all others")
        assert int(last) <= int(second), (order, "threads grow from training to training")
        assert int(last) <= int(first) + 3, (order, "more threads than two for each pool")
