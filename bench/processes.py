"""What it costs to take the loss over several processes: time, and number and bytes of exchanges.

    python -m bench.processes            measure with 1, 2 and 4 processes on this machine, and print the tables
    python -m bench.processes table      print the tables of the results

A step is forward and backward of the loss of [n, C] logits that are spread evenly. `group` is hypersimplex_loss with a
group, `gather` collects all logits in every process first, which is what one does without it, and computes the loss of
all of them there. Processes share the cores of this machine, so times of several say what exchanges cost, not how fast
several machines would be: that is what the model is for, which is one, and has measured nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from bench.arguments import described_parser
from bench.results import Record, ResultsFile, environment
from bench.style import markdown
from hypersimplex_ext import hypersimplex_loss

SHAPES = (128, 10), (8192, 10), (8192, 100), (4096, 1000), (65536, 10)
SIZES = 1, 2, 4
ROUNDS, CALLS = 7, 5
WAYS = "group", "gather"
# Of the model: seconds until an exchange among W processes comes back, per doubling of W, and bytes a second.
NETWORKS = {"NVLink": (5e-6, 200e9), "InfiniBand": (10e-6, 20e9), "Ethernet": (50e-6, 1e9)}
MODELLED = 8, 64, 1024
MODEL_SHAPE = 65536, 1000  # per process


def over_group(x: Tensor, target: Tensor) -> None:
    """A step over the group."""
    hypersimplex_loss(x, target, group=distributed.group.WORLD).backward()


def gathered(x: Tensor, target: Tensor) -> None:
    """A step over all logits in each process, of which only this process's own are differentiated."""
    size, rank = distributed.get_world_size(), distributed.get_rank()
    parts = [torch.empty_like(x) for _ in range(size)]
    labels = [torch.empty_like(target) for _ in range(size)]
    distributed.all_gather(parts, x.detach())
    distributed.all_gather(labels, target)
    parts[rank] = x
    hypersimplex_loss(torch.cat(parts), torch.cat(labels)).backward()


def counted(step: Callable[[], None]) -> tuple[int, int]:
    """How many exchanges a step takes, and the bytes that a process puts into them."""
    number = size = 0
    before = distributed.all_reduce, distributed.all_gather

    def counting(function: Callable[..., Any], sent: int) -> Callable[..., Any]:
        """The function, of which this argument is what a process sends."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal number, size
            number, size = number + 1, size + arguments[sent].nbytes
            return function(*arguments, **keywords)

        return call

    distributed.all_reduce, distributed.all_gather = counting(before[0], 0), counting(before[1], 1)
    try:
        step()
    finally:
        distributed.all_reduce, distributed.all_gather = before
    return number, size


def _work(rank: int, size: int, store: str, shape: tuple[int, int], pipe: Any) -> None:
    torch.set_num_threads(max(torch.get_num_threads() // size, 1))
    distributed.init_process_group("gloo", rank=rank, world_size=size, store=distributed.FileStore(store, size))
    torch.manual_seed(0)
    logits, labels = torch.randn(shape), torch.randint(0, shape[1], shape[:1])
    x, target = logits.chunk(size)[rank].clone().requires_grad_(), labels.chunk(size)[rank].clone()
    steps = {"group": lambda: over_group(x, target), "gather": lambda: gathered(x, target)}
    results: dict[str, Any] = {}
    for name, step in steps.items():
        step()
        exchanges, sent = counted(step)
        results[name] = {"exchanges": exchanges, "bytes": sent, "seconds": []}
    for _ in range(ROUNDS):  # in turn, so that both see the same machine
        for name, step in steps.items():
            distributed.barrier()
            begun = time.perf_counter()
            for _ in range(CALLS):
                x.grad = None
                step()
            results[name]["seconds"].append((time.perf_counter() - begun) / CALLS)
    if rank == 0:
        pipe.send(results)
    distributed.barrier()
    distributed.destroy_process_group()


def measure(shape: tuple[int, int], size: int) -> Record:
    """The record of one shape over so many processes."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        arguments = size, str(Path(folder) / "store"), shape, there
        running = [context.Process(target=_work, args=(rank, *arguments)) for rank in range(size)]
        for process in running:
            process.start()
        results = here.recv()
        for process in running:
            process.join()
    return {"shape": list(shape), "processes": size, "ways": results, **environment(torch.device("cpu"))}


def check(record: Record) -> None:
    """Raise KeyError or TypeError unless this is a record of this benchmark."""
    for way in WAYS:
        statistics.median(record["ways"][way]["seconds"])
        record["ways"][way]["exchanges"] + record["ways"][way]["bytes"] + record["processes"]


def table(records: Sequence[Record]) -> str:
    """What was measured."""
    rows = []
    for record in records:
        group, gather = (record["ways"][way] for way in WAYS)
        seconds = [statistics.median(way["seconds"]) for way in (group, gather)]
        n, classes = record["shape"]
        rows.append(
            [
                f"{n} x {classes}", str(record["processes"]), f"{1e3 * seconds[0]:.2f}", f"{1e3 * seconds[1]:.2f}",
                f"{seconds[0] / seconds[1]:.2f}", str(group["exchanges"]), f"{group['bytes'] / 1024:.0f}",
                f"{gather['bytes'] / 1024:.0f}",
            ]
        )  # fmt: skip
    heads = "logits", "processes", "group, ms", "gather, ms", "ratio", "exchanges", "KiB a process", "gather, KiB"
    return markdown(heads, rows)


def model(records: Sequence[Record]) -> str:
    """The time of the exchanges of a step alone: a model, fed with the exchanges of the largest number of classes."""
    largest = max(records, key=lambda record: (record["shape"][1], record["processes"]))
    group = largest["ways"]["group"]
    n, classes = MODEL_SHAPE
    sent = group["bytes"] * classes / largest["shape"][1]
    rows = []
    for name, (latency, bandwidth) in NETWORKS.items():
        for size in MODELLED:
            doublings = (size - 1).bit_length()
            # A ring moves 2 (W - 1) / W of the bytes of an all-reduce, and W - 1 times those of an all-gather.
            reduced = group["exchanges"] * latency * doublings + 2 * (size - 1) / size * sent / bandwidth
            collected = latency * doublings + (size - 1) * (4 * classes + 8) * n / bandwidth
            rows.append([name, str(size), f"{1e3 * reduced:.2f}", f"{1e3 * collected:.0f}"])
    return markdown(("network", "processes", "group, ms", "gather, ms"), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status."""
    parser = described_parser("python -m bench.processes", __doc__)
    parser.add_argument("command", nargs="?", choices=("run", "table"), default="run")
    parser.add_argument("--smoke", action="store_true", help="one small shape: whether everything works")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "processes")
    args: argparse.Namespace = parser.parse_args(arguments)
    results = ResultsFile(args.out / "results.jsonl", check)
    if args.command == "run":
        results.path.unlink(missing_ok=True)
        results.records.clear()
        for shape in SHAPES[:1] if args.smoke else SHAPES:
            for size in SIZES[:2] if args.smoke else SIZES:
                results.append(measure(shape, size))
    if not results.records:
        print(f"error: no results in {results.path}; measure first", file=sys.stderr)
        return 2
    print(table(results.records))
    n, classes = MODEL_SHAPE
    print(f"\nA model, not measured: exchanges of a step with {n} x {classes} logits in each process.")
    print("\n".join(f"{name}: {1e6 * a:.0f} us per doubling, {b / 1e9:.0f} GB/s" for name, (a, b) in NETWORKS.items()))
    print(f"\n{model(results.records)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
