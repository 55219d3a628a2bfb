"""The benchmark of several processes: what it measures, and its tables."""

from bench import processes


def test_command(tmp_path, capsys):
    assert processes.main(["--smoke", "--out", str(tmp_path)]) == 0
    measured, modelled = capsys.readouterr().out.split("A model, not measured")
    rows = [line.split("|")[1:-1] for line in measured.splitlines()[2:] if line]
    assert [int(row[1]) for row in rows] == [1, 2]
    assert all(float(row[2]) > 0 and int(row[5]) <= 8 for row in rows)
    assert len([line for line in modelled.splitlines() if line.startswith("| ")]) == 1 + 3 * 3
    assert processes.main(["table", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(measured.rstrip())


def test_nothing_measured(tmp_path, capsys):
    assert processes.main(["table", "--out", str(tmp_path)]) == 2
    assert "measure first" in capsys.readouterr().err
