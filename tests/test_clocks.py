"""The clocks: that of the device leaves out what the host does, that of the host waits for the device."""

import itertools
import statistics
from types import SimpleNamespace

import pytest
import torch

from bench.speed.clocks import DeviceClock, HostClock


class Timeline:
    """A GPU that works through what it is given, in seconds, while the host goes on."""

    def __init__(self, monkeypatch):
        self.host = self.device = 0.0
        self.slept = []
        timeline = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = timeline.device = max(timeline.device, timeline.host)

            def query(self):
                return self.at <= timeline.host

            def synchronize(self):
                timeline.host = max(timeline.host, self.at)

            def elapsed_time(self, end):
                return 1e3 * (end.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", self.sleep, raising=False)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=1 << 10))
        monkeypatch.setattr(DeviceClock, "_LEAST_FLUSH", 1 << 10)

    def sleep(self, cycles):
        self.slept.append(cycles)
        self.work(0, cycles * 1e-9)

    def work(self, host, device, waits=False):
        self.host += host
        self.device = max(self.device, self.host) + device
        self.host = max(self.host, self.device if waits else 0)


@pytest.mark.parametrize("host", [0.0, 1e-4, 2e-3, 4e-2])
def test_the_device_clock_leaves_out_what_the_host_does(monkeypatch, host):
    timeline = Timeline(monkeypatch)
    clock = DeviceClock(torch.device("cpu"))
    assert clock.calls(1e-9) == 1

    def function():
        for _ in range(3):
            timeline.work(host / 3, 1e-5)

    assert clock.time(function, 1) == pytest.approx(3e-5)
    first = len(timeline.slept)
    assert timeline.slept == sorted(timeline.slept)
    assert clock.time(function, 1) == pytest.approx(3e-5)
    assert timeline.slept[first:] == timeline.slept[first - 1 : first]  # what was long enough is remembered


def test_the_device_clock_times_a_function_that_waits_as_it_is(monkeypatch):
    timeline = Timeline(monkeypatch)
    clock = DeviceClock(torch.device("cpu"))
    assert clock.time(lambda: timeline.work(1e-3, 1e-5, waits=True), 1) == pytest.approx(1e-5, abs=2e-3)
    assert max(timeline.slept) == DeviceClock._LONGEST_SPIN


def test_the_host_clock_waits_for_the_device(monkeypatch):
    waited = itertools.count()
    clock = HostClock(lambda: next(waited))
    calls = itertools.count()
    assert clock.time(lambda: next(calls), 5) > 0
    assert (next(calls), next(waited)) == (5, 1)
    assert clock.calls(1.0) == 1
    assert clock.calls(1e-4) == 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_clocks_agree_on_cuda():
    """A copy of a gigabyte takes so long that neither launch nor cache matters."""
    x = torch.zeros(1 << 28, device="cuda")
    device = statistics.median(DeviceClock(x.device).time(lambda: x.clone(), 1) for _ in range(5))
    host = statistics.median(HostClock(torch.cuda.synchronize).time(lambda: x.clone(), 1) for _ in range(5))
    assert device == pytest.approx(host, rel=0.3)
