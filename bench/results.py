"""One results format for every experiment: JSON lines, so that an interrupted run loses nothing and resumes."""

from __future__ import annotations

import datetime
import json
import platform
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]


class ResultsFile:
    """Append-only file of JSON records, one a line.

    Each record is written with a single call and flushed, so an interruption can tear at most the last line;
    a torn line is cut off when the file is opened again.

    Args:
        path: the file; it and its folder are created at the first `append`.

    Attributes:
        records: every record in the file, oldest first.

    Raises:
        ValueError: a complete line is not a JSON object; file and line are named.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        if path.exists():
            content = path.read_bytes()
            complete = content[: content.rfind(b"\n") + 1]
            for number, line in enumerate(complete.splitlines(), start=1):
                self.records.append(self._parse(line, number))
            if len(complete) < len(content):
                path.write_bytes(complete)

    def _parse(self, line: bytes, number: int) -> Record:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"{self.path}, line {number}: expected a JSON object, got {line[:60]!r}")
        return record

    def append(self, record: Record) -> None:
        """Write one record at the end of the file and to `records`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
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
