"""Statistics of training runs that a sceptic accepts: paired differences to a baseline, corrected for their number.

    python -m bench.training analyze FILES

reads finished runs, JSON lines as `python -m bench.training` writes them or CSV with the columns loss, dataset,
batch_size, seed, max_accuracy and epochs (accuracies as fractions, or all in percent), and prints for each data set and
network a table; of all of them an overview, in which + and - mark what is significantly better and worse than the
baseline, how often each loss is, and by how much its score falls from the smallest to the largest batch. With --out it
writes

    comparison.md, comparison.csv   the tables, and their rows
    accuracy-DATA-MODEL.png         mean accuracy against batch size, bars: standard deviation

Differences are paired by seed; t and p are those of the two-sided paired t-test, and p is corrected by Holm's method
over all comparisons of a table.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.arguments import described_parser
from bench.results import Record, ResultsFile
from bench.style import markdown
from bench.training import plots
from bench.training.methods import BASELINE, METHODS, OTHERS
from bench.training.scores import (
    MEASURES,
    Row,
    Score,
    best_steps,
    cell_of,
    compare,
    format_table,
    measure_of,
    number,
    scores_of,
    title_of,
)
from bench.training.training import check

_COLUMNS = {
    "loss": str,
    "dataset": str,
    "batch_size": int,
    "seed": int,
    "max_accuracy": float,
    "epochs": int,
}


def overview(rows: Sequence[Row], level: float) -> str:
    """Return the mean scores with a column for each loss: + and - mark what is significantly better or worse."""
    losses = list(dict.fromkeys(row.loss for row in rows))
    lines: dict[tuple[str, str, int], dict[str, str]] = {}
    for row in rows:
        mark = ("+" if row.difference > 0 else "-") if row.p_holm < level else ""
        lines.setdefault((row.dataset, row.model, row.batch_size), {})[row.loss] = f"{row.mean:.2f}{mark}"
    cells = [
        [", ".join(filter(None, key[:2])), str(key[2]), *(line.get(loss, "-") for loss in losses)]
        for key, line in lines.items()
    ]
    return markdown(("data", "batch", *losses), cells, words=0)


def significance(rows: Sequence[Row], level: float) -> str:
    """Return for each loss in how many cells it is significantly better and worse, and its loss from large batches."""
    sizes: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        sizes.setdefault((row.dataset, row.model), []).append(row.batch_size)
    cells = []
    for loss in dict.fromkeys(row.loss for row in rows):
        mine = [row for row in rows if row.loss == loss]
        compared = [row for row in mine if not math.isnan(row.difference)]
        better, worse = (sum(row.p_holm < level and sign * row.difference > 0 for row in compared) for sign in (1, -1))
        gaps = []
        for table, of_table in sizes.items():
            ends = {row.batch_size: row.mean for row in mine if (row.dataset, row.model) == table}
            if {min(of_table), max(of_table)} <= ends.keys() and min(of_table) < max(of_table):
                gaps.append(ends[min(of_table)] - ends[max(of_table)])
        share = [f"{count} of {len(compared)} ({count / len(compared):.0%})" for count in (better, worse) if compared]
        cells.append([loss, *(share or ["-", "-"]), number(np.mean(gaps), ".2f") if gaps else "-"])
    header = ("loss", f"better at {level:g}", f"worse at {level:g}", "smallest - largest batch, points")
    return markdown(header, cells, words=0)


def read(path: Path) -> list[Record] | list[Score]:
    """Return what a file holds: records of JSON lines, or scores of a CSV file.

    Raises:
        ValueError: the file is not in its format; the message names it, and the line.
        OSError: it cannot be read.
    """
    if path.suffix != ".csv":
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        return ResultsFile(path, check).records
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        missing = _COLUMNS.keys() - set(lines.fieldnames or ())
        if missing:
            raise ValueError(f"{path}: expected the columns {', '.join(_COLUMNS)}; got {lines.fieldnames}")
        rows = []
        for line in lines:
            try:
                values = {name: kind(line[name]) for name, kind in _COLUMNS.items()}
                if not 0 <= values["max_accuracy"] <= 100:
                    raise ValueError(f"an accuracy of {values['max_accuracy']}")
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {lines.line_num}: expected a run, got {error}") from error
            rows.append({**values, "model": line.get("model") or ""})
    fractions = all(row["max_accuracy"] <= 1 for row in rows)
    return [Score(max=row.pop("max_accuracy") * (100 if fractions else 1), **row) for row in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """Analyse files from the command line and return the exit status."""
    parser = described_parser("python -m bench.training analyze", __doc__)
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="JSON lines, or CSV")
    add("--baseline", default=BASELINE, help="the loss to compare with (default: cross-entropy)")
    add("--by", choices=MEASURES, help="what to compare (default: selected where something was held out, else max)")
    add("--level", type=float, default=0.05, help="of significance (default: .05)")
    add("--predictions", action="store_true", help="every way to predict that was recorded, not only the first")
    add("--out", type=Path, metavar="DIR", help="where to write tables and figures")
    args = parser.parse_args(arguments)
    try:
        scores: list[Score] = []
        for path in args.files:
            found = read(path)
            records = [run for run in found if isinstance(run, dict)]
            steps = best_steps(records)
            chosen = [record for record in records if record["lr"] == steps[cell_of(record)]]
            scores += scores_of(chosen, every_prediction=args.predictions)
            scores += [run for run in found if isinstance(run, Score)]
        known = (METHODS | OTHERS).get(args.baseline)
        baseline = known.label if known else args.baseline
        if not any(score.loss == baseline for score in scores):
            names = ", ".join(dict.fromkeys(score.loss for score in scores))
            raise ValueError(f"baseline: expected one of {names}; got {args.baseline!r}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _report(scores, baseline, args)
    return 0


def _report(scores: Sequence[Score], baseline: str, args: argparse.Namespace) -> None:
    rows: list[Row] = []
    texts = []
    for dataset, model in dict.fromkeys((score.dataset, score.model) for score in scores):
        some = [score for score in scores if (score.dataset, score.model) == (dataset, model)]
        measure = args.by or measure_of(some)
        table = sorted(compare(some, baseline, measure), key=lambda row: row.batch_size)
        title = title_of(some, measure)
        texts.append(f"{title}\n\n{format_table(table)}")
        if args.out:
            name = "-".join(filter(None, ("accuracy", dataset, model)))
            plots.accuracy(table, title, args.out / f"{name}.png")
        rows += table
    texts.append(f"Baseline: {baseline}. p of paired t-tests, with Holm's correction in each table.")
    texts += [overview(rows, args.level), significance(rows, args.level)]
    print("\n\n".join(texts))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "comparison.md").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        with (args.out / "comparison.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
            writer.writeheader()
            writer.writerows({k: "" if v != v else v for k, v in dataclasses.asdict(row).items()} for row in rows)
