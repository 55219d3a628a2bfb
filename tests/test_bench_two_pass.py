"""The benchmark of two passes: the memory and the gradient of each kind of step."""

from pathlib import Path

import pytest
import torch

from bench.training import two_pass

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is told by Linux alone")


@linux
def test_memory_is_that_of_a_micro_batch_and_the_gradient_that_of_the_batch():
    records = two_pass.measure(256, 16, torch.device("cpu"))
    whole, added, both = records.values()
    assert both["memory"] < whole["memory"] / 4
    assert both["difference"] < 1e-4 < 1e-2 < added["difference"]


def test_command(capsys):
    assert two_pass.main(["--samples", "8", "--micro-batch", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(two_pass.STEPS)


def test_no_micro_batch_is_empty(capsys):
    with pytest.raises(SystemExit):
        two_pass.main(["--micro-batch", "0"])
    assert "expected a positive int, got '0'" in capsys.readouterr().err
