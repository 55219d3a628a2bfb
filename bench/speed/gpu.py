"""What a reader of a GPU's results needs to know about it: model, driver, clocks, and how fast it copies.

python -m bench.speed.gpu    prints it as a line of JSON
"""

from __future__ import annotations

import functools
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from bench.results import Record, environment
from bench.speed.clocks import Clock, DeviceClock

# nvidia-smi's name of a number -> ours; megahertz, watts, degrees.
_READINGS = {
    "clocks.sm": "sm_clock",
    "clocks.mem": "memory_clock",
    "clocks.max.sm": "largest_sm_clock",
    "clocks.max.mem": "largest_memory_clock",
    "power.limit": "power_limit",
    "temperature.gpu": "temperature",
}
_COPIED = 1 << 30  # bytes, or a quarter of the free memory
_COPIES = 21
_MOST_QUEUED = 1000  # launches that the host can hand over without waiting


class NoGpuError(RuntimeError):
    """There is no GPU that PyTorch can use; the message says what PyTorch says."""


def require() -> torch.device:
    """Return the current GPU."""
    if not torch.cuda.is_available():
        reason = "finds none" if torch.version.cuda else "is built for the CPU alone"
        raise NoGpuError(f"a GPU is needed, and torch {torch.__version__} {reason}")
    return torch.device("cuda", torch.cuda.current_device())


@functools.cache
def driver() -> str | None:
    """Return the version of NVIDIA's driver, None where nothing tells it."""
    told = _smi(["driver_version"])
    if told:
        return told[0]
    version = Path("/proc/driver/nvidia/version")
    words = version.read_text().split() if version.exists() else []
    return next((word for word in words if word.replace(".", "").isdigit() and "." in word), None)


@functools.cache
def describe() -> Record:
    """Return the current GPU's properties, what it copies per second, and its clocks while it was copying.

    `copy_bandwidth` counts bytes read and bytes written, and is the median of several copies. What nvidia-smi would
    have to tell is None where it does not.
    """
    device = require()
    properties = torch.cuda.get_device_properties(device)
    return {
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "l2_cache": getattr(properties, "L2_cache_size", None),
        "cuda_of_torch": torch.version.cuda,
        **_copying(device, DeviceClock(device)),
    }


def _copying(device: torch.device, clock: Clock) -> Record:
    size = min(_COPIED, torch.cuda.mem_get_info(device)[0] // 4)
    source, to = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))

    def copy() -> None:
        to.copy_(source)

    copy()
    seconds = statistics.median(clock.time(copy, 1) for _ in range(_COPIES))
    for _ in range(min(int(1 / seconds), _MOST_QUEUED)):  # about a second's work, during which nvidia-smi reads
        copy()
    values = _smi(list(_READINGS))
    torch.cuda.synchronize(device)
    return {"copy_bandwidth": 2 * size / seconds, **readings(values)}


def readings(values: list[str] | None) -> Record:
    """Return nvidia-smi's answers by our names; None for what is missing or no number."""

    def number(text: str) -> float | None:
        try:
            return float(text)
        except ValueError:
            return None

    values = values or [""] * len(_READINGS)
    return {name: number(value) for name, value in zip(_READINGS.values(), values, strict=True)}


def _smi(fields: list[str]) -> list[str] | None:
    """Return what nvidia-smi answers about the current GPU, None if it does not."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    which: list[str] = []
    if torch.cuda.is_available():
        uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
        which = [] if uuid is None else [f"--id=GPU-{uuid}"]
    query = [f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run([program, *which, *query], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return None
    line = done.stdout.partition("\n")[0]
    answers = [answer.strip() for answer in line.split(",")]
    return answers if done.returncode == 0 and len(answers) == len(fields) else None


def main() -> int:
    """Print the record of the machine and return the exit status."""
    device, described = require(), describe()
    torch.cuda.empty_cache()
    bandwidth = described["copy_bandwidth"]
    record = {**environment(device), "driver": driver(), "gpu": described}
    print(json.dumps({**record, "summary": f"{record['device']}, {bandwidth / 1e12:.2f} TB/s"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
