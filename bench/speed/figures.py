"""The results as figures: time against length and against peers, memory, bandwidth, accuracy, a map of the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.results import Record
from bench.speed import grid
from bench.speed.cases import Case
from bench.speed.contender import COPY, OURS
from bench.speed.peers import CONTENDERS
from bench.speed.tables import default_threads, of_group, seconds
from bench.style import COLOURS, MARKERS, RC, save

_DIRECTIONS = {"forward": "forward", "both": "forward + backward"}
# This package and the functions that do something else keep to one colour each, so that a glance tells them apart.
_OURS, _SAME, _OTHER = COLOURS[5], COLOURS[4], "#999999"


def draw(records: Sequence[Record], out: Path) -> list[Path]:
    """Draw the figures that the records, one per case, have something for.

    Returns:
        The PNGs written, in `out`.
    """
    figures: dict[str, tuple[Callable[[list[Record]], Figure], tuple[str, ...]]] = {
        "length": (_length, ("length",)),
        "peers": (_peers, ("peers", "loss")),
        "memory": (_memory, ("memory",)),
        "bandwidth": (_bandwidth, ("length",)),
        "accuracy": (_accuracy, ("peers",)),
        "loss-grid": (grid.figure, ("loss-grid",)),
    }
    written = []
    for name, (figure, groups) in figures.items():
        chosen = of_group(records, *groups)
        if chosen:
            path = out / f"{name}.png"
            with mpl.rc_context(RC):
                save(_titled(figure(chosen), chosen), path)
            written.append(path)
    return written


def _titled(figure: Figure, records: Sequence[Record]) -> Figure:
    last = records[-1]
    where = f"{last['device']}, threads: {default_threads(records)}, torch {last['torch']}, {last['date'][:10]}"
    figure.supxlabel(where, fontsize=8, color="#555555")
    return figure


def _case(record: Record) -> Case:
    return Case(**record["case"])


def _length(records: list[Record]) -> Figure:
    """Time per element against the length of a vector; a flat line is linear time."""
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    systems = [name for name in CONTENDERS if any("forward" in r["systems"].get(name, {}) for r in records)]
    for axes, (direction, title) in zip(panels, _DIRECTIONS.items(), strict=True):
        for i, name in enumerate(systems):
            points = [
                (_case(r), r["systems"][name][direction]) for r in records if direction in r["systems"].get(name, {})
            ]
            scale = [1e9 / case.vectors / case.n for case, _ in points]
            lengths = [case.n for case, _ in points]
            style = {"color": COLOURS[i], "marker": MARKERS[i]} if name != OURS else {"color": _OURS, "marker": "o"}
            if i == 5:  # the place of this package's colour in the palette
                style["color"] = COLOURS[0]
            median = [s * time["median"] for s, (_, time) in zip(scale, points, strict=True)]
            low, high = ([s * time[p] for s, (_, time) in zip(scale, points, strict=True)] for p in ("p20", "p80"))
            axes.plot(lengths, median, **style, label=name, markersize=5, linewidth=2.2 if name == OURS else 1.1)
            axes.fill_between(lengths, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axes.set_title(title, fontsize=10)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("entries of a vector, n")
    panels[0].set_ylabel("ns per element (bands: 20th to 80th percentile)")
    total = max(_case(r).vectors * _case(r).n for r in records)
    figure.suptitle(f"Time per element, {total} float32 elements in all, k = n/2: flat is linear time", fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def _peers(records: list[Record]) -> Figure:
    """Time of every contender, ratios to this package written on the bars."""
    heights = [len(record["systems"]) for record in records]
    figure = Figure(figsize=(12, 1.4 + 0.27 * sum(heights) + 0.6 * len(records)), layout="constrained")
    grid = figure.subplots(len(records), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    for row, record in zip(grid, records, strict=True):
        for axes, (direction, title) in zip(row, _DIRECTIONS.items(), strict=True):
            systems = {name: s for name, s in record["systems"].items() if direction in s}
            names = sorted(systems, key=lambda name: systems[name][direction]["median"])
            times = {name: systems[name][direction] for name in names}
            _bars(axes, names, [1e3 * time["median"] for time in times.values()], record)
            for i, time in enumerate(times.values()):
                axes.plot([1e3 * time["p20"], 1e3 * time["p80"]], [i, i], color="black", linewidth=1)
                text = f"  {seconds(time['median'])}" + (f", {time['ratio']:.3g} x" if names[i] != OURS else "")
                axes.text(1e3 * max(time["p80"], time["median"]), i, text, va="center", fontsize=8)
            axes.set_xscale("log")
            left, right = axes.get_xlim()
            axes.set_xlim(left, right * (right / left) ** 0.35)
            axes.set_title(f"{_case(record).label}: {title}", fontsize=10)
            axes.set_xlabel("ms (line: 20th to 80th percentile)")
    figure.suptitle(
        "Median time and its ratio to hypersimplex_ext. Blue: the same function; grey: another", fontsize=11
    )
    return figure


def _memory(records: list[Record]) -> Figure:
    """Peak memory of forward and backward beside the input."""
    figure = Figure(figsize=(6.0 * len(records) + 1, 4.6), layout="constrained")
    for axes, record in zip(figure.subplots(1, len(records), squeeze=False)[0], records, strict=True):
        size = _case(record).bytes
        systems = {name: s["memory"] / size for name, s in record["systems"].items() if s.get("memory") is not None}
        names = sorted(systems, key=systems.__getitem__)
        _bars(axes, names, [systems[name] for name in names], record)
        for i, name in enumerate(names):
            axes.text(systems[name], i, f" {systems[name]:.2f}", va="center", fontsize=8)
        axes.axvline(2, color="black", linewidth=0.8, linestyle="--")
        axes.set_title(_case(record).label, fontsize=10)
        axes.set_xlabel("peak beside the input / size of the input (dashed: result and gradient)")
        axes.margins(x=0.12)
    figure.suptitle("Peak memory of forward + backward. Blue: the same function; grey: another", fontsize=11)
    return figure


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float], record: Record) -> None:
    colours = [_OURS if name == OURS else _SAME if record["systems"][name]["same"] else _OTHER for name in names]
    axes.barh(range(len(names)), values, color=colours, height=0.7)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.grid(visible=False, axis="y")


def _bandwidth(records: list[Record]) -> Figure:
    """The projection reads its input and writes its output once at best, which is what a copy does."""
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    lengths = [_case(record).n for record in records]
    shown = (OURS, "torch.softmax", "torch.sort")
    for name, colour, marker in zip(shown, (_OURS, COLOURS[0], COLOURS[4]), MARKERS, strict=False):
        times = [(r["systems"][COPY]["forward"]["ratio"], r["systems"][name]["forward"]["ratio"]) for r in records]
        share = [100 * copy / own for copy, own in times]
        axes.plot(lengths, share, color=colour, marker=marker, label=name, linewidth=1.5)
        if name == OURS:
            for x, y in zip(lengths, share, strict=True):
                axes.annotate(f"{y:.0f} %", (x, y), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.axhline(100, color="black", linewidth=0.8, linestyle="--")
    axes.text(lengths[0], 101, "x.clone()", fontsize=8, va="bottom")
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("entries of a vector, n")
    axes.set_ylabel("share of copy bandwidth, %")
    axes.set_title("Forward: time of a copy / time of the function, k = n/2, float32", fontsize=11)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _accuracy(records: list[Record]) -> Figure:
    """Largest error of a result and of a gradient against float64, of everything that computes the projection."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    names = [name for name in CONTENDERS if any(r["systems"].get(name, {}).get("same") for r in records)][::-1]
    for axes, (field, title) in zip(
        panels,
        {"error": "result: largest error", "gradient_error": "gradient: largest error / largest entry"}.items(),
        strict=True,
    ):
        for i, record in enumerate(records):
            found = [(n, record["systems"].get(n, {}).get(field)) for n in names]
            points = [(max(value, 1e-9), names.index(name)) for name, value in found if value is not None]
            axes.plot(
                *zip(*points, strict=True) if points else ([], []),
                linestyle="",
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                label=_case(record).label,
                markersize=6,
                alpha=0.85,
            )
        axes.set_xscale("log")
        axes.set_title(title, fontsize=10)
        axes.axvline(2**-24, color="black", linewidth=0.8, linestyle="--")
        axes.set_yticks(range(len(names)), names, fontsize=9)
    figure.suptitle("Accuracy against float64, float32 (dashed: half a unit in the last place at 1)", fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return figure
