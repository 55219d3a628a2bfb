"""Measure this package against plain PyTorch and its peers.

    python -m bench            quick: under two minutes
    python -m bench --full     every size, dtype, layout, distribution and temperature
    python -m bench --gpu      the CUDA kernels, on a GPU
    python -m bench --busy     how much a neighbour that keeps a core busy slows each operator, in two minutes
    python -m bench measure    measure without tables and figures
    python -m bench table      print the tables of the results
    python -m bench plot       draw the figures of the results

Results are JSON lines, one case a line, in bench/results/quick, full, gpu or busy; the same command resumes an
interrupted run. A case is measured again when the machine, a version or the build has changed. Peers are optional,
see bench/requirements-peers.txt. For ratios worth quoting leave the machine to the benchmark.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from bench.arguments import described_parser
from bench.results import MalformedResultsError, Record, ResultsFile
from bench.speed import busy, cases, figures, gpu, gpu_tables, peers, tables
from bench.speed.cases import Case
from bench.speed.measure import Effort, key, measure
from hypersimplex_ext import build_info

EFFORTS = {
    "smoke": (cases.SMOKE, Effort(rounds=3, seconds=0.0)),
    "quick": (cases.QUICK, Effort(rounds=15, seconds=0.1)),
    "full": (cases.FULL, Effort(rounds=41, seconds=1.0)),
    "gpu": (cases.GPU, Effort(rounds=31, seconds=1.0)),
    "gpu-brief": (cases.GPU_BY_VALUE, Effort(rounds=11, seconds=0.2, brief=True)),
    "busy": (cases.BUSY, Effort(rounds=20, seconds=3.0)),
    "busy-smoke": (cases.BUSY_SMOKE, Effort(rounds=2, seconds=0.0)),
    "gpu-smoke": (cases.GPU_SMOKE, Effort(rounds=3, seconds=0.0)),
}

ORIGIN = ("device", "torch", "python", "versions", "build")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status."""
    try:
        return _command(_parse(arguments))
    except MalformedResultsError as error:
        print(f"error: {error}; mend it, or discard the file with --fresh", file=sys.stderr)
        return 2


def _command(args: argparse.Namespace) -> int:
    table, effort = EFFORTS[args.mode]
    chosen = [case for case in table if args.groups is None or case.group in args.groups][: args.first]
    out: Path = args.out or Path(__file__).parent / "results" / args.mode
    path = out / "results.jsonl"
    on_gpu = args.mode.startswith("gpu")
    if args.command in {"run", "measure"}:
        if args.fresh:
            path.unlink(missing_ok=True)
        for name in [] if on_gpu else peers.absent():
            print(f"{name}: absent, see bench/requirements-peers.txt")
        try:
            if on_gpu:
                gpu.require()
                if build_info().cuda is None:
                    raise gpu.NoGpuError("hypersimplex_ext is built without CUDA")
            run(chosen, effort, ResultsFile(path, check))
        except KeyboardInterrupt:
            print(f"\ninterrupted; the finished cases are in {path} and the same command goes on from there")
            return 130
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(f"Results: {path}")
    if args.command == "measure":
        return 0
    records = newest(chosen, ResultsFile(path, check).records)
    if not records:
        print(f"error: no results in {path}; measure first", file=sys.stderr)
        return 2
    if args.command != "plot":
        table_of = busy.table if args.mode.startswith("busy") else gpu_tables.tables if on_gpu else tables.tables
        print(table_of(records))
    if args.command != "table":
        for figure in figures.draw(records, out):
            print(f"Figure: {figure}")
    return 0


def run(chosen: Sequence[Case], effort: Effort, results: ResultsFile) -> None:
    """Measure the cases that `results` does not hold yet, for this machine and these versions, and append them."""

    def done(case: Case) -> bool:
        wanted = key(case, effort).items()
        return any(wanted <= record.items() for record in results.records)

    missing = [case for case in chosen if not done(case)]
    with tqdm(missing, unit="case", disable=not missing) as bar:
        for case in bar:
            bar.set_postfix_str(f"{case.group}: {case.label}")
            record = busy.measure(case, effort) if case.group == "busy" else measure(case, effort)
            results.append(record)
            for name, system in record["systems"].items():
                if "failure" in system:
                    bar.write(f"{case.label}: {name} left out, {system['failure']}")


def check(record: Record) -> None:
    """Raise KeyError, TypeError, ValueError or AttributeError unless this is a record of the benchmark."""
    hash(Case(**record["case"]))
    for name in (*ORIGIN, "effort", "date", "threads"):
        record[name]
    for system in record["systems"].values():
        for direction in ("forward", "both"):
            if direction in system:
                float(system[direction]["median"])


def newest(chosen: Sequence[Case], records: Sequence[Record]) -> list[Record]:
    """Return the last record of each case, of those that the machine, versions and build of the last record made."""
    last = records[-1] if records else {}
    by_case = {
        Case(**record["case"]): record for record in records if all(record[name] == last[name] for name in ORIGIN)
    }
    return [by_case[case] for case in chosen if case in by_case]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = described_parser("python -m bench", __doc__)
    add = parser.add_argument
    commands = ("run", "measure", "table", "plot")
    add("command", nargs="?", choices=commands, default="run", help="default: run, which is all three others")
    add("--full", dest="mode", action="store_const", const="full", default="quick", help="every case; default: quick")
    add("--smoke", dest="mode", action="store_const", const="smoke", help="tiny cases: whether everything works")
    add("--gpu", dest="mode", action="store_const", const="gpu", help="the CUDA kernels, on a GPU")
    add("--gpu-brief", dest="mode", action="store_const", const="gpu-brief", help="the same in a short time")
    add("--gpu-smoke", dest="mode", action="store_const", const="gpu-smoke", help="tiny cases on a GPU")
    add("--busy", dest="mode", action="store_const", const="busy", help="beside a busy neighbour, and alone")
    add("--busy-smoke", dest="mode", action="store_const", const="busy-smoke", help="tiny cases beside it")
    add("--groups", nargs="+", choices=peers.GROUPS, metavar="GROUP", help=f"some of {', '.join(peers.GROUPS)}")
    add("--first", type=int, metavar="N", help="only the first N cases")
    add("--out", type=Path, metavar="DIR", help="results folder (default: bench/results/quick, full, gpu or busy)")
    add("--fresh", action="store_true", help="discard earlier results instead of resuming")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
