"""How well do boosted trees predict that are trained with each objective?

    python -m bench.tabular --data breast-cancer digits letter magic spambase flights synthetic
    python -m bench.tabular --data higgs --root FOLDER --preset paper
    python -m bench.tabular cost                        what one call of the objective costs

trains LightGBM and XGBoost with their logarithmic loss and with the HyperSimplex losses, prints a table, and writes to
the results folder

    results.jsonl   one line per finished run; the same command resumes an interrupted experiment from it
    table.md        the printed table
    accuracy.png    accuracy of each objective relative to the built-in one

Protocol: a fifth of the rows is for testing, unless there is a file for that, and a fifth for validation. At the first
seed each objective is trained with every setting of a grid of equal size, least weight of a leaf by tau; for the
built-in loss, penalty by tau, which is what tau amounts to. The setting with the best validation accuracy, of equals
the first, is trained at the other seeds, which draw other splits. Every run stops by its own loss on the validation
rows. Differences are paired by seed; p is that of the two-sided paired t-test against the built-in loss, without
correction.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.arguments import described_parser
from bench.results import Record, ResultsFile, environment
from bench.tabular import report
from bench.tabular.data import TABLES, Table, load
from bench.tabular.models import LIBRARIES, OBJECTIVES, PRESETS, Setting, judged, rounds_of, trained

RESULTS = Path(__file__).parents[1] / "results" / "tabular"


def setting_of(record: Record) -> Setting:
    """The setting that a record is of."""
    return Setting(**{field.name: record[field.name] for field in dataclasses.fields(Setting)})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment from the command line and return the exit status."""
    args = _parse(arguments)
    try:
        results = ResultsFile(args.out / "results.jsonl", setting_of)
        records = [
            record
            for data in args.data
            for library in args.libraries
            for objective in args.objectives
            for record in chosen(data, library, objective, args, results)
        ]
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; the finished runs are in {args.out} and the same command goes on from there")
        return 130
    report.write(records, args.out)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = described_parser("python -m bench.tabular", __doc__)
    add = parser.add_argument
    add(
        "--data",
        nargs="+",
        choices=TABLES,
        default=["breast-cancer", "digits"],
        metavar="TABLE",
        help=", ".join(TABLES),
    )
    add("--root", type=Path, metavar="DIR", help="folder with the table's files, where no package holds them")
    add("--rows", type=int, default=0, help="of a table, the first at most (default: all; synthetic: 100,000)")
    add("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    add("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    add("--preset", choices=PRESETS, default="default", help="parameters of the trees (default: default)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="SEED")
    add("--threads", type=int, default=os.cpu_count(), help="of the libraries (default: all)")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="results folder (default: bench/results/tabular)")
    return parser.parse_args(arguments)


def chosen(data: str, library: str, objective: str, args: argparse.Namespace, results: ResultsFile) -> list[Record]:
    """Train what is missing: the grid at the first seed, the best of it at all others; return the latter's."""
    preset = PRESETS[args.preset]
    first, *others = dict.fromkeys(args.seeds)
    grid = [
        Setting(data, args.rows, library, objective, args.preset, first, weight, scale)
        for scale in preset.scales
        for weight in preset.min_weights
    ]
    tried = [_finished(setting, args, results) for setting in grid]
    best = max(tried, key=lambda record: record["validation"]["accuracy"])
    return [best, *(_finished(dataclasses.replace(setting_of(best), seed=s), args, results) for s in others)]


_tables: dict[tuple[str, int, int], Table] = {}


def _finished(setting: Setting, args: argparse.Namespace, results: ResultsFile) -> Record:
    """The record of a setting, trained now if there is none."""
    for record in results.records:
        if setting_of(record) == setting:
            return record
    import torch

    torch.set_num_threads(args.threads)
    key = setting.data, setting.rows, setting.seed
    if key not in _tables:
        _tables.clear()  # one at a time is kept
        _tables[key] = load(setting.data, setting.seed, args.root, args.rows or None)
    table = _tables[key]
    model, seconds = trained(setting, table, args.threads)
    own = bool(OBJECTIVES[setting.objective])
    scores = {part: judged(model, table.x[part], table.y[part], table.classes, own) for part in ("validation", "test")}
    record = {
        **dataclasses.asdict(setting),
        **scores,
        "rounds": rounds_of(model, setting.library),
        "seconds": round(seconds, 3),
        "training_rows": len(table.y["train"]),
        **environment(torch.device("cpu")),
        "threads": args.threads,
        "versions": {name: __import__(name).__version__ for name in (setting.library, "sklearn", "numpy")},
    }
    results.append(record)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in scores["test"].items())
    print(
        f"{setting.data}, {setting.library}, {setting.objective}, seed {setting.seed}: {shown}, {seconds:.1f} s",
        flush=True,
    )
    return record


if __name__ == "__main__":
    sys.exit(main())
