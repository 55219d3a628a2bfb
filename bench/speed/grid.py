"""The loss over many shapes: its time as a multiple of cross-entropy's, as a map."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from bench.results import Record
from bench.speed.cases import Case, short
from bench.speed.contender import CROSS_ENTROPY

Ratios = Mapping[tuple[int, int], float]

_COLOURS = mpl.colormaps["RdBu_r"]  # blue where the loss is the faster one; told apart with every kind of vision
_UNKNOWN = "#cccccc"
_RANGE = 2.0  # powers of two, from the middle of the colours to either end


def by_variant(records: Sequence[Record]) -> dict[str, dict[tuple[int, int], float]]:
    """Return the time of forward and backward by cross-entropy's, by (samples, classes), for each variant.

    The base has the name "", half types that of the dtype. A shape that cross-entropy failed at is left out.
    """
    ratios: dict[str, dict[tuple[int, int], float]] = {}
    for record in records:
        case = Case(**record["case"])
        theirs = record["systems"].get(CROSS_ENTROPY, {}).get("both")
        variant = case.variant or (case.dtype if case.dtype != "float32" else "")
        if theirs is not None:
            ratios.setdefault(variant, {})[case.n, case.vectors] = 1 / theirs["ratio"]
    return ratios


def figure(records: Sequence[Record]) -> Figure:
    """Draw the ratios of every variant: the base across the top, the others below it, all with the same shapes."""
    variants = by_variant(records)
    base = variants.pop("", {})
    others = sorted({shape for ratios in variants.values() for shape in ratios})
    beside = 4 if len({c for _, c in others}) <= 4 else 3
    heights = [_height(base)] * bool(base) + [_height(others)] * math.ceil(len(variants) / beside)
    drawn = Figure(figsize=(12, 1.2 + 0.5 * sum(heights) + 0.4 * len(heights)), layout="constrained")
    if not heights:
        return drawn
    cells = drawn.add_gridspec(len(heights), beside, height_ratios=heights)
    panels = []
    if base:
        axes = drawn.add_subplot(cells[0, :])
        panels.append((axes, _panel(axes, base, base, 'k = "targets", squared, class indices, C order, float32')))
    for i, (variant, ratios) in enumerate(variants.items()):
        axes = drawn.add_subplot(cells[i // beside + bool(base), i % beside])
        panels.append((axes, _panel(axes, ratios, others, variant)))
    bar = drawn.colorbar(panels[0][1], ax=[axes for axes, _ in panels], extend="both", aspect=40, pad=0.01)
    bar.set_ticks([-2, -1, 0, 1, 2], labels=["1/4", "1/2", "1", "2", "4"])
    drawn.suptitle(
        "hypersimplex_loss / F.cross_entropy: time of forward + backward. Blue: less; grey: not measured", fontsize=11
    )
    return drawn


def _height(shapes: Iterable[tuple[int, int]]) -> int:
    """Rows of cells, and one more for a panel's title and labels."""
    return len({n for n, _ in shapes}) + 1


def _panel(axes: Axes, ratios: Ratios, shapes: Iterable[tuple[int, int]], title: str) -> AxesImage:
    """Draw one variant, with a place for each of the shapes."""
    samples = sorted({n for n, _ in shapes})
    classes = sorted({c for _, c in shapes})
    cells = [[math.log2(ratios[n, c]) if (n, c) in ratios else math.nan for c in classes] for n in samples]
    image = axes.imshow(cells, cmap=_COLOURS, norm=Normalize(-_RANGE, _RANGE), aspect="auto", origin="lower")
    axes.set_facecolor(_UNKNOWN)
    for (n, c), ratio in ratios.items():
        strong = abs(math.log2(ratio)) > 0.6 * _RANGE
        axes.text(
            classes.index(c),
            samples.index(n),
            f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if strong else "black",
        )
    axes.set_xticks(range(len(classes)), [short(c) for c in classes])
    axes.set_yticks(range(len(samples)), [short(n) for n in samples])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("classes", fontsize=9)
    axes.set_ylabel("samples", fontsize=9)
    axes.set_title(title, fontsize=10)
    return image
