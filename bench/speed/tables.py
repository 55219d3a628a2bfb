"""The results as Markdown tables that are also aligned for reading as plain text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from bench.results import Record
from bench.speed import grid
from bench.speed.cases import Case, short
from bench.speed.contender import ALONG_ROWS, COPY, OURS
from bench.style import markdown

SOFTMAX = "torch.softmax"
_NOTES = """Times: median [20th, 80th percentile]; ratios: to hypersimplex_ext, median of those within the rounds.
Errors: largest against float64, of a gradient relative to its largest entry, "-" where nothing can be compared.
"Another function" is there for scale. "sort + PAV" is the algorithm of the paper's code, one row after the other, on
numpy's sort and the named package's isotonic regression.
jaxopt always uses every core. Of one class, F.cross_entropy stands for F.binary_cross_entropy_with_logits."""


def tables(records: Sequence[Record]) -> str:
    """Return every table that the records, one per case, have something for."""
    parts = [origin(records), _NOTES]
    parts += [comparison(record) for record in of_group(records, "peers", "loss", "order")]
    parts += [_lengths(of_group(records, "length")), _inputs(of_group(records, "inputs"))]
    parts += [_variants(of_group(records, "mass", "dtype", "layout", "threads", "long"))]
    parts += [_overhead(of_group(records, "overhead", "loss-overhead")), _parts([r for r in records if "parts" in r])]
    parts += [_memory(of_group(records, "memory")), _grids(of_group(records, "loss-grid"))]
    parts += [_columns(of_group(records, "columns"))]
    return "\n\n".join(part for part in parts if part)


def of_group(records: Iterable[Record], *groups: str) -> list[Record]:
    """Return the records of these groups."""
    return [record for record in records if record["case"]["group"] in groups]


def origin(records: Sequence[Record]) -> str:
    """Return where and when the results were taken, and with what."""
    last, build = records[-1], records[-1]["build"]
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    first_day, last_day = records[0]["date"][:10], last["date"][:10]
    days = last_day if first_day == last_day else f"{first_day} to {last_day}"
    threads = default_threads(records)
    return (
        f"{last['device']}, {threads} thread{'s' * (threads > 1)} unless said otherwise, {days}. hypersimplex_ext "
        f"{build['version']} ({build['vector_extension']}, build {build['digest']}), Python {last['python']}, "
        f"{versions}."
    )


def default_threads(records: Sequence[Record]) -> int:
    """Return the threads of the cases that do not choose them."""
    return max((record["threads"] for record in records if record["case"]["threads"] == 0), default=0)


def seconds(value: float) -> str:
    """Return a time with three significant digits in a unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{three(value / size)} {unit}"
    return f"{three(value / 1e-6)} µs"


def three(value: float) -> str:
    """Return a number with three significant digits, or more before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _time(direction: Record | None) -> str:
    if direction is None:
        return "-"
    scale = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}[seconds(direction["median"]).split()[1]]
    return f"{seconds(direction['median'])} [{three(direction['p20'] / scale)}, {three(direction['p80'] / scale)}]"


def _ratio(direction: Record | None) -> str:
    return "-" if direction is None else f"{three(direction['ratio'])}"


def _error(system: Record, name: str) -> str:
    return "-" if system.get(name) is None else f"{system[name]:.0e}"


def _inverse(record: Record, system: str, direction: str) -> str:
    """Return this package's time as a multiple of another's."""
    theirs = record["systems"].get(system, {}).get(direction)
    return "-" if theirs is None else three(1 / theirs["ratio"])


def comparison(record: Record) -> str:
    """Return the table of one case's contenders."""
    case = Case(**record["case"])
    rows = []
    for name, system in record["systems"].items():
        if "failure" in system:
            rows.append([name, system["failure"], "-", "-", "-", "-", "-"])
            continue
        forward, both = system.get("forward"), system.get("both")
        label = name if system["same"] else f"{name} (another function)"
        errors = [_error(system, "error"), _error(system, "gradient_error")]
        rows.append([label, _time(forward), _ratio(forward), _time(both), _ratio(both), *errors])
    header = ["", "forward", "ratio", "forward + backward", "ratio", "error", "gradient error"]
    return f"{case.label}\n\n{markdown(header, rows)}"


