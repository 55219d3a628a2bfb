"""How many thread block clusters of 8 and of 16 blocks a GPU holds at once: python -m bench.speed.clusters."""

from __future__ import annotations

import ctypes
import itertools
import json
import sys
from pathlib import Path

import torch

from bench.results import Record
from bench.speed import gpu, nvcc

SOURCE = Path(__file__).with_suffix(".cu")
_LEAST_MAJOR = 9  # of the compute capability
_SIZES = (8, 16)


def count(library: Path) -> list[Record]:
    """Return blocks, threads and bytes of shared memory, and how many such clusters are active at once.

    Args:
        library: clusters.cu, compiled.

    Raises:
        RuntimeError: CUDA refused to tell.
    """
    functions = ctypes.CDLL(str(library))

    def ask(name: str, *arguments: int) -> int:
        answer = int(functions[name](*arguments))
        if answer < 0:
            raise RuntimeError(f"{name}{arguments}: CUDA error {-answer}")
        return answer

    largest = ask("largest_shared_memory")
    # A block alone on its multiprocessor by its threads and memory, and two that share one.
    shapes = ((1024, largest), (512, largest // 2 - 1024))
    found = []
    for blocks, (threads, shared) in itertools.product(_SIZES, shapes):
        active = ask("active_clusters", blocks, threads, shared)
        found.append({"blocks": blocks, "threads": threads, "shared": shared, "active": active})
    return found


def main() -> int:
    """Print what was found as a line of JSON and return the exit status."""
    gpu.require()
    major, minor = torch.cuda.get_device_capability()
    if major < _LEAST_MAJOR:
        print(json.dumps({"clusters": [], "summary": f"no clusters at compute capability {major}.{minor}"}))
        return 0
    found = count(nvcc.compiled(SOURCE, f"sm_{major}{minor}"))
    told = (f"{c['active']} of {c['blocks']} blocks of {c['threads']} threads" for c in found)
    print(json.dumps({"clusters": found, "summary": f"at once {', '.join(told)}"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
