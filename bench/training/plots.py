"""Figures of the generalisation experiment."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from bench.training.training import METHODS

_STYLES: dict[str, dict[str, Any]] = {
    method: {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "label": METHODS[method].label,
    }
    for i, method in enumerate(METHODS)
}
_SMALLEST_ERROR = 0.01  # percent


def accuracy(rows: Sequence[Record], title: str, path: Path) -> None:
    """Draw the mean maximum test accuracy against the batch size, one line per loss, standard deviations as bars.

    Args:
        rows: as `bench.training.generalization.summarise` returns them.
        title: heading of the figure.
        path: the PNG to write.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    sizes = sorted({row["batch_size"] for row in rows})
    with mpl.rc_context(RC):
        figure = Figure(figsize=(8.5, 4.6), layout="constrained")
        axes = figure.subplots()
        for i, method in enumerate(methods):
            mine = [row for row in rows if row["method"] == method]
            shift = 1.07 ** (i - (len(methods) - 1) / 2)  # side by side, so that no bar hides another
            error = _error([row["mean"] for row in mine])
            deviation = np.nan_to_num([row["sd"] for row in mine])
            axes.errorbar(
                [row["batch_size"] * shift for row in mine],
                error,
                yerr=[np.minimum(deviation, error - _SMALLEST_ERROR), deviation],
                **_STYLES[method],
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
        axes.set_ylabel("maximum test accuracy (log scale of the error)")
        _scale_by_error(axes)
        figure.suptitle(f"{title}\nmean over the seeds, bars: standard deviation", fontsize=10)
        figure.legend(loc="outside right center")
        save(figure, path)


def curves(records: Sequence[Record], title: str, path: Path) -> None:
    """Draw the test accuracy against the epoch, one panel per batch size: mean over seeds, and their range.

    Args:
        records: as `bench.training.training.train` returns them.
        title: heading of the figure.
        path: the PNG to write.
    """
    sizes = sorted({record["batch_size"] for record in records})
    columns = min(len(sizes), 4)
    panel_rows = math.ceil(len(sizes) / columns)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(1.2 + 3.3 * columns, 1.3 + 3.1 * panel_rows), layout="constrained")
        grid = figure.subplots(panel_rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(sizes) :]:
            axes.remove()
        for axes, size in zip(grid.flat, sizes, strict=False):
            _panel(axes, [record for record in records if record["batch_size"] == size], f"batch size {size}")
        _scale_by_error(grid[0, 0])
        for axes in grid[:, 0]:
            axes.set_ylabel("test accuracy (log scale of the error)")
        figure.suptitle(f"{title}\nmean over the seeds, bands: range", fontsize=10)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        save(figure, path)


def _panel(axes: Axes, records: Sequence[Record], title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.xaxis.set_tick_params(labelbottom=True)
    for method in dict.fromkeys(record["method"] for record in records):
        percent = 100 * np.array([record["test_accuracy"] for record in records if record["method"] == method])
        epochs = np.arange(1, percent.shape[1] + 1)
        style = _STYLES[method]
        axes.plot(epochs, _error(percent.mean(axis=0)), color=style["color"], label=style["label"], linewidth=1.3)
        low, high = _error(percent.max(axis=0)), _error(percent.min(axis=0))
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _error(percent: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return 100 - accuracy, kept off 0, which a log scale cannot show."""
    return np.maximum(100 - np.asarray(percent, dtype=np.float64), _SMALLEST_ERROR)


def _scale_by_error(axes: Axes) -> None:
    """Give an axis of errors in percent a log scale, best on top, with the accuracies as labels."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda error, _: f"{100 - error:.4g} %")
    axes.invert_yaxis()
