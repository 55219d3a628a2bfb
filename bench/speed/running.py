"""Running commands for a limited time, with all that they print in a log of limited size as it is printed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

SUPERVISOR = Path(__file__).with_name("supervisor.py")
_PATIENCE = 10.0  # seconds for a supervisor to end what it started; it gives up after half of them
_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):  # not an error, as KeyboardInterrupt is none
    """A signal asks this process to end.

    Attributes:
        signal: the number of the signal.
        name: its name.
    """

    def __init__(self, number: int) -> None:
        self.signal = number
        self.name = signal.Signals(number).name
        super().__init__(self.name)


_held = False
_waiting: list[int] = []


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Within, the first signal that asks this process to end raises Interrupted; those after it are ignored."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        if _held:
            _waiting.append(number)
        else:
            raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Within, a signal waits, so that what is being written becomes whole."""
    global _held
    _held = True
    try:
        yield
    finally:
        _held = False
        if _waiting:
            raise Interrupted(_waiting.pop())


class Deadline:
    """A moment after which nothing is started and everything is ended.

    Args:
        minutes: from now; None for never.
    """

    def __init__(self, minutes: float | None) -> None:
        self._end = float("inf") if minutes is None else time.monotonic() + 60 * minutes

    @property
    def near(self) -> bool:
        """Whether it comes at all."""
        return self._end < float("inf")

    def left(self) -> float:
        """Seconds until then; never negative."""
        return max(0.0, self._end - time.monotonic())


class Log:
    """A file that grows by what is written to it, at once, and never beyond a size.

    Args:
        path: the file; what it holds already stays, and counts.
        size: bytes of the whole file.
        head: bytes of one output that are written as they come.
        tail: bytes of the end of a longer one that are written when it has ended.
    """

    def __init__(self, path: Path, size: int = 15 << 20, head: int = 1 << 20, tail: int = 1 << 16) -> None:
        self.path = path
        self.head = head
        self.tail = tail
        self._size = size
        self._file: IO[bytes] = path.open("ab", buffering=0)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, content: str | bytes) -> None:
        """Write it, or as much as there is room for."""
        data = content.encode() if isinstance(content, str) else content
        self._file.write(data[: max(0, self._size - self._file.tell())])


class Output:
    """What one command prints: its beginning goes to the log as it comes, the rest is kept for `close`."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._head = bytearray()
        self._tail = bytearray()
        self._left_out = 0
        self._lock = threading.Lock()
        self._closed = False

    def feed(self, data: bytes) -> None:
        """Take what was printed."""
        with self._lock:
            if self._closed:
                return
            room = self._log.head - len(self._head)
            if room > 0:
                self._head += data[:room]
                self._log.write(data[:room])
            if len(data) > room:
                if not self._left_out and not self._tail:
                    self._log.write(f"\n[more than {self._log.head} bytes: of the rest the end alone is kept]\n")
                self._tail += data[max(room, 0) :]
                excess = max(0, len(self._tail) - self._log.tail)
                self._left_out += excess
                del self._tail[:excess]

    def close(self) -> str:
        """Write the end that was kept, and return all that was not left out."""
        with self._lock:
            self._closed = True
            if self._tail:
                self._log.write(f"[{self._left_out} bytes left out]\n".encode() + self._tail)
            return (self._head + self._tail).decode(errors="replace")


def execute(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float, log: Log
) -> tuple[str, int | None]:
    """Run a command that gets no input, and end it with everything it started.

    Args:
        command: the full path of a program, and arguments.
        folder: where it works.
        environment: all variables.
        seconds: after which it is ended.
        log: gets what it prints, errors included.

    Returns:
        What it prints, as far as the log has it, and its exit status; None if it was ended.
    """
    output = Output(log)
    process = subprocess.Popen(
        [sys.executable, "-I", str(SUPERVISOR), *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,  # the lifeline
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    pump = threading.Thread(target=_pump, args=(process.stdout, output), daemon=True)
    pump.start()
    status = None
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(None if seconds == float("inf") else seconds)
    finally:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        pump.join(_PATIENCE)  # in vain where a process that cannot be killed holds the pipe
        printed = output.close()
    return printed, status


def _pump(source: IO[bytes], output: Output) -> None:
    with source:
        while data := os.read(source.fileno(), 1 << 16):
            output.feed(data)
