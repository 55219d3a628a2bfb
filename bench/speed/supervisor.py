"""Run a command, and end all that it started when it ends or when nobody waits for it any more.

    python supervisor.py program [argument ...]

Whoever starts this holds the other end of its standard input, which is the command's lifeline: closing it, or dying in
whatever way, ends the command. The exit status is the command's own, and so is the signal that ended it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE = 5.0  # seconds for what was killed to be gone


def main(command: list[str]) -> int:
    """Run the command and return its exit status."""
    if sys.platform == "linux":
        # What the command leaves behind, in sessions of its own too, becomes a child of this process and can be found.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end_by_signal)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_lifeline, args=(process,), daemon=True).start()
    status = process.wait()
    end_descendants()
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL has no handler to reset
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _end_with_lifeline(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1):
        pass
    process.kill()
    end_descendants()


def _end_by_signal(number: int, frame: FrameType | None) -> None:
    end_descendants()
    os._exit(128 + number)


def end_descendants() -> None:
    """Kill the children of this process, their children and so on, until none is left or waiting is in vain."""
    until = time.monotonic() + _PATIENCE
    while (alive := descendants(os.getpid())) and time.monotonic() < until:
        for child in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def descendants(ancestor: int) -> list[int]:
    """Return the processes below one that still run; none where the system has no /proc."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = status.read_text(errors="replace").rpartition(")")[2].split()[:2]
            parents[int(status.parent.name)] = (int(parent), state)
    found = [ancestor]
    for process in found:
        found += [child for child, (parent, _) in parents.items() if parent == process]
    return [process for process in found[1:] if parents[process][1] not in "ZX"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