def _lengths(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        case = Case(**record["case"])
        ours = record["systems"][OURS]
        row = [case.label]
        row += [f"{1e9 * ours[direction]['median'] / case.n / case.vectors:.2f}" for direction in ("forward", "both")]
        row += [_inverse(record, system, "forward") for system in (COPY, SOFTMAX, "torch.sort")]
        rows.append([*row, _inverse(record, SOFTMAX, "both")])
    header = ["time per element at a fixed total", "forward, ns", "forward + backward, ns"]
    header += ["forward / copy", "/ softmax", "/ sort", "both / softmax"]
    return markdown(header, rows)


def _inputs(records: Sequence[Record]) -> str:
    """Times relative to normal inputs of the same size, each taken relative to the copy in its own run."""
    parts = []
    for label, group in itertools.groupby(records, key=lambda record: Case(**record["case"]).label):
        members = list(group)
        normal = next((r for r in members if r["case"]["inputs"] == "normal"), None)
        rows = []
        for record in members:
            row = [record["case"]["inputs"]]
            for direction in ("forward", "both"):
                row.append(_time(record["systems"][OURS][direction]))
                row.append("-" if normal is None else three(_copies(record, direction) / _copies(normal, direction)))
            ours = record["systems"][OURS]
            rows.append([*row, _error(ours, "error"), _error(ours, "gradient_error")])
        header = [label, "forward", "/ normal", "forward + backward", "/ normal", "error", "gradient error"]
        parts.append(markdown(header, rows))
    return "\n\n".join(parts)


def _copies(record: Record, direction: str) -> float:
    return float(1 / record["systems"][COPY][direction]["ratio"])


def _threads(case: Case) -> str:
    return f", {case.threads} thread{'s' * (case.threads > 1)}" if case.threads else ""


def _variants(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        case = Case(**record["case"])
        ours = record["systems"][OURS]
        row = [case.label + _threads(case), _time(ours["forward"])]
        row += [_inverse(record, system, "forward") for system in (COPY, SOFTMAX)]
        row += [_time(ours["both"]), _inverse(record, SOFTMAX, "both")]
        rows.append([*row, _error(ours, "error"), _error(ours, "gradient_error")])
    header = ["", "forward", "/ copy", "/ softmax", "forward + backward", "/ softmax", "error", "gradient error"]
    return markdown(header, rows)


def _overhead(records: Sequence[Record]) -> str:
    systems = list(dict.fromkeys(name for record in records for name in record["systems"]))
    rows = [
        [f"{Case(**record['case']).label}{_threads(Case(**record['case']))}, {word}"]
        + [_time(record["systems"].get(name, {}).get(direction)) for name in systems]
        for record in records
        for direction, word in (("forward", "forward"), ("both", "forward + backward"))
    ]
    return markdown(["a call at tiny sizes", *systems], rows)


def _parts(records: Sequence[Record]) -> str:
    """Where the time of forward and backward goes, each part timed alone."""
    rows = [
        [Case(**record["case"]).label + _threads(Case(**record["case"])), *map(seconds, record["parts"].values())]
        for record in records
    ]
    return markdown(["parts of forward + backward", *records[0]["parts"]] if records else [], rows)


def _memory(records: Sequence[Record]) -> str:
    """Peaks beside the input, in multiples of it: the result and the gradient make 2."""
    systems = list(dict.fromkeys(name for record in records for name in record["systems"]))
    rows = []
    for name in systems:
        row = [name]
        for record in records:
            memory = record["systems"].get(name, {}).get("memory")
            row.append("-" if memory is None else f"{memory / Case(**record['case']).bytes:.2f}")
        rows.append(row)
    labels = (Case(**record["case"]) for record in records)
    header = [f"{case.label} ({short(case.bytes >> 20)} MiB)" for case in labels]
    return markdown(["peak memory of forward + backward / input", *header], rows)


def _grids(records: Sequence[Record]) -> str:
    """Multiples of the time of cross-entropy, a table for each variant."""
    parts = []
    for variant, ratios in grid.by_variant(records).items():
        samples = sorted({n for n, _ in ratios})
        rows = [
            [str(classes), *(three(ratios[n, classes]) if (n, classes) in ratios else "-" for n in samples)]
            for classes in sorted({classes for _, classes in ratios})
        ]
        title = f"loss / F.cross_entropy, forward + backward{', ' * bool(variant)}{variant}: classes"
        parts.append(markdown([title, *(f"{n} samples" for n in samples)], rows))
    return "\n\n".join(parts)


def _columns(records: Sequence[Record]) -> str:
    """Times along columns, and what they are of the times along rows."""
    rows = []
    for record in records:
        row = [Case(**record["case"]).label]
        for direction in ("forward", "both"):
            row += [_time(record["systems"][OURS][direction]), _inverse(record, ALONG_ROWS, direction)]
        rows.append(row)
    return markdown(["projection of columns", "forward", "/ rows", "forward + backward", "/ rows"], rows)
