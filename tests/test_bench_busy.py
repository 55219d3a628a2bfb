"""The benchmark beside a busy neighbour. Nothing here looks at how long an operator takes."""

import dataclasses
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bench.__main__ as command
from bench.results import ResultsFile
from bench.speed import busy, cases
from bench.speed.cases import Case
from bench.speed.contender import CROSS_ENTROPY, OURS

ROOT = Path(__file__).parents[1]


def rows_of(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="times of other processes are told by Linux alone")
def test_the_neighbour_is_busy_when_it_is_told_to_be():
    def spent(process):
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    with busy.neighbour() as beside:
        before = spent(beside.process)
        beside.be(b"s")
        until = time.monotonic() + 60
        while spent(beside.process) < before + 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert spent(beside.process) >= before + 2
        beside.be(b"w")
        before = spent(beside.process)
        time.sleep(0.2)
        assert spent(beside.process) <= before + 1
    assert beside.process.poll() == 0


def test_the_neighbour_ends_when_measuring_fails():
    def fail(beside):
        beside.be(b"s")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), busy.neighbour() as beside:
        fail(beside)
    assert beside.process.poll() is not None


def test_a_neighbour_that_has_ended_is_noticed():
    with busy.neighbour() as beside:
        beside.process.kill()
        beside.process.wait()
        with pytest.raises((RuntimeError, BrokenPipeError)):
            beside.be(b"s")


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux alone tells when another's child has ended")
@pytest.mark.parametrize("state", ["s", "w"])
def test_the_neighbour_ends_when_its_parent_is_killed(state):
    code = """
import sys, time
from bench.speed import busy
with busy.neighbour() as beside:
    beside.be(sys.argv[1].encode())
    print(beside.process.pid, flush=True)
    time.sleep(600)
"""
    command = [sys.executable, "-c", code, state]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        ended = os.pidfd_open(int(parent.stdout.readline()))
        assert not select.select([ended], [], [], 0)[0]
        parent.kill()
        assert select.select([ended], [], [], 60)[0]
        os.close(ended)


def test_smoke_run_beside_a_neighbour(tmp_path, capsys, monkeypatch):
    arguments = ["--busy-smoke", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    records = ResultsFile(tmp_path / "results.jsonl", command.check).records
    assert [Case(**record["case"]) for record in records] == cases.BUSY_SMOKE
    for record in records:
        counterpart = CROSS_ENTROPY if record["case"]["operation"] == "loss" else "torch.softmax"
        assert list(record["systems"]) == [OURS, counterpart]
        for system in record["systems"].values():
            for condition in ("alone", "beside"):
                assert 0 < system[condition]["median"] <= system[condition]["p90"]
                assert system[condition]["samples"] == 2
    rows = rows_of(capsys.readouterr().out)
    assert len(rows) == 1 + len(records)
    monkeypatch.setattr(busy, "measure", lambda *_: pytest.fail("measured again"))
    assert command.main(arguments) == 0


def test_growth_is_told_for_both():
    def system(alone, beside):
        return {
            name: {"median": value, "p90": 2 * value, "samples": 3}
            for name, value in (("alone", alone), ("beside", beside))
        }

    build = {"version": "1", "vector_extension": "avx2", "digest": "0"}
    origin = {"device": "a CPU", "date": "2000-01-01", "threads": 2, "python": "3", "versions": {}, "build": build}
    systems = {OURS: system(1.0, 3.0), CROSS_ENTROPY: system(1.0, 2.0)}
    record = {"case": dataclasses.asdict(cases.BUSY[0]), **origin, "systems": systems}
    record["systems"][OURS]["beside"]["p90"] = 3.0
    assert busy.growth(record["systems"][OURS]) == (3.0, 1.5)
    row = rows_of(busy.table([record]))[-1]
    assert row[3:] == ["3.00 / 1.50", CROSS_ENTROPY, "2.00 / 2.00", "no / yes"]
