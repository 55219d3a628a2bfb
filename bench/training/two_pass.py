"""Memory and time of one step on a large batch: at once, with the losses of micro-batches added up, in two passes.

    python -m bench.training.two_pass                       1024 images in micro-batches of 64
    python -m bench.training.two_pass --samples 4096 --micro-batch 128

The network is the published one on images of 3 x 16 x 16, with its batch normalisation in evaluation mode, so that all
three run the same function and their gradients can be compared. Memory is what a step needs beyond network and images:
on the CPU by how much the resident set of the process grows, give or take ten MiB, on a GPU what PyTorch has allocated,
at their peaks.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench.arguments import described_parser
from bench.results import Record
from bench.speed.measure import peak_memory
from bench.style import markdown
from bench.training.dataset import Dataset
from bench.training.networks import published
from hypersimplex_ext.batch import two_pass_backward
from hypersimplex_ext.nn import HyperSimplexLoss

Step = Callable[[nn.Module, nn.Module, Tensor, Tensor, int], None]

_ROUNDS = 3
_CLASSES = 10


def at_once(model: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, size: int) -> None:
    """Go forward and backward with the whole batch."""
    loss(model(x), y).backward()


def added_up(model: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, size: int) -> None:
    """Go forward and backward with one micro-batch after the other, each with a loss of its own."""
    for rows, labels in zip(x.split(size), y.split(size), strict=True):
        (loss(model(rows), labels) * (len(labels) / len(y))).backward()


def two_passes(model: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, size: int) -> None:
    """Go forward and backward in two passes over the micro-batches."""
    two_pass_backward(model, loss, zip(x.split(size), y.split(size), strict=True))


STEPS: dict[str, Step] = {"at once": at_once, "added up": added_up, "two passes": two_passes}


def measure(samples: int, size: int, device: torch.device) -> dict[str, Record]:
    """Return for each kind of step its bytes, seconds, and how far its gradient is from that of the whole batch.

    Args:
        samples: of the batch.
        size: of a micro-batch.
        device: where to compute.
    """
    torch.manual_seed(0)
    x, y = torch.randn(samples, 3, 16, 16, device=device), torch.randint(_CLASSES, (samples,), device=device)
    model = published(Dataset(x[:1], y[:1], x[:1], y[:1], _CLASSES)).to(device).eval()
    loss = HyperSimplexLoss(_CLASSES).to(device)
    records: dict[str, Record] = {}
    expected = torch.zeros(())
    for name, step in STEPS.items():

        def run(step: Step = step) -> None:
            model.zero_grad()
            step(model, loss, x, y, size)

        memory = _peak(run, device)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).cpu()
        expected = gradient if name == "at once" else expected
        difference = float((gradient - expected).norm() / expected.norm())
        records[name] = {"memory": memory, "seconds": _seconds(run, device), "difference": difference}
    return records


def _peak(run: Callable[[], None], device: torch.device) -> int | None:
    if device.type != "cuda":
        return peak_memory(run)
    run()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times)[_ROUNDS // 2]


def table(records: dict[str, Record]) -> str:
    """Return the records as a Markdown table."""
    rows = []
    for name, record in records.items():
        memory = "-" if record["memory"] is None else f"{record['memory'] / 2**20:.0f}"
        rows.append((name, memory, f"{record['seconds']:.2f}", f"{record['difference']:.1e}"))
    return markdown(("step", "peak memory, MiB", "seconds", "gradient off by"), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table and return the exit status."""
    parser = described_parser("python -m bench.training.two_pass", __doc__)
    cuda = torch.cuda.is_available()
    parser.add_argument("--samples", type=_positive, default=1024, metavar="N", help="of the batch (1024)")
    parser.add_argument("--micro-batch", type=_positive, default=64, metavar="N", help="samples of a micro-batch (64)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda" if cuda else "cpu"))
    args = parser.parse_args(arguments)
    print(table(measure(args.samples, args.micro_batch, args.device)))
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive int, got {text!r}")
    return number


if __name__ == "__main__":
    sys.exit(main())
