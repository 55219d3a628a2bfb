"""Commands that end in time with all that they started, and a log that holds what they print and never too much."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.speed.running import SUPERVISOR, Deadline, Interrupted, Log, Output, execute, signals_held, signals_raise
from bench.speed.supervisor import descendants

LONG = 60.0  # seconds; what is waited for takes much less


@pytest.fixture
def log(tmp_path):
    with Log(tmp_path / "log.txt", size=1000, head=100, tail=20) as log:
        yield log


def shell(script, log, seconds=LONG):
    return execute(["/bin/sh", "-c", script], log.path.parent, dict(os.environ), seconds, log)


def wait_for(condition):
    until = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def gone(process):
    """Whether a process has ended, be it that nobody has asked for its status yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def number_in(path):
    wait_for(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


# ---- the log ----


def test_what_is_printed_is_in_the_log_at_once(log):
    output = Output(log)
    output.feed(b"one ")
    assert log.path.read_bytes() == b"one "
    output.feed(b"two")
    assert log.path.read_bytes() == b"one two"
    assert output.close() == "one two"
    assert log.path.read_bytes() == b"one two"


@pytest.mark.parametrize("piece", [1, 7, 100, 1000])
def test_of_a_flood_the_log_keeps_head_and_tail(log, piece):
    flood = b"".join(b"%06d\n" % i for i in range(1000))
    output = Output(log)
    for start in range(0, len(flood), piece):
        output.feed(flood[start : start + piece])
    assert output.close().encode() == flood[:100] + flood[-20:]
    head, *sentences, tail = log.path.read_bytes()[:100], log.path.read_text()[100:-20], log.path.read_bytes()[-20:]
    assert (head, tail) == (flood[:100], flood[-20:])
    assert sentences == ["\n[more than 100 bytes: of the rest the end alone is kept]\n[6880 bytes left out]\n"]


@pytest.mark.parametrize("more", [1, 20, 21])
def test_what_is_little_longer_than_the_head(log, more):
    output = Output(log)
    output.feed(b"a" * 100 + b"b" * more)
    assert output.close() == "a" * 100 + "b" * min(more, 20)
    assert f"[{max(0, more - 20)} bytes left out]\n" in log.path.read_text()


def test_nothing_comes_after_the_end(log):
    output = Output(log)
    output.close()
    output.feed(b"late")
    assert log.path.read_bytes() == b""


def test_a_log_never_grows_beyond_its_size(tmp_path):
    path = tmp_path / "log.txt"
    for _ in range(3):
        with Log(path, size=50) as log:
            log.write("x" * 20)
    assert path.read_bytes() == b"x" * 50


# ---- commands ----


def test_a_command_prints_and_ends(log):
    assert shell("echo one; echo two >&2; cat; exit 3", log) == ("one\ntwo\n", 3)
    assert log.path.read_text() == "one\ntwo\n"


def test_a_signal_that_ends_a_command_is_its_status(log):
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
        assert shell(f"echo begun; kill -{number.value} $$", log) == ("begun\n", -number)


def test_output_arrives_while_the_command_runs(log):
    seen = threading.Event()

    def look():
        wait_for(lambda: b"begun" in log.path.read_bytes())
        (log.path.parent / "seen").touch()
        seen.set()

    threading.Thread(target=look).start()
    assert shell("echo begun; while ! [ -e seen ]; do sleep 0.01; done; echo done", log) == ("begun\ndone\n", 0)
    assert seen.is_set()


# What a command can start: in its process group, and in a session of its own.
CHILDREN = {
    "child": "sleep 600 & echo $! > child",
    "session": "setsid sh -c 'echo $$ > child; exec sleep 600' &",
    "orphan": "sh -c 'setsid sh -c \"echo \\$\\$ > child; exec sleep 600\" &'",
}


@pytest.mark.parametrize("start", CHILDREN.values(), ids=CHILDREN)
def test_nothing_outlives_a_command_that_ends(log, start):
    output, status = shell(f"{start}\nwhile ! [ -s child ]; do sleep 0.01; done; echo done", log)
    assert (output, status) == ("done\n", 0)
    wait_for(lambda: gone(number_in(log.path.parent / "child")))


@pytest.mark.parametrize("start", CHILDREN.values(), ids=CHILDREN)
def test_nothing_outlives_a_command_whose_time_is_up(log, start):
    output, status = shell(f"trap '' TERM INT HUP\n{start}\necho begun; while true; do sleep 0.01; done", log, 0.5)
    assert (output, status) == ("begun\n", None)
    wait_for(lambda: gone(number_in(log.path.parent / "child")))


def test_a_killed_supervisor_ends_its_command(log):
    _, status = shell("sleep 600 & echo $! > child; kill -9 $PPID; sleep 600", log)
    assert status == -signal.SIGKILL
    wait_for(lambda: gone(number_in(log.path.parent / "child")))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_command_ends_with_who_started_it(tmp_path, number):
    """Whoever holds the lifeline is killed, and then the supervisor itself is asked to end."""
    command = [sys.executable, "-I", SUPERVISOR, "sh", "-c", f"{CHILDREN['session']} echo $$ > shell; sleep 600"]
    holder = (
        "import subprocess, sys, time\n"
        "process = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\n"
        "print(process.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, *map(str, command)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        supervisor = int(process.stdout.readline())
        numbers = [number_in(tmp_path / name) for name in ("shell", "child")]
        assert set(numbers) <= set(descendants(supervisor))
        os.kill(process.pid if number == signal.SIGKILL else supervisor, number)
        for other in (*numbers, supervisor):
            wait_for(lambda other=other: gone(other))
        process.kill()


# ---- deadlines and signals ----


def test_deadlines():
    assert Deadline(None).left() == float("inf")
    assert Deadline(0).left() == Deadline(-1).left() == 0
    assert 0 < Deadline(1).left() <= 60
    assert Deadline(1).near
    assert not Deadline(None).near


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_the_first_signal_raises_and_others_do_not(number):
    signals = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    before = list(map(signal.getsignal, signals))

    def interrupted():
        with signals_raise():
            try:
                os.kill(os.getpid(), number)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=number.name) as raised:
        interrupted()
    assert raised.value.signal == number
    assert list(map(signal.getsignal, signals)) == before


def test_signals_wait_while_they_are_held():
    written = []

    def interrupted():
        with signals_raise():
            with signals_held():
                os.kill(os.getpid(), signal.SIGTERM)
                written.append("whole")
            written.append("too late")

    with pytest.raises(Interrupted):
        interrupted()
    assert written == ["whole"]


def test_an_interrupted_command_is_ended(log):
    threading.Thread(
        target=lambda: (number_in(log.path.parent / "child"), os.kill(os.getpid(), signal.SIGTERM))
    ).start()
    with pytest.raises(Interrupted), signals_raise():
        shell(f"echo begun; {CHILDREN['session']} sleep 600", log)
    assert gone(number_in(log.path.parent / "child"))
    assert log.path.read_text() == "begun\n"
