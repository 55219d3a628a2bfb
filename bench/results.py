"""One results format for every experiment: JSON lines, so that an interrupted run loses nothing and resumes."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]


class MalformedResultsError(ValueError):
    """A complete line of a results file is not a record; the message names file and line."""


class ResultsFile:
    """Append-only file of JSON records, one a line, to which several processes may write.

    A record is written while the file is locked, so a last line without an end is one that is being written, or that an
    interruption tore. Reading leaves it out and never changes the file; the next to write, who holds the lock, knows
    that it is torn and cuts it off.

    Args:
        path: the file; it and its folder are created at the first `append`.
        check: raises KeyError, TypeError, ValueError or AttributeError for an object that is not a record of this
            experiment.

    Attributes:
        records: every record in the file when it was opened, oldest first, and those appended since.

    Raises:
        MalformedResultsError: a complete line is not a record.
    """

    def __init__(self, path: Path, check: Callable[[Record], object] = lambda record: None) -> None:
        self.path = path
        self.records: list[Record] = []
        content = path.read_bytes() if path.exists() else b""
        for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError(f"expected a JSON object, got {line[:60]!r}")
                check(record)
            except json.JSONDecodeError as error:
                message = f"{path}, line {number}: expected a JSON object, got {line[:60]!r}"
                raise MalformedResultsError(message) from error
            except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
                reason = f"lacks {error}" if isinstance(error, KeyError) else error
                raise MalformedResultsError(f"{path}, line {number}: {reason}") from error
            self.records.append(record)

    def append(self, record: Record) -> None:
        """Write one record at the end of the file and to `records`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(record).encode() + b"\n"
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # given back as the file is closed
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            if size and file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)
        self.records.append(record)


def environment(device: torch.device) -> Record:
    """Return what a reader needs to know about where a result comes from: date, device, versions, threads."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_model(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
