"""How well does a network generalise when it is trained with each loss, at small and large batches?

    python -m bench.training --data digits

trains the same network with cross-entropy, hinge, MSE and the HyperSimplex losses at several batch sizes and seeds,
prints a table of the maximum test accuracy, and writes to the results folder

    results.jsonl   one line per finished run; the same command resumes an interrupted grid from it
    table.md        the printed table
    accuracy.png    maximum test accuracy against batch size
    curves.png      test accuracy against epoch

Reading the numbers: as in the paper, the score of a run is its best test accuracy over the epochs, which flatters every
loss alike; the table also gives the accuracy after the last epoch. Step size, epochs and tau were fixed in advance, are
the same at every batch size, and were not tuned. Runs are paired by seed: same split, initial weights and order of the
samples. The p-values are those of two-sided paired t-tests over the seeds, uncorrected for the number of comparisons.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ttest_rel  # type: ignore[import-untyped]

from bench.arguments import described_parser
from bench.results import Record, ResultsFile
from bench.style import markdown
from bench.training import plots
from bench.training.data import DATASETS, load
from bench.training.grid import train_missing
from bench.training.training import BASELINE, METHODS, Run

FULL = "full"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The settings of the experiment on one data set; a batch size of "full" is the whole training set."""

    batch_sizes: tuple[str, ...]
    seeds: tuple[int, ...]
    epochs: int
    lr: float


_PAPER = Protocol(("128", "256", "512", "1024", "2048", "4096", "8192"), (0, 42, 1337, 2025, 31415), 600, 1e-4)
_SMALL = Protocol(("32", "128", FULL), (0, 1, 2, 3, 4), 60, 1e-3)

PROTOCOLS = {"digits": _SMALL, "cifar10": _PAPER, "mnist": _PAPER, "fashion-mnist": _PAPER, "adult": _SMALL}


def summarise(records: Sequence[Record]) -> list[Record]:
    """Return one row for each batch size and method, in the order of the records.

    A row holds `batch_size`, `method`, and in percent `mean` and `sd` (of the maximum test accuracy over the seeds),
    `last` (mean accuracy after the last epoch), `difference` (mean difference of the maximum to the baseline's at the
    same seed, in percentage points) and `p` (paired t-test). What is not defined is NaN: sd and p for one seed, p when
    the difference is the same for every seed, difference and p without a baseline.
    """
    best: dict[tuple[int, str], dict[int, float]] = {}
    last: dict[tuple[int, str], list[float]] = {}
    for record in records:
        cell = record["batch_size"], record["method"]
        best.setdefault(cell, {})[record["seed"]] = 100 * max(record["test_accuracy"])
        last.setdefault(cell, []).append(100 * record["test_accuracy"][-1])
    rows = []
    for (batch_size, method), by_seed in best.items():
        scores = np.array(list(by_seed.values()))
        baseline = best.get((batch_size, BASELINE), {})
        seeds = sorted(by_seed.keys() & baseline.keys()) if method != BASELINE else []
        ours, theirs = (np.array([cell[seed] for seed in seeds]) for cell in (by_seed, baseline))
        differs = len(seeds) > 1 and np.ptp(ours - theirs) > 1e-9
        rows.append(
            {
                "batch_size": batch_size,
                "method": method,
                "mean": scores.mean(),
                "sd": scores.std(ddof=1) if len(scores) > 1 else np.nan,
                "last": np.mean(last[batch_size, method]),
                "difference": (ours - theirs).mean() if seeds else np.nan,
                "p": ttest_rel(ours, theirs).pvalue if differs else np.nan,
            }
        )
    return rows


