"""What does one call of the objective cost, beside NumPy's logarithmic loss and a round of the library?

    python -m bench.tabular cost --rows 1000000

prints and appends to results.jsonl of the results folder: seconds of a call on margins as each library has them, of the
logarithmic loss written in NumPy, and of a round of LightGBM and XGBoost with their own loss and with ours. Everyone
takes turns in the same run; the median over the rounds counts, and ratios are worth more than times.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.arguments import described_parser
from bench.results import Record, ResultsFile, environment
from bench.style import markdown

RESULTS = Path(__file__).parents[1] / "results" / "tabular-cost"
Call = Callable[[], object]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure from the command line and return the exit status."""
    parser = described_parser("python -m bench.tabular cost", __doc__)
    add = parser.add_argument
    add("--rows", nargs="+", type=int, default=[1_000_000])
    add("--classes", nargs="+", type=int, default=[2, 10], help="rows are divided by the classes (default: 2 10)")
    add("--rounds", type=int, default=9, help="measurements of each (default: 9)")
    add("--threads", type=int, default=os.cpu_count())
    add("--trees", type=int, default=5, help="rounds of training that are timed; 0 for none (default: 5)")
    add("--out", type=Path, default=RESULTS, metavar="DIR")
    args = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(args.threads)
    results = ResultsFile(args.out / "results.jsonl")
    rows = []
    for n in args.rows:
        for classes in args.classes:
            samples = n if classes == 2 else n // classes
            seconds = measured(calls(samples, classes), args.rounds)
            if args.trees and classes == 2:
                seconds |= measured(trainings(samples, args.trees, args.threads), 3, args.trees)
            record = {"samples": samples, "classes": classes, "seconds": seconds, **environment(torch.device("cpu"))}
            results.append(record)
            rows += [[f"{samples:,} x {classes}, {name}", f"{1e3 * s['median']:.2f}"] for name, s in seconds.items()]
    print(markdown(["samples x classes, what", "ms"], rows))
    return 0


def calls(samples: int, classes: int) -> dict[str, Call]:
    """One call of each, on margins as the libraries have them."""
    from hypersimplex_ext.boosting import Objective

    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, samples).astype(np.float32)
    wide = rng.standard_normal(samples if classes == 2 else (samples, classes))
    weight = rng.random(samples).astype(np.float32)
    of_lightgbm, of_xgboost = np.asfortranarray(wide), wide.astype(np.float32)
    objective, bound = Objective(), Objective(hessian="bound")
    reference = log_loss if classes == 2 else softmax_loss
    return {
        "objective, float64 as LightGBM has it": lambda: objective(y, of_lightgbm),
        "the same, Hessian bound": lambda: bound(y, of_lightgbm),
        "the same, weighted": lambda: objective(y, of_lightgbm, weight),
        "log loss in NumPy, float64": lambda: reference(y, of_lightgbm),
        "objective, float32 as XGBoost has it": lambda: objective(y, of_xgboost),
        "log loss in NumPy, float32": lambda: reference(y, of_xgboost),
    }


def log_loss(y: Any, x: Any) -> tuple[Any, Any]:
    """As users write it."""
    p = 1 / (1 + np.exp(-x))
    return p - y, p * (1 - p)


def softmax_loss(y: Any, x: Any) -> tuple[Any, Any]:
    """As users write it, with XGBoost's factor 2."""
    e = np.exp(x - x.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    hessian = 2 * p * (1 - p)
    p[np.arange(len(y)), y.astype(int)] -= 1
    return p, hessian


def trainings(samples: int, trees: int, threads: int) -> dict[str, Call]:
    """Some rounds of training, without the construction of the data set."""
    import lightgbm
    import xgboost

    from hypersimplex_ext.boosting import Objective

    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, 20), np.float32)
    y = (x[:, 0] + x[:, 1] + rng.standard_normal(samples) > 0).astype(int)
    dataset = lightgbm.Dataset(x, y, params={"verbosity": -1, "num_threads": threads}, free_raw_data=False).construct()
    matrix = xgboost.QuantileDMatrix(x, y, nthread=threads)
    shared = {"verbosity": -1, "num_threads": threads, "num_leaves": 31}
    own = {"nthread": threads, "max_leaves": 31, "grow_policy": "lossguide", "max_depth": 0}
    objective = Objective()
    return {
        "a round of LightGBM, its log loss": lambda: lightgbm.train({**shared, "objective": "binary"}, dataset, trees),
        "a round of LightGBM, ours": lambda: lightgbm.train({**shared, "objective": objective}, dataset, trees),
        "a round of XGBoost, its log loss": lambda: xgboost.train(
            {**own, "objective": "binary:logistic"}, matrix, trees
        ),
        "a round of XGBoost, ours": lambda: xgboost.train(own, matrix, trees, obj=objective),
    }


def measured(named: dict[str, Call], rounds: int, divisor: int = 1) -> dict[str, Record]:
    """Seconds of each, in turns, after one call that does not count."""
    found: dict[str, list[float]] = {name: [] for name in named}
    for call in named.values():
        call()
    for _ in range(rounds):
        for name, call in named.items():
            start = time.perf_counter()
            call()
            found[name].append((time.perf_counter() - start) / divisor)
    return {name: {"median": statistics.median(s), "least": min(s), "samples": len(s)} for name, s in found.items()}


if __name__ == "__main__":
    sys.exit(main())
