"""The look that the tables and the figures of every experiment share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with every kind of colour vision; markers repeat the distinction for print.
COLOURS = ("#000000", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*")
RC: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG, with the folder it goes to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 0) -> str:
    """Return a Markdown table that is also aligned for reading as plain text, or nothing without rows.

    Args:
        header: names of the columns.
        rows: the cells.
        words: the column that is aligned to the left; the others are numbers.
    """
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(w) if i == words else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in (header, *rows)
    ]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == words else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
