"""What runs reached, and the statistics of it: paired differences to a baseline, corrected for their number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy.stats import ttest_rel  # type: ignore[import-untyped]

from bench.results import Record
from bench.style import markdown
from bench.training.methods import ARGMAX, BASELINE, CALIBRATED, method

MEASURES = {
    "selected": "at the best epoch of validation",
    "max": "maximum over the epochs",
    "last": "after the last epoch",
}
_WAYS = {ARGMAX: "argmax", CALIBRATED: "calibrate()"}


@dataclasses.dataclass(frozen=True)
class Score:
    """What one run reached, in percent; what is not known is NaN.

    Attributes:
        dataset: name of the data set.
        model: name of the network.
        loss: what readers call the loss.
        batch_size: samples of a step.
        seed: of the run.
        epochs: passes over the training samples.
        lr: step size.
        selected: on the test set at the best epoch of validation.
        max: the best of all epochs on the test set.
        last: on the test set after the last epoch.
        active: mean share of the entries with a gradient.
    """

    dataset: str
    model: str
    loss: str
    batch_size: int
    seed: int
    epochs: int
    max: float
    lr: float = math.nan
    selected: float = math.nan
    last: float = math.nan
    active: float = math.nan


@dataclasses.dataclass(frozen=True)
class Row:
    """One loss at one batch size of one data set, over the seeds; what is not defined is NaN.

    Attributes:
        dataset: name of the data set.
        model: name of the network.
        batch_size: samples of a step.
        loss: what readers call the loss.
        seeds: number of runs.
        mean: of the compared measure, in percent.
        sd: its standard deviation over the seeds.
        difference: mean difference to the baseline at the same seed, in percentage points.
        t: of the paired t-test.
        p: of the paired t-test.
        p_holm: corrected over all rows of the data set and network.
        selected: mean, in percent.
        max: likewise.
        last: likewise.
        lr: step size, if all seeds have the same.
        active: mean share of active entries.
    """

    dataset: str
    model: str
    batch_size: int
    loss: str
    seeds: int
    mean: float
    sd: float
    difference: float
    t: float
    p: float
    p_holm: float
    selected: float
    max: float
    last: float
    lr: float
    active: float


def series_of(record: Record, way: str, split: str = "test") -> list[float]:
    """Return the measure by which a run is compared, after every epoch; empty without that split.

    Args:
        record: as `bench.training.training.train` returns it.
        way: of predicting.
        split: "test" or "validation".
    """
    measures = record.get(split, {})
    series: list[float] = measures.get(way if record["metric"] == "accuracy" else record["metric"], [])
    return series


def selection_score(record: Record) -> float:
    """Return the best validation score of a run, on the test set where nothing was held out; never NaN."""
    way = method(record["method"]).predictions[0]
    return float(np.nan_to_num(max(series_of(record, way, "validation") or series_of(record, way))))


def cell_of(settings: Record) -> tuple[object, ...]:
    """Return what the runs have in common among which a step size is chosen."""
    return tuple(
        settings[name] for name in ("data", "model", "method", "batch_size", "epochs", "precision", "augmented")
    )


def best_steps(records: Iterable[Record]) -> dict[tuple[object, ...], float]:
    """Return by `cell_of` the step size with the best validation score at the seed whose record comes first."""
    first: dict[tuple[object, ...], int] = {}
    best: dict[tuple[object, ...], Record] = {}
    for record in records:
        cell = cell_of(record)
        if record["seed"] != first.setdefault(cell, record["seed"]):
            continue
        if cell not in best or selection_score(record) > selection_score(best[cell]):
            best[cell] = record
    return {cell: record["lr"] for cell, record in best.items()}


def scores_of(records: Iterable[Record], *, every_prediction: bool = False) -> list[Score]:
    """Return what runs reached, by the first way of their method to predict or by each."""
    scores = []
    for record in records:
        how = method(record["method"])
        ways = how.predictions if every_prediction and record["metric"] == "accuracy" else how.predictions[:1]
        for way in ways:
            test = 100 * np.array(series_of(record, way))
            validation = series_of(record, way, "validation")
            name = how.label if way == ways[0] else f"{how.label.removesuffix(', calibrated')}, {_WAYS[way]}"
            scores.append(
                Score(
                    *(record["data"], record["model"], name),
                    *(record["batch_size"], record["seed"], record["epochs"]),
                    max=test.max(),
                    lr=record["lr"],
                    selected=test[int(np.argmax(validation))] if validation else math.nan,
                    last=test[-1],
                    active=np.mean(record["active"]) if record["active"] else math.nan,
                )
            )
    return scores


def measure_of(scores: Sequence[Score]) -> str:
    """Return the measure to compare by: at the best epoch of validation if all have one, else the maximum."""
    return "max" if any(math.isnan(score.selected) for score in scores) else "selected"


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by the method of S. Holm (1979); NaN stays and is not counted."""
    corrected = [math.nan] * len(p)
    order = sorted((i for i in range(len(p)) if not math.isnan(p[i])), key=lambda i: p[i])
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def compare(scores: Sequence[Score], baseline: str = BASELINE, measure: str | None = None) -> list[Row]:
    """Return a row for every data set, network, batch size and loss, in the order in which they come.

    Args:
        scores: of the runs.
        baseline: the loss that the others are compared with.
        measure: one of `MEASURES`; None for `measure_of`.
    """
    measure = measure or measure_of(scores)
    tables: dict[tuple[str, str], dict[tuple[int, str], dict[int, Score]]] = {}
    for score in scores:
        cells = tables.setdefault((score.dataset, score.model), {})
        cells.setdefault((score.batch_size, score.loss), {})[score.seed] = score
    rows = []
    for (dataset, model), cells in tables.items():
        table = []
        for (size, loss), runs in cells.items():
            values = [getattr(run, measure) for run in runs.values()]
            against = cells.get((size, baseline), {}) if loss != baseline else {}
            pairs = [(getattr(runs[s], measure), getattr(against[s], measure)) for s in sorted(runs.keys() & against)]
            ours, theirs = np.array(pairs).reshape(-1, 2).T
            test = ttest_rel(ours, theirs) if len(pairs) > 1 and np.ptp(ours - theirs) > 1e-9 else None
            means = {name: _mean([getattr(run, name) for run in runs.values()]) for name in (*MEASURES, "active")}
            steps = {run.lr for run in runs.values()}
            table.append(
                Row(
                    *(dataset, model, size, loss, len(runs)),
                    mean=_mean(values),
                    sd=float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
                    difference=float((ours - theirs).mean()) if pairs else math.nan,
                    t=float(test.statistic) if test else math.nan,
                    p=float(test.pvalue) if test else math.nan,
                    p_holm=math.nan,
                    lr=steps.pop() if len(steps) == 1 else math.nan,
                    **means,
                )
            )
        corrected = holm([row.p for row in table])
        rows += [dataclasses.replace(row, p_holm=p) for row, p in zip(table, corrected, strict=True)]
    return rows


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def format_table(rows: Sequence[Row]) -> str:
    """Return rows of one data set and network as a Markdown table; columns without a number are left out."""
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("batch", lambda row: str(row.batch_size)),
        ("loss", lambda row: row.loss),
        ("test score, %", lambda row: number(row.mean, ".2f") + ("" if math.isnan(row.sd) else f" ± {row.sd:.2f}")),
        ("to baseline, points", lambda row: number(row.difference, "+.2f")),
        ("p (Holm)", lambda row: "<.001" if row.p_holm < 0.001 else number(row.p_holm, ".3f")),
        ("last epoch, %", lambda row: number(row.last, ".2f")),
        ("maximum, %", lambda row: number(row.max, ".2f")),
        ("step", lambda row: number(row.lr, ".2g")),
        ("active, %", lambda row: number(100 * row.active, ".0f")),
    ]
    cells = [[text(row) for _, text in columns] for row in rows]
    kept = [i for i in range(len(columns)) if any(line[i] != "-" for line in cells)]
    if all(math.isnan(row.selected) for row in rows):
        kept = [i for i in kept if columns[i][0] not in ("maximum, %", "step")]  # of which there is but one
    return markdown([columns[i][0] for i in kept], [[line[i] for i in kept] for line in cells], words=1)


def number(value: float, form: str) -> str:
    """Return the number in this format, or a dash for NaN."""
    return "-" if math.isnan(value) else format(value, form)


def title_of(scores: Sequence[Score], measure: str | None = None) -> str:
    """Return a line that says what was run: data set, network, seeds, epochs, and, if given, what is compared."""
    seeds, epochs = len({score.seed for score in scores}), sorted({score.epochs for score in scores})
    name = ", ".join(filter(None, (scores[0].dataset, scores[0].model)))
    compared = f"{MEASURES[measure]}, " if measure else ""
    return f"{name}: {compared}{seeds} seed{'s' * (seeds > 1)}, {', '.join(map(str, epochs))} epochs"
