"""How much does it matter which temperature and which k the loss has?

    python -m bench.training sensitivity

trains with every combination of tau and k, for both kinds of the loss, at one batch size; the step size of each is
chosen on validation samples, as `python -m bench.training` does. Beside fixed temperatures stand one that is learned
and the one that `suggest_tau` gives for half of the first batch. Writes to the results folder

    results.jsonl                     one line per finished run; the same command resumes an interrupted grid from it
    table.md                          the printed table: mean test accuracy at the best epoch of validation
    sensitivity.png                   the same as heat maps
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.results import Record
from bench.style import markdown
from bench.training import plots
from bench.training.data import DATASETS, load
from bench.training.generalization import RESULTS, Protocol, grid, parser_of, status_of, trained
from bench.training.scores import scores_of

_TAUS = ("0.1", "0.3", "1", "3", "10", "30", "learned", "suggested")
_KS = ("targets", "0.5", "1/C")
_KINDS = {"hypersimplex": "squared", "fenchel-young": "Fenchel-Young"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print a table and return the exit status."""
    parser = parser_of("python -m bench.training sensitivity", __doc__)
    parser.add_argument("--data", choices=DATASETS, default="fashion-mnist", help="data set (default: fashion-mnist)")
    parser.add_argument("--batch-size", default="1024", help="default: 1024")
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    parser.add_argument("--taus", nargs="+", default=_TAUS, metavar="TAU", help=f"default: {' '.join(_TAUS)}")
    args = parser.parse_args(arguments)
    protocol = Protocol(
        (args.batch_size,),
        (args.epochs,),
        tuple(args.lr or (1e-3, 3e-3, 1e-2)),
        seeds=tuple(args.seeds or (0, 1, 2)),
        held_out=1 / 6 if args.held_out is None else args.held_out,
        precision=args.precision or "float32",
        augmented=bool(args.augmented),
    )
    out: Path = args.out or RESULTS / f"sensitivity-{args.data}"
    names = [f"{kind}@k={k},tau={tau}" for kind in _KINDS for tau in args.taus for k in _KS]

    def experiment() -> None:
        samples = len(load(args.data, args.root).held_out(protocol.held_out, 0).train_y)
        _report(trained(grid(args.data, args.model or "mlp", samples, names, protocol), out, args), args, out)

    return status_of(experiment, out)


def _report(records: Sequence[Record], args: argparse.Namespace, out: Path) -> None:
    reached: dict[str, list[float]] = {}
    for record, score in zip(records, scores_of(records), strict=True):
        reached.setdefault(record["method"], []).append(score.max if np.isnan(score.selected) else score.selected)
    maps = {
        label: np.array([[np.mean(reached[f"{kind}@k={k},tau={tau}"]) for tau in args.taus] for k in _KS])
        for kind, label in _KINDS.items()
    }
    rows = [
        [label, k, *(f"{value:.2f}" for value in line)]
        for label, values in maps.items()
        for k, line in zip(_KS, values, strict=True)
    ]
    title = f"{args.data}, batch {args.batch_size}, {args.epochs} epochs, {len({r['seed'] for r in records})} seeds"
    table = f"{title}: test accuracy, %\n\n{markdown(('kind', 'k', *args.taus), rows, words=0)}\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(table, encoding="utf-8")
    plots.heat_maps(maps, [f"k = {k}" for k in _KS], args.taus, "tau", out / "sensitivity.png")
    print(f"\n{table}\nResults: {out}/ results.jsonl, table.md, sensitivity.png")
