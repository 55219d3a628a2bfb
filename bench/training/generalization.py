"""How well does a network generalise when it is trained with each loss, at small and large batches?

    python -m bench.training --data digits
    python -m bench.training --data fashion-mnist --model small
    python -m bench.training --data cifar10 --root FOLDER           the paper's settings
    python -m bench.training analyze FILES                          statistics of finished runs
    python -m bench.training sensitivity                            temperatures against k

trains the same network with cross-entropy, hinge, MSE, modified Huber and the HyperSimplex losses at several batch
sizes and seeds, prints a table, and writes to the results folder

    results.jsonl   one line per finished run; the same command resumes an interrupted grid from it
    table.md        the printed table
    accuracy.png    score against batch size
    curves.png      score against epoch

Protocol: of several step sizes (--lr) each loss takes, at each batch size, the one with the best validation score at
the first seed; the grid is the same for all. Validation samples are held out of the training set. The score of a run is
that on the test set at the best epoch of validation; beside it stand the last epoch's, and the best of all epochs on
the test set, as the paper has it, which flatters every loss alike. With the paper's settings, and for digits, nothing
is held out or tuned, and the paper's score is the only one. Runs are paired by seed: same split, initial weights and
order of the samples. The p-values are those of two-sided paired t-tests over the seeds, with Holm's correction over the
table.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.arguments import described_parser
from bench.results import Record, ResultsFile
from bench.training import plots
from bench.training.data import DATASETS, load
from bench.training.grid import train_missing
from bench.training.methods import METHODS, method
from bench.training.networks import MODELS
from bench.training.scores import best_steps, cell_of, compare, format_table, measure_of, scores_of, title_of
from bench.training.training import Run, check

FULL = "full"
_LEGEND = "Mean ± standard deviation over the seeds; p of paired t-tests against cross-entropy, with Holm's correction."
RESULTS = Path(__file__).parents[1] / "results"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The settings of the experiment on one data set.

    Attributes:
        batch_sizes: numbers, or "full", the whole training set.
        epochs: passes over the training samples at each batch size, or one number for all.
        lr: step sizes to choose from.
        seeds: one run of every loss and batch size for each.
        held_out: share of the training samples to validate with.
        precision: of the network.
        augmented: whether training images are shifted and mirrored.
    """

    batch_sizes: tuple[str, ...]
    epochs: tuple[int, ...]
    lr: tuple[float, ...]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    held_out: float = 0.0
    precision: str = "float32"
    augmented: bool = False


_PAPER = Protocol(
    ("128", "256", "512", "1024", "2048", "4096", "8192"), (600,), (1e-4,), (0, 42, 1337, 2025, 31415), augmented=True
)
_SMALL = Protocol(("32", "128", FULL), (60,), (1e-3,))
_STEPS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
_TUNED = Protocol(("128", "1024", "8192"), (10, 20, 40), _STEPS, held_out=1 / 6)
_TABLE = dataclasses.replace(_TUNED, batch_sizes=("128", "1024", FULL), epochs=(20, 40, 80), lr=(*_STEPS[1:], 1e-1))

PROTOCOLS = {
    "digits": {"small": _SMALL},
    "cifar10": {"published": _PAPER},
    "mnist": {"published": _PAPER},
    "fashion-mnist": {
        "mlp": _TUNED,
        "small": dataclasses.replace(_TUNED, epochs=(6, 12, 24), lr=_STEPS[1:5]),
        "published": _PAPER,
    },
    "rare-shirts": {"mlp": dataclasses.replace(_TUNED, epochs=(5, 10, 20))},
    "adult": {"mlp": _SMALL},
    "letter": {"mlp": _TABLE},
    "magic": {"mlp": _TABLE},
    "penbased": {"mlp": _TABLE},
    "flights": {"mlp": dataclasses.replace(_TUNED, epochs=(3, 6, 12))},
    "long-delays": {"mlp": dataclasses.replace(_TUNED, epochs=(3, 6, 12))},
}
"""By data set and network, the default first; other networks have the settings of the default."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment from the command line and return the exit status."""
    args = _parse(arguments)
    protocols = PROTOCOLS[args.data]
    model = args.model or next(iter(protocols))
    protocol = protocols.get(model, next(iter(protocols.values())))
    if args.quick:
        protocol = dataclasses.replace(protocol, seeds=protocol.seeds[:1], epochs=(2,), lr=protocol.lr[:1])
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(protocol)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if args.batch_sizes and not args.epochs:
        given["epochs"] = tuple(_epochs_at(protocol, size) for size in args.batch_sizes)
    protocol = dataclasses.replace(protocol, **{name: value for name, value in given.items() if value is not None})
    folder = f"generalization-{args.data}" + f"-{model}" * (model != next(iter(protocols))) + "-quick" * args.quick
    out: Path = args.out or RESULTS / folder

    def experiment() -> None:
        for name in args.losses:
            method(name)
        samples = len(load(args.data, args.root).held_out(protocol.held_out, 0).train_y)
        _report(trained(grid(args.data, model, samples, args.losses, protocol), out, args), out)

    return status_of(experiment, out)


def status_of(experiment: Callable[[], None], out: Path) -> int:
    """Run an experiment and return the exit status: 2 after an error, 130 after an interruption, both explained."""
    try:
        experiment()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; the finished runs are in {out} and the same command goes on from there")
        return 130
    return 0


