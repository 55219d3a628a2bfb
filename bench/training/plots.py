"""Figures of the generalisation experiment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from bench.results import Record
from bench.style import COLOURS, MARKERS, RC, save
from bench.training.methods import METHODS, method
from bench.training.scores import Row, series_of

Values = npt.NDArray[np.float64]

_SMALLEST_ERROR = 0.01  # percent


_LABELS = [how.label for how in METHODS.values()]
_PALETTE = (*COLOURS[:4], "#7F7F7F", "#8C6D31", COLOURS[6], COLOURS[4], COLOURS[5])  # this package's losses last
_SYMBOLS = (*MARKERS, "p")


def _styles(losses: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return how the line of each loss looks: the same in every figure for `METHODS`, others dashed."""
    names = dict.fromkeys(losses)
    others = [loss for loss in names if loss not in _LABELS]
    styles = {}
    for loss in names:
        i = (others if loss in others else _LABELS).index(loss) % len(_PALETTE)
        styles[loss] = {"color": _PALETTE[i], "marker": _SYMBOLS[i], "label": loss}
        styles[loss]["linestyle"] = "--" if loss in others else "-"
    return styles


def accuracy(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw the mean test score against the batch size, one line per loss, standard deviations as bars.

    Args:
        rows: of one data set and network, as `bench.training.analysis.compare` returns them.
        title: heading of the figure.
        path: the PNG to write.
    """
    styles = _styles(row.loss for row in rows)
    sizes = sorted({row.batch_size for row in rows})
    with mpl.rc_context(RC):
        figure = Figure(figsize=(8.5, 4.6), layout="constrained")
        axes = figure.subplots()
        for i, (loss, style) in enumerate(styles.items()):
            mine = [row for row in rows if row.loss == loss]
            shift = 1.07 ** (i - (len(styles) - 1) / 2)  # side by side, so that no bar hides another
            error = _error([row.mean for row in mine])
            deviation = np.nan_to_num([row.sd for row in mine])
            axes.errorbar(
                [row.batch_size * shift for row in mine],
                error,
                yerr=[np.minimum(deviation, error - _SMALLEST_ERROR), deviation],
                **style,
                linewidth=1.0,
                markersize=5.5,
                elinewidth=1.2,
                capsize=2.5,
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("batch size (samples)")
        axes.set_ylabel("test score (log scale of the error)")
        _scale_by_error(axes, min(100 - row.mean for row in rows))
        figure.suptitle(f"{title}\nmean over the seeds, bars: standard deviation", fontsize=10)
        figure.legend(loc="outside right center")
        save(figure, path)


def curves(records: Sequence[Record], title: str, path: Path) -> None:
    """Draw the test score against the epoch, one panel per batch size: mean over seeds, and their range.

    Args:
        records: as `bench.training.training.train` returns them.
        title: heading of the figure.
        path: the PNG to write.
    """
    sizes = sorted({record["batch_size"] for record in records})
    styles = _styles(method(record["method"]).label for record in records)
    columns = min(len(sizes), 4)
    panel_rows = math.ceil(len(sizes) / columns)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(1.2 + 3.3 * columns, 1.3 + 3.1 * panel_rows), layout="constrained")
        grid = figure.subplots(panel_rows, columns, sharex="col", sharey=True, squeeze=False)
        for axes in grid.flat[len(sizes) :]:
            axes.remove()
        for axes, size in zip(grid.flat, sizes, strict=False):
            some = [record for record in records if record["batch_size"] == size]
            _panel(axes, some, f"batch size {size}", styles)
        for axes in grid[:, 0]:
            axes.set_ylabel("test score (log scale of the error)")
        _scale_by_error(grid[0, 0], min(1 - max(series) for series in map(_first_series, records)) * 100)
        figure.suptitle(f"{title}\nmean over the seeds, bands: range", fontsize=10)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        save(figure, path)


def _panel(axes: Axes, records: Sequence[Record], title: str, styles: dict[str, dict[str, Any]]) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.xaxis.set_tick_params(labelbottom=True)
    for name in styles:
        some = [record for record in records if method(record["method"]).label == name]
        if not some:
            continue
        percent = 100 * np.array([_first_series(record) for record in some])
        epochs = np.arange(1, percent.shape[1] + 1)
        line = {key: styles[name][key] for key in ("color", "linestyle", "label")}
        axes.plot(epochs, _error(percent.mean(axis=0)), **line, linewidth=1.3)
        low, high = _error(percent.max(axis=0)), _error(percent.min(axis=0))
        axes.fill_between(epochs, low, high, color=styles[name]["color"], alpha=0.12, linewidth=0)


def _error(percent: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return 100 - accuracy, kept off 0, which a log scale cannot show."""
    return np.maximum(100 - np.asarray(percent, dtype=np.float64), _SMALLEST_ERROR)


def _first_series(record: Record) -> list[float]:
    return series_of(record, method(record["method"]).predictions[0])


def _scale_by_error(axes: Axes, least: float) -> None:
    """Show scores on an axis of errors in percent, best on top: on a log scale if the least error is below 20."""
    if least < 20:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylabel("test score")
    axes.yaxis.set_major_formatter(lambda error, _: f"{100 - error:.4g} %")
    axes.invert_yaxis()


def heat_maps(maps: dict[str, Values], rows: Sequence[str], columns: Sequence[str], axes_of: str, path: Path) -> None:
    """Draw one map per entry, numbers in the cells, on one scale of colours.

    Args:
        maps: by title, values [rows, columns].
        rows: their names.
        columns: likewise.
        axes_of: what the columns are.
        path: the PNG to write.
    """
    low = min(float(np.nanquantile(values, 0.1)) for values in maps.values())
    high = max(float(np.nanmax(values)) for values in maps.values())
    with mpl.rc_context(RC):
        figure = Figure(figsize=(0.8 + 0.75 * len(columns) * len(maps), 1.5 + 0.5 * len(rows)), layout="constrained")
        panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
        for axes, (title, values) in zip(panels, maps.items(), strict=True):
            axes.imshow(values, vmin=low, vmax=high, cmap="viridis", aspect="auto")
            for (i, j), value in np.ndenumerate(values):
                dark = value < (low + high) / 2
                axes.text(j, i, f"{value:.1f}", ha="center", va="center", color="white" if dark else "black", size=9)
            axes.set_title(title, fontsize=10)
            axes.set_xticks(range(len(columns)), columns)
            axes.set_yticks(range(len(rows)), rows)
            axes.set_xlabel(axes_of)
            axes.grid(visible=False)
        save(figure, path)