def format_table(rows: Sequence[Record]) -> str:
    """Return the rows of `summarise` as a Markdown table that is also aligned for reading as plain text."""
    header = ("batch", "loss", "max. test accuracy, %", "to cross-entropy, points", "p", "last epoch, %")
    cells = []
    for row in rows:
        accuracy = f"{row['mean']:.2f}" + ("" if np.isnan(row["sd"]) else f" ± {row['sd']:.2f}")
        difference = "-" if np.isnan(row["difference"]) else f"{row['difference']:+.2f}"
        p = "-" if np.isnan(row["p"]) else f"{row['p']:.3f}" if row["p"] >= 0.001 else "<.001"
        label = METHODS[row["method"]].label
        cells.append((str(row["batch_size"]), label, accuracy, difference, p, f"{row['last']:.2f}"))
    return markdown(header, cells, words=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment from the command line and return the exit status."""
    args = _parse(arguments)
    protocol = PROTOCOLS[args.data]
    if args.quick:
        protocol = dataclasses.replace(protocol, seeds=protocol.seeds[:1], epochs=2)
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(protocol)}
    protocol = dataclasses.replace(protocol, **{name: value for name, value in given.items() if value is not None})
    folder = f"generalization-{args.data}" + ("-quick" if args.quick else "")
    out: Path = args.out or Path(__file__).parents[1] / "results" / folder
    results_path = out / "results.jsonl"
    try:
        runs = _grid(args.data, len(load(args.data, args.root).train_y), args.losses, protocol)
        if args.fresh:
            results_path.unlink(missing_ok=True)
        results = ResultsFile(results_path, _check)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    threads = max(1, (os.cpu_count() or 1) // args.workers)
    try:
        train_missing(runs, results, root=args.root, device=args.device, workers=args.workers, threads=threads)
    except KeyboardInterrupt:
        print(f"\ninterrupted; the finished runs are in {results_path} and the same command goes on from there")
        return 130
    by_run = {Run.of(record): record for record in results.records}
    _report([by_run[run] for run in runs], protocol, args.data, out)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = described_parser("python -m bench.training", __doc__)
    cuda = torch.cuda.is_available()
    add = parser.add_argument
    add("--data", choices=DATASETS, default="digits", help="data set (default: digits)")
    add("--root", type=Path, metavar="DIR", help="folder with the data set's files; digits needs none")
    add("--losses", nargs="+", choices=METHODS, default=list(METHODS), metavar="LOSS", help=f"of {', '.join(METHODS)}")
    add("--batch-sizes", nargs="+", type=_batch_size, metavar="N", help='numbers or "full", the whole training set')
    add("--seeds", nargs="+", type=int, metavar="SEED", help="one run of every loss and batch size for each")
    add("--epochs", type=_positive(int), help="passes over the training set")
    add("--lr", type=_positive(float), help="step size of Adam")
    add("--out", type=Path, metavar="DIR", help="results folder (default: bench/results/generalization-DATA)")
    add("--device", type=torch.device, default=torch.device("cuda" if cuda else "cpu"), help="default: cuda, else cpu")
    add("--workers", type=_positive(int), help="runs trained side by side (default: one per core, one on a GPU)")
    add("--quick", action="store_true", help="one seed and two epochs, unless given otherwise")
    add("--fresh", action="store_true", help="discard earlier results instead of resuming")
    args = parser.parse_args(arguments)
    if args.workers is None:
        args.workers = os.cpu_count() or 1 if args.device.type == "cpu" else 1
    return args


def _batch_size(text: str) -> str:
    if text != FULL:
        _positive(int)(text)
    return text


def _positive(number: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = number(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a positive {number.__name__}, got {text!r}")
        return value

    return parse


def _grid(data: str, samples: int, methods: Sequence[str], protocol: Protocol) -> list[Run]:
    """Return the runs, seed by seed, so that an interrupted grid holds complete comparisons."""
    sizes = sorted({samples if size == FULL else int(size) for size in protocol.batch_sizes})
    if sizes[-1] > samples:
        raise ValueError(f"batch sizes: expected at most the {samples} training samples of {data}, got {sizes[-1]}")
    return [
        Run(data, method, size, seed, protocol.epochs, protocol.lr)
        for seed in dict.fromkeys(protocol.seeds)
        for size in sizes
        for method in dict.fromkeys(methods)
    ]


def _check(record: Record) -> None:
    """Raise KeyError, TypeError, ValueError or AttributeError unless this is a record of a run."""
    hash(Run.of(record))
    for curve in ("test_accuracy", "train_loss"):
        if not [float(value) for value in record[curve]]:
            raise ValueError(f"{curve} is empty")
    for name in ("train_samples", "test_samples"):
        record[name]


def _report(records: Sequence[Record], protocol: Protocol, data: str, out: Path) -> None:
    rows = summarise(records)
    first = records[0]
    seeds = len({record["seed"] for record in records})
    title = (
        f"{data}: {first['train_samples']} training and {first['test_samples']} test samples, "
        f"{seeds} seed{'s' * (seeds > 1)}, {protocol.epochs} epochs, Adam with step {protocol.lr:g}"
    )
    table = f"{title}\n\n{format_table(rows)}\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(table, encoding="utf-8")
    plots.accuracy(rows, title, out / "accuracy.png")
    plots.curves(records, title, out / "curves.png")
    print(f"\n{table}\nMean ± standard deviation over the seeds; p of the paired t-test against cross-entropy.")
    print(f"Results: {out}/ results.jsonl, table.md, accuracy.png, curves.png")


if __name__ == "__main__":
    sys.exit(main())