def parser_of(program: str, documentation: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every command has that trains."""
    parser = described_parser(program, documentation)
    cuda = torch.cuda.is_available()
    add = parser.add_argument
    add("--root", type=Path, metavar="DIR", help="folder with the data set's files, where no package holds them")
    add("--model", choices=MODELS, help="network (default: the one of the data set's protocol)")
    add("--seeds", nargs="+", type=int, metavar="SEED", help="one run of every loss and batch size for each")
    add("--lr", nargs="+", type=_positive(float), help="step sizes of Adam to choose from")
    add("--held-out", type=_share, metavar="SHARE", help="of the training samples, for validation")
    add("--precision", choices=("float32", "bfloat16"), help="of the network (default: float32)")
    add("--augmented", action=argparse.BooleanOptionalAction, help="shift and mirror training images (the paper does)")
    add("--compile", action="store_true", help="compile network and loss with torch.compile")
    add("--out", type=Path, metavar="DIR", help="results folder (default: below bench/results)")
    add("--device", type=torch.device, default=torch.device("cuda" if cuda else "cpu"), help="default: cuda, else cpu")
    add("--workers", type=_positive(int), help="runs trained side by side (default: one per core, one on a GPU)")
    add("--fresh", action="store_true", help="discard earlier results instead of resuming")
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = parser_of("python -m bench.training", __doc__)
    add = parser.add_argument
    add("--data", choices=DATASETS, default="digits", help="data set (default: digits)")
    add(
        "--losses",
        nargs="+",
        default=list(METHODS),
        metavar="LOSS",
        help=f"of {', '.join(METHODS)}, fitzpatrick, and hypersimplex or fenchel-young with settings, as in "
        "hypersimplex@k=0.5,tau=3 (k: targets, 1/C, or a share; tau: learned, suggested, or a number)",
    )
    add("--batch-sizes", nargs="+", type=_batch_size, metavar="N", help='numbers or "full", the whole training set')
    add("--epochs", nargs="+", type=_positive(int), help="passes over the training set, for each batch size or for all")
    add("--quick", action="store_true", help="one seed, one step size and two epochs, unless given otherwise")
    return parser.parse_args(arguments)


def _batch_size(text: str) -> str:
    if text != FULL:
        _positive(int)(text)
    return text


def _epochs_at(protocol: Protocol, size: str) -> int:
    """Return the epochs of the largest batch size of the protocol that is not above this one, or of the smallest."""
    sizes = [float("inf") if known == FULL else int(known) for known in protocol.batch_sizes]
    below = sum(known <= (float("inf") if size == FULL else int(size)) for known in sizes)
    return protocol.epochs[min(max(below - 1, 0), len(protocol.epochs) - 1)]


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1), got {text!r}")
    return value


def _positive(number: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = number(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a positive {number.__name__}, got {text!r}")
        return value

    return parse


def grid(data: str, model: str, samples: int, methods: Sequence[str], protocol: Protocol) -> list[Run]:
    """Return the runs, seed by seed, so that an interrupted grid holds complete comparisons; with every step size.

    Args:
        data: name of the data set.
        model: name of the network.
        samples: to train with.
        methods: names of the losses.
        protocol: the settings.

    Raises:
        ValueError: a batch is larger than the training set, or there are not as many numbers of epochs as batch sizes.
    """
    given = protocol.batch_sizes
    if len(protocol.epochs) not in (1, len(given)):
        raise ValueError(f"epochs: expected one number or {len(given)}, one for each batch size; got {protocol.epochs}")
    if len(protocol.lr) > 1 and not protocol.held_out:
        raise ValueError("held out: expected a share above 0 to choose a step size with, got 0")
    epochs = protocol.epochs * (len(given) if len(protocol.epochs) == 1 else 1)
    sizes = dict(sorted((samples if size == FULL else int(size), e) for size, e in zip(given, epochs, strict=True)))
    largest = max(sizes)
    if largest > samples:
        raise ValueError(f"batch sizes: expected at most the {samples} training samples of {data}, got {largest}")
    return [
        Run(data, model, name, size, seed, sizes[size], lr, protocol.held_out, protocol.precision, protocol.augmented)
        for seed in dict.fromkeys(protocol.seeds)
        for size in sizes
        for name in dict.fromkeys(methods)
        for lr in sorted(set(protocol.lr))
    ]


def trained(runs: Sequence[Run], out: Path, args: argparse.Namespace) -> list[Record]:
    """Train what is missing, at the first seed with every step size, then with the best; return the latter's records.

    Args:
        runs: as `grid` returns them.
        out: the results folder.
        args: of a parser that `parser_of` made.

    Raises:
        KeyboardInterrupt: the user interrupted; finished runs are in the folder.
        MalformedResultsError: a line in the folder is not a record.
    """
    path = out / "results.jsonl"
    if args.fresh:
        path.unlink(missing_ok=True)
    results = ResultsFile(path, check)
    workers = args.workers or (os.cpu_count() or 1 if args.device.type == "cpu" else 1)
    threads = max(1, (os.cpu_count() or 1) // workers)

    def train(some: Sequence[Run]) -> list[Record]:
        options = {"workers": workers, "threads": threads, "compiled": args.compile}
        train_missing(some, results, root=args.root, device=args.device, **options)
        by_run = {Run.of(record): record for record in results.records}
        return [by_run[run] for run in some]

    steps = best_steps(train([run for run in runs if run.seed == runs[0].seed]))
    return train([run for run in runs if run.lr == steps[cell_of(dataclasses.asdict(run))]])


def _report(records: Sequence[Record], out: Path) -> None:
    scores = scores_of(records)
    rows = compare(scores)
    title = title_of(scores, measure_of(scores))
    table = f"{title}\n\n{format_table(rows)}\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(table, encoding="utf-8")
    plots.accuracy(rows, title, out / "accuracy.png")
    plots.curves(records, title_of(scores), out / "curves.png")
    print(f"\n{table}\n{_LEGEND}")
    print(f"Results: {out}/ results.jsonl, table.md, accuracy.png, curves.png")


if __name__ == "__main__":
    sys.exit(main())
