"""The report on the CUDA kernels' registers and spills, on what ptxas prints."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "kernels.py"
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{symbol}' for 'sm_90'
ptxas info    : Function properties for {symbol}
    0 bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 62 registers, used 1 barriers, 128 bytes smem
ptxas info    : Compile time = 812.001 ms
"""
STREAM = "_ZN12hypersimplex4cuda13loss_gradientIfEEvi"
TEAM = "_ZN12hypersimplex4cuda12project_teamIfEEvi"


def run(report):
    return subprocess.run([sys.executable, SCRIPT], input=report, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("symbol", "stores", "loads", "code"),
    [(STREAM, 0, 0, 0), (STREAM, 4, 0, 1), (STREAM, 0, 8, 1), (TEAM, 32, 36, 0), (TEAM, 32, 360, 1)],
)
def test_spills(symbol, stores, loads, code):
    result = run(REPORT.format(symbol=symbol, stores=stores, loads=loads))
    assert result.returncode == code, result.stdout + result.stderr
    assert f"| sm_90 | 62 | 128 | {stores} | {loads} |" in result.stdout
    assert ("error" in result.stdout) == bool(code)


@pytest.mark.parametrize("report", ["", "nothing to do\n", REPORT.split("ptxas info    : Used")[0]])
def test_reports_that_tell_nothing(report):
    assert run(report).returncode == 1
