"""The reports on what the compiler made of the CUDA kernels, on what ptxas and cuobjdump print."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / ".ci"
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{symbol}' for 'sm_90'
ptxas info    : Function properties for {symbol}
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 62 registers, used 1 barriers, 128 bytes smem
ptxas info    : Compile time = 812.001 ms
"""
STREAM = "_ZN12hypersimplex4cuda13loss_gradientIfEEvi"
TEAM = "_ZN12hypersimplex4cuda12project_teamIfEEvi"


def run(script, report):
    return subprocess.run([sys.executable, SCRIPTS / script], input=report, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("symbol", "stack", "stores", "loads", "error"),
    [
        (STREAM, 0, 0, 0, ""),
        (STREAM, 8, 4, 0, "has a larger stack"),
        (STREAM, 0, 0, 8, "spills more"),
        (STREAM, 16, 0, 0, "has a larger stack"),
        (TEAM, 32, 32, 36, ""),
        (TEAM, 32, 32, 360, "spills more"),
    ],
)
def test_spills(symbol, stack, stores, loads, error):
    result = run("kernels.py", REPORT.format(symbol=symbol, stack=stack, stores=stores, loads=loads))
    assert result.returncode == bool(error), result.stdout + result.stderr
    assert f"| sm_90 | 62 | 128 | {stack} | {stores} | {loads} |" in result.stdout
    assert ("error" in result.stdout) == bool(error)
    assert error in result.stdout


@pytest.mark.parametrize("report", ["", "nothing to do\n", REPORT.split("ptxas info    : Used")[0]])
def test_reports_that_tell_nothing(report):
    assert run("kernels.py", report).returncode == 1


# ---- loads ----

ONE_BY_ONE = """
LDG.E.CONSTANT R4, desc[UR8][R2.64]
STS [R9], R4
@P0 BRA 0x{end}
LDG.E.CONSTANT R4, desc[UR8][R2.64+0x80]
STS [R9+0x84], R4"""
CONDITIONAL = """
LDG.E.128.CONSTANT R4, desc[UR8][R2.64]
LDG.E.128.CONSTANT R8, desc[UR8][R2.64+0x80]
LDG.E.128.CONSTANT R12, desc[UR8][R2.64+0x100]
FADD R20, R7, R20
@!P3 BRA 0x{end}
LDG.E.128.CONSTANT R16, desc[UR8][R2.64+0x180]
FADD R20, R16, R20"""


def together(name, width, count):
    """`count` loads before the first use, other instructions among them."""
    loads = [f"LDG.E.{width}CONSTANT R{4 * u}, desc[UR8][R2.64+{16 * u:#x}]" for u in range(1, count + 1)]
    return "\n".join(["", *loads[:1], "IMAD.WIDE R40, R41, 0x4, R42", *loads[1:], f"{name} [R50], R4"])


def listing(**bodies):
    """What cuobjdump prints of the main kernels; some have other bodies."""
    text = "\n\tcode for sm_90\n"
    for kernel, usual in {
        "project_short": together("STS", "", 8),
        "multiply_short": together("@!P1 STS", "", 8),
        "project_team": together("STS.128", "128.", 4),
        "multiply_team": together("STS.128", "128.", 4),
    }.items():
        for storage in ("f", "d", "6__half", "13__nv_bfloat16"):
            lines = bodies.get(kernel, usual).strip().splitlines()
            text += f"\t\tFunction : _ZN4cuda{len(kernel)}{kernel}I{storage}EEvi\n"
            for i, line in enumerate(lines):
                text += f"        /*{16 * i:04x}*/    {line.format(end=f'{16 * len(lines):x}')} ;   /* 0x01 */\n"
    return text


def test_loads_at_once():
    result = run("loads.py", listing())
    assert result.returncode == 0, result.stdout + result.stderr
    assert "| project_short<float> | sm_90 | staged rows | 8 | 8 |" in result.stdout
    assert "| multiply_team<__half> | sm_90 | packs of 16 bytes | 4 | 2 |" in result.stdout


@pytest.mark.parametrize(
    ("bodies", "line"),
    [
        ({"multiply_short": ONE_BY_ONE}, "| multiply_short<double> | sm_90 | staged rows | 1 | 8 |"),
        ({"project_team": CONDITIONAL}, "| project_team<float> | sm_90 | packs of 16 bytes | 3 | 4 |"),
        ({"project_team": ""}, "| project_team<__half> | sm_90 | packs of 16 bytes | 0 | 2 |"),
    ],
)
def test_loads_that_wait_for_one_another(bodies, line):
    result = run("loads.py", listing(**bodies))
    assert result.returncode == 1
    assert line in result.stdout
    assert "too few loads at once" in result.stdout


def test_a_listing_without_a_kernel():
    result = run("loads.py", listing().replace("project_team", "another_team"))
    assert result.returncode == 1
    assert "error: project_team<double>: not in the listing" in result.stdout
