"""The benchmark of the loss over many shapes, and of columns. Nothing here looks at a time."""

import dataclasses
from pathlib import Path

import pytest
import torch

import bench.__main__ as command
from bench.results import ResultsFile
from bench.speed import busy, cases, figures, grid, measure, peers, tables
from bench.speed.cases import Case
from bench.speed.contender import ALONG_ROWS, CROSS_ENTROPY, OURS, Contender, Prepared
from bench.speed.measure import Effort

EFFORT = Effort(rounds=1, seconds=0.0)
RESULTS = Path(__file__).parents[1] / "bench" / "results"


def loss_case(samples, classes, variant="", dtype="float32"):
    return Case("loss-grid", classes, samples, 0, "loss", "columns", dtype, variant=variant)


def made_up(case, peer, ratio):
    """A record of a run in which this package takes a millisecond and the peer `ratio` of them."""
    time = {"median": 1e-3, "p20": 1e-3, "p80": 1e-3, "samples": 3}
    systems = {
        name: {"same": True, **{direction: {**time, "ratio": value} for direction in ("forward", "both")}}
        for name, value in ((OURS, 1.0), (peer, ratio))
    }
    build = {"version": "1", "vector_extension": "avx2", "digest": "0"}
    origin = {"device": "a CPU", "torch": "2", "python": "3", "versions": {}, "build": build}
    return {"case": dataclasses.asdict(case), **origin, "date": "2000-01-01", "threads": 2, "systems": systems}


def rows_of(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("classes", "variant"), [(1, ""), (3, ""), *((3, variant) for variant in cases.VARIANTS)])
def test_every_variant_agrees(classes, variant, dtype):
    case = loss_case(60, classes, variant, dtype)
    systems = measure.measure(case, EFFORT)["systems"]
    assert list(systems) == [OURS, CROSS_ENTROPY]
    for system in systems.values():
        assert "failure" not in system
        assert system["both"]["samples"] == 1
    assert systems[OURS]["error"] <= measure.TOLERANCES[dtype]
    assert systems[OURS]["gradient_error"] <= measure.TOLERANCES[dtype]


@pytest.mark.parametrize("variant", cases.VARIANTS)
def test_a_loss_that_leaves_out_its_variant_is_found(monkeypatch, variant):
    case = loss_case(60, 3, variant)
    ours = peers.LOSSES[OURS].prepare

    def base(case, x, v, classes):
        x = x.flip(0) if case.variant == cases.FORTRAN else x
        return ours(dataclasses.replace(case, variant=""), x, v, classes)

    monkeypatch.setitem(peers.LOSSES, OURS, Contender(base))
    with pytest.raises(RuntimeError, match="against float64"):
        measure.measure(case, EFFORT)


def test_of_a_large_loss_the_gradients_of_some_classes_are_compared(monkeypatch):
    case = loss_case(100, 5)
    monkeypatch.setattr(measure, "_CHECKED", 300)
    system = measure.measure(case, EFFORT)["systems"][OURS]
    assert system["error"] is None
    assert system["gradient_error"] <= 1e-6
    right = peers.LOSSES[OURS].prepare

    def wrong(case, x, v, classes):
        prepared = right(case, x, v, classes)
        return Prepared(prepared.forward, lambda: prepared.both().index_fill(1, torch.tensor([4]), 0.0))

    monkeypatch.setitem(peers.LOSSES, OURS, Contender(wrong))
    with pytest.raises(RuntimeError, match="gradient_error"):
        measure.measure(case, EFFORT)


def test_variants_draw_the_same_numbers_in_their_own_layout():
    base = loss_case(50, 4)
    fortran = dataclasses.replace(base, variant=cases.FORTRAN)
    for ours, theirs in zip(base.draw(), fortran.draw(), strict=True):
        assert torch.equal(ours, theirs)
    assert base.draw()[0].stride() == (4, 1)
    assert fortran.draw()[0].stride() == (1, 50)
    assert set(loss_case(50, 1).draw()[2].tolist()) == {0, 1}


def test_columns_are_compared_with_rows():
    record = measure.measure(Case("columns", 3, 40, 20, layout="columns"), EFFORT)
    assert list(record["systems"]) == [OURS, ALONG_ROWS]
    for system in record["systems"].values():
        assert system["error"] <= 2e-6
        assert system["gradient_error"] <= 1e-5


def test_the_grid_is_as_large_as_it_is_said_to_be():
    for table, points in ((cases.QUICK, 16), (cases.FULL, 100)):
        shapes = [case for case in table if case.group == "loss-grid"]
        assert len(shapes) >= points
        assert all(case.n * case.vectors <= 42_000_000 for case in shapes)
        assert {case.variant for case in shapes} == {"", *cases.VARIANTS}


def test_table_and_figure_of_the_grid(tmp_path):
    records = [
        made_up(loss_case(128, 2), CROSS_ENTROPY, 2.0),
        made_up(loss_case(1024, 10), CROSS_ENTROPY, 0.5),
        made_up(loss_case(1024, 10, cases.DENSE), CROSS_ENTROPY, 0.01),
        made_up(loss_case(1024, 10, dtype="bfloat16"), CROSS_ENTROPY, 1.0),
    ]
    ratios = grid.by_variant(records)
    assert ratios[""] == {(128, 2): 0.5, (1024, 10): 2.0}
    assert ratios[cases.DENSE] == {(1024, 10): pytest.approx(100)}
    assert list(ratios) == ["", cases.DENSE, "bfloat16"]
    rows = rows_of(tables.tables(records))
    assert ["2", "0.50", "-"] in rows
    assert ["10", "-", "2.00"] in rows
    assert figures.draw(records, tmp_path) == [tmp_path / "loss-grid.png"]
    assert (tmp_path / "loss-grid.png").read_bytes().startswith(b"\x89PNG")
    assert len(grid.figure(records).axes) == 4  # with the bar of colours
    assert len(grid.figure(records[2:]).axes) == 3


def test_a_peer_that_failed_leaves_its_cell_empty():
    record = made_up(loss_case(128, 2), CROSS_ENTROPY, 2.0)
    record["systems"][CROSS_ENTROPY] = {"failure": "no"}
    assert grid.by_variant([record]) == {}
    assert grid.figure([record]).axes == []


def test_table_of_the_columns():
    case = Case("columns", 3, 40, 20, layout="columns")
    rows = rows_of(tables.tables([made_up(case, ALONG_ROWS, 0.5)]))
    assert rows[-1][0] == case.label
    assert rows[-1][2::2] == ["2.00", "2.00"]


@pytest.mark.parametrize("folder", ["cpu", "full", "loss-grid", "busy"])
def test_committed_results_can_be_read(folder):
    records = ResultsFile(RESULTS / folder / "results.jsonl", command.check).records
    assert (busy.table if folder == "busy" else tables.tables)(records)
