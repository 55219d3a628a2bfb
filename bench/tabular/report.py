"""The table and the figure of the experiment on tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from bench.results import Record
from bench.style import COLOURS, MARKERS, RC, markdown, save
from bench.tabular.models import BASELINE, LABELS

HEADER = ["data, library, objective", "accuracy, %", "to log loss, points", "p", "AUC, %", "log score", "rounds"]


def write(records: Sequence[Record], out: Path) -> None:
    """Print the table of these runs, and write it and the figure."""
    rows = summarised(records)
    table = markdown(HEADER, [_cells(row) for row in rows]) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(table, encoding="utf-8")
    figure(rows, out / "accuracy.png")
    print(
        f"\n{table}\nMean ± standard deviation over the seeds.\nResults: {out}/ results.jsonl, table.md, accuracy.png"
    )


def summarised(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row for each table, library and objective, with differences to the built-in loss, paired by seed."""
    from scipy.stats import ttest_1samp  # type: ignore[import-untyped]

    cells: dict[tuple[str, str, str], dict[int, Record]] = {}
    for record in records:
        cells.setdefault((record["data"], record["library"], record["objective"]), {})[record["seed"]] = record
    rows = []
    for (data, library, objective), by_seed in cells.items():
        baseline = cells.get((data, library, BASELINE), {})
        seeds = [seed for seed in by_seed if seed in baseline]
        gains = [_percent(by_seed[seed]) - _percent(baseline[seed]) for seed in seeds]
        runs = list(by_seed.values())
        known = objective != BASELINE and len(gains) > 1 and np.ptp(gains) > 0
        rows.append(
            {
                "data": data,
                "library": library,
                "objective": objective,
                "accuracy": [_percent(run) for run in runs],
                "gain": float(np.mean(gains)) if gains and objective != BASELINE else None,
                "p": float(ttest_1samp(gains, 0).pvalue) if known else None,
                "auc": float(np.mean([100 * run["test"]["auc"] for run in runs])),
                "log_score": float(np.mean([run["test"]["log_score"] for run in runs])),
                "rounds": float(np.mean([run["rounds"] for run in runs])),
            }
        )
    return rows


def _percent(record: Record) -> float:
    return 100 * float(record["test"]["accuracy"])


def _cells(row: dict[str, Any]) -> list[str]:
    deviation = f" ± {np.std(row['accuracy'], ddof=1):.2f}" if len(row["accuracy"]) > 1 else ""
    return [
        f"{row['data']}, {row['library']}, {LABELS[row['objective']]}",
        f"{np.mean(row['accuracy']):.2f}{deviation}",
        "-" if row["gain"] is None else f"{row['gain']:+.2f}",
        "-" if row["p"] is None else f"{row['p']:.3f}",
        f"{row['auc']:.2f}",
        f"{row['log_score']:.3f}",
        f"{row['rounds']:.0f}",
    ]


def figure(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the gain in accuracy over the built-in loss for each table: a mark for each library and objective."""
    shown = [row for row in rows if row["gain"] is not None]
    if not shown:
        return
    tables = list(dict.fromkeys(row["data"] for row in shown))
    series = list(dict.fromkeys((row["library"], row["objective"]) for row in shown))
    with mpl.rc_context(RC):
        drawing = Figure(figsize=(7.5, 1.6 + 0.5 * len(tables)), layout="constrained")
        axes = drawing.subplots()
        axes.axvline(0, color="#888888", linewidth=1)
        for i, (library, objective) in enumerate(series):
            mine = [row for row in shown if (row["library"], row["objective"]) == (library, objective)]
            heights = [tables.index(row["data"]) + (i - (len(series) - 1) / 2) * 0.15 for row in mine]
            style: dict[str, Any] = {"color": COLOURS[i + 1], "marker": MARKERS[i % len(MARKERS)], "linestyle": "none"}
            axes.plot([row["gain"] for row in mine], heights, label=f"{library}, {LABELS[objective]}", **style)
        axes.set_yticks(range(len(tables)), tables)
        axes.invert_yaxis()
        axes.set_xlabel("test accuracy above the built-in log loss, percentage points, mean over the seeds")
        drawing.legend(loc="outside upper center", ncols=2)
        save(drawing, path)
