"""How long a call takes: by the host's clock, or by the events that a GPU records between pieces of work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch

Function = Callable[[], Any]


class Clock(Protocol):
    """A way to take the time of a call."""

    def calls(self, seconds: float) -> int:
        """Of how many calls a sample consists, where one takes `seconds`."""
        ...

    def time(self, function: Function, calls: int) -> float:
        """Seconds that so many calls take together."""
        ...


class HostClock:
    """The time that passes for the caller, until the results are there; what the call needs is in the caches.

    Args:
        synchronise: waits for the device.
    """

    _SAMPLE_SECONDS = 0.002  # a sample repeats the call for at least this long

    def __init__(self, synchronise: Callable[[], object] = lambda: None) -> None:
        self._synchronise = synchronise

    def calls(self, seconds: float) -> int:
        """Enough for `_SAMPLE_SECONDS`."""
        return max(1, math.ceil(self._SAMPLE_SECONDS / max(seconds, 1e-7)))

    def time(self, function: Function, calls: int) -> float:
        """From the first call to the results of the last."""
        start = time.perf_counter()
        for _ in range(calls):
            function()
        self._synchronise()
        return time.perf_counter() - start


class DeviceClock:
    """The time that a GPU works on a call, whose data have been driven out of the L2 cache before.

    The GPU is kept busy until the host has handed over everything, so that the time in which the host prepares a launch
    is not in the result: first it spins, then it fills a buffer larger than the cache, then comes the call between two
    events. Where it was through with spinning before the host was through, the sample is taken again with twice the
    spin; a function that itself waits for the device never gets there, and is timed as it is.
    """

    _SPIN, _LONGEST_SPIN = 1 << 17, 1 << 27  # clock cycles: from about 0.1 to about 100 ms
    _LEAST_FLUSH = 256 << 20  # bytes

    def __init__(self, device: torch.device) -> None:
        properties = torch.cuda.get_device_properties(device)
        cache: int = getattr(properties, "L2_cache_size", 0)
        self._flush = torch.empty(max(4 * cache, self._LEAST_FLUSH), dtype=torch.uint8, device=device)
        self._spins: WeakKeyDictionary[Function, int] = WeakKeyDictionary()

    def calls(self, seconds: float) -> int:
        """One: a second would find its data in the cache."""
        return 1

    def time(self, function: Function, calls: int) -> float:
        """Between the events around the calls."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        while True:
            spin = self._spins.setdefault(function, self._SPIN)
            torch.cuda._sleep(spin)  # type: ignore[no-untyped-call]
            self._flush.zero_()
            start.record()
            for _ in range(calls):
                function()
            end.record()
            late = start.query()  # type: ignore[no-untyped-call]
            end.synchronize()
            if not late or spin >= self._LONGEST_SPIN:
                return float(start.elapsed_time(end)) / 1e3
            self._spins[function] = 2 * spin
