"""Predict what the CUDA kernels reach at least, without a GPU: python -m bench.predict [objects of csrc/cuda].

From instructions counted in compiled kernels (those of the committed budget, or of objects that are named), the sweeps
that the search takes for the benchmark's inputs, and the bytes that have to move. These are predictions from counts,
not times; bench/budget/workload.py says what they leave out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.budget import budget
from bench.budget.workload import DEVICES, Prediction, predictions

KERNELS = dict.fromkeys(("project_short", "project_team", "project_long"), "") | {
    "loss_team": ", forward",
    "loss_gradient_wide": ", backward",
}


def lines(counted: budget.Budget) -> Iterator[str]:
    """The table, a line per case and kernel, each of which says that it is a prediction."""
    names = [device.name for device in DEVICES]
    yield (
        "| case | regime | blocks, warps per SM | sweeps | instructions an entry | MB moved | issue floor, us | "
        + " | ".join(f"share of a copy at most, {name}" for name in names)
        + " |"
    )
    yield "|" + "---|" * (7 + len(names))
    for together in zip(*(predictions(counted.counts, counted.registers, each) for each in DEVICES), strict=True):
        yield _line(together)


def _line(together: Sequence[Prediction]) -> str:
    one = together[0]
    entries = one.case.vectors * one.case.n
    plan = one.plan
    regime = f"{plan.regime}, {plan.blocks} blocks" if plan.blocks > 1 else plan.regime
    cells = [
        f"predicted: {one.case.label}{KERNELS[one.kernel]}",
        regime,
        f"{one.blocks}, {one.blocks * plan.threads // 32}",
        f"{one.sweeps:.2f}" if one.sweeps else "-",
        f"{32 * one.instructions / entries:.1f}",
        f"{one.moved / 1e6:.3g}",
        f"{1e6 * one.issue:.0f}",
        *(f"{100 * each.share:.0f} %" for each in together),
    ]
    return "| " + " | ".join(cells) + " |"


def main(arguments: Sequence[str]) -> int:
    """Print the table."""
    objects = [Path(each) for each in arguments]
    print("\n".join(lines(budget.of_objects(objects) if objects else budget.load())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
