"""The solvers of the CPU (csrc/cpu/projection/plan.h), each forced on all that it can serve: its results are right, and
it has been at work. And plan.h's table says truly which of them is chosen where."""

import os
import subprocess
import sys

import pytest
import torch

from hypersimplex_ext import hypersimplex_loss, reference, soft_binary_argmax

from .cases import DISTRIBUTIONS, INF, NAN, assert_close, assert_projection, draw
from .test_loss import KINDS, assert_loss

pytest.importorskip("hypersimplex_ext._C")
plain_types = (torch.float32, torch.float64)
types = (*plain_types, torch.float16, torch.bfloat16)


# What each solver serves: dtypes, and shapes with the dimension to project along.
SERVED = {
    "short_vectors": (
        types,
        [((1, 7), 0), ((70, 1), 1), ((70, 5), 1), ((33, 100), 1), ((256, 20), 0), ((5, 256), 1), ((3000, 37), 0)],
    ),
    "row_candidates": (plain_types, [((1, 64), 1), ((20, 257), 1), ((17, 1000), 1), ((3, 20_000), 1)]),
    "single_row": (plain_types, [((1, 64), 1), ((20, 257), 1), ((17, 1000), 1), ((3, 20_000), 1)]),
    "long_vectors": (types, [((1, 2048), 1), ((2, 5000), 1), ((40_001, 1), 0)]),
    "long_columns": (types, [((2048, 16), 0), ((5000, 21), 0), ((9001, 100), 0)]),
    "general": (types, [((1, 1), 1), ((70, 5), 1), ((257, 20), 0), ((300, 3), 0), ((17, 300), 1), ((2, 5000), 1)]),
    "sorted": (types, [((1, 1), 1), ((70, 5), 1), ((257, 20), 0), ((300, 3), 0), ((17, 300), 1), ((2, 5000), 1)]),
}
CASES = [
    pytest.param(solver, dtype, shape, dim, id=f"{solver}-{dtype}-{shape}-{dim}")
    for solver, (dtypes, shapes) in SERVED.items()
    for dtype in dtypes
    for shape, dim in shapes
]


def masses_for(solver, n):
    if solver in ("long_vectors", "long_columns"):  # a mass next to n leaves a sample no lower end for the bracket
        return (1, 5, n / 2)
    most = min(21, n - 1) if solver == "row_candidates" else n
    return sorted({0.5, 1, min(5, n), most / 2, max(most - 1, 0.25)})


@pytest.mark.parametrize(("solver", "dtype", "shape", "dim"), CASES)
def test_forced(force, used, solver, dtype, shape, dim):
    torch.manual_seed(0)
    n = shape[dim]
    force(solver)
    for k in masses_for(solver, n):
        x = torch.randn(shape).to(dtype)
        assert_projection(soft_binary_argmax(x, k, dim=dim), x, k, dim=dim)
        ran = set(used())
        assert ran <= {solver, "general", "sorted"}
        assert solver in ran or k >= n


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("solver", SERVED)
def test_every_distribution(force, used, solver, name):
    torch.manual_seed(0)
    force(solver)
    for shape, dim in SERVED[solver][1]:
        n, others = shape[dim], shape[1 - dim]
        x = torch.stack([draw(name, n)[0] for _ in range(others)], 1 - dim)
        tau = draw(name, 1)[1]
        for dtype in plain_types:
            for k in masses_for(solver, n)[1:]:
                assert_projection(soft_binary_argmax(x.to(dtype), k, tau, dim=dim), x.to(dtype), k, tau, dim=dim)
    assert solver in used()


@pytest.mark.parametrize("solver", SERVED)
def test_special_values(force, solver):
    torch.manual_seed(0)
    force(solver)
    for shape, dim in SERVED[solver][1]:
        n = shape[dim]
        if n < 5 or shape[1 - dim] < 2:
            continue
        x = torch.randn(shape)
        rows = x if dim == 1 else x.T
        rows[0, n // 2] = NAN
        rows[1, :3] = INF
        y = soft_binary_argmax(x, 2, dim=dim)
        y = y if dim == 1 else y.T
        assert y[0].isnan().all()
        torch.testing.assert_close(y[1, :3], torch.full((3,), 2 / 3))
        assert not y[1, 3:].any()
        if len(rows) > 2:
            assert_projection(y[2:], rows[2:], 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["short_vectors", "long_vectors", "long_columns", "general", "sorted"])
def test_losses(force, used, solver, kind):
    torch.manual_seed(0)
    n, classes = {"long_columns": (2500, 21), "long_vectors": (20_001, 1)}.get(solver, (1100, 40))
    x = torch.randn(n, classes, dtype=torch.float64)
    target = torch.randint(classes, (n,)) if classes > 1 else (torch.rand(n, 1, dtype=torch.float64) < 0.01).double()
    force(solver)
    assert_loss(x, target, kind=kind)
    assert solver in used()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", types)
def test_column_candidates(force, used, dtype, kind):
    """They serve losses alone, which are compared with those by the general search."""
    torch.manual_seed(0)
    for n in (256, 300, 1100):
        x, target = torch.randn(n, 40).to(dtype).requires_grad_(), torch.randint(40, (n,))
        results = []
        for solver in ("column_candidates", "general"):
            force(solver)
            used()
            value = hypersimplex_loss(x, target, k=0.0075, kind=kind)
            results.append((value.detach(), *torch.autograd.grad(value, x)))
            assert used()[0] == solver
        for found, expected in zip(*results, strict=True):
            assert_close(found, expected, {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 1e-2))


def heavy_class():
    """One class is no matter for candidates, the others are; float64 shows every rounding."""
    x, target = torch.randn(4000, 64, dtype=torch.float64), torch.randint(1, 64, (4000,))
    target[:3100] = 0
    return lambda leaf: hypersimplex_loss(leaf, target), x


PANELS = {
    "columns": lambda: (lambda x: soft_binary_argmax(x, 500, 4, dim=0), torch.randn(1000, 160, dtype=torch.float64)),
    "columns, no whole groups": lambda: (
        lambda x: soft_binary_argmax(x, 500, 4, dim=0),
        torch.randn(1000, 149, dtype=torch.float64),
    ),
    "long columns": lambda: (lambda x: soft_binary_argmax(x, 4000, dim=0), torch.randn(9000, 192, dtype=torch.float64)),
    "loss": heavy_class,
    "few samples": lambda: (
        lambda x: hypersimplex_loss(x, torch.arange(8)),
        torch.randn(8, 3000, dtype=torch.float64),
    ),
}


@pytest.mark.parametrize("name", PANELS)
def test_nothing_depends_on_how_many_columns_make_a_panel(set_threads, name):
    """Which the number of threads decides."""
    torch.manual_seed(0)
    function, x = PANELS[name]()
    results = []
    for threads in (1, 2, 3, 7):
        set_threads(threads)
        leaf = x.clone().requires_grad_()
        value = function(leaf)
        (grad,) = torch.autograd.grad(value, leaf, torch.linspace(-1, 1, value.numel()).to(value).view_as(value))
        results.append((value.detach(), grad))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_a_column_of_nans_is_nothing_to_the_columns_at_the_end_of_a_row():
    """Their panel has lanes to spare, which read on into the next row."""
    torch.manual_seed(0)
    x, target = torch.randn(4000, 140), torch.randint(140, (4000,))
    clean = hypersimplex_loss(x, target, reduction="none").sum(0)
    x[:, 0] = NAN
    dirty = hypersimplex_loss(x, target, reduction="none").sum(0)
    assert dirty[0].isnan()
    assert torch.equal(dirty[1:], clean[1:])


def test_what_a_solver_cannot_serve_says_so(force):
    refused = {
        "short_vectors": torch.randn(3, 1000),
        "row_candidates": torch.randn(3, 1000).half(),
        "single_row": torch.randn(1000, 20).T,
        "long_vectors": torch.randn(3, 1000),
        "column_candidates": torch.randn(3, 1000),
    }
    for solver, x in refused.items():
        force(solver)
        with pytest.raises(ValueError, match=f"HYPERSIMPLEX_CPU_SOLVER is {solver}, which serves"):
            soft_binary_argmax(x, 5)
    force("row_candidates")
    with pytest.raises(ValueError, match="serves projections of rows"):
        hypersimplex_loss(torch.randn(300, 20), torch.randint(20, (300,)))
    with pytest.raises(ValueError, match=r"must be one of short_vectors, .*, sorted, got bisection"):
        force("bisection")


def test_the_environment_forces_a_solver():
    code = (
        "import torch; from hypersimplex_ext import _C, soft_binary_argmax as f; f(torch.randn(3, 1000), 5); "
        "print(_C.cpu.take_solvers())"
    )
    environment = {**os.environ, "HYPERSIMPLEX_CPU_SOLVER": "general"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['general']"
    environment["HYPERSIMPLEX_CPU_SOLVER"] = "none"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "HYPERSIMPLEX_CPU_SOLVER must be one of" in run.stderr


@pytest.mark.parametrize(
    ("shape", "dim", "dtype", "k", "expected"),
    [
        ((70, 10), 1, torch.float32, 3, "short_vectors"),
        ((256, 20), 0, torch.bfloat16, 3, "short_vectors"),
        ((257, 20), 0, torch.float32, 3, "short_vectors"),
        ((8192, 20), 0, torch.float64, 3000, "short_vectors"),
        ((8193, 20), 0, torch.float32, 3000, "long_columns"),
        ((300, 3), 0, torch.float32, 3, "general"),
        ((40, 257), 1, torch.float32, 4, "row_candidates"),
        ((40, 257), 1, torch.float32, 5, "single_row"),
        ((40, 8192), 1, torch.float64, 21, "row_candidates"),
        ((40, 8192), 1, torch.float64, 22, "single_row"),
        ((40, 8192), 1, torch.float16, 21, "general"),
        ((40, 8193), 1, torch.float32, 21, "general"),
        ((1, 16_383), 1, torch.float32, 5, "general"),
        ((1, 16_384), 1, torch.float32, 5, "long_vectors"),
        ((1, 16_384), 1, torch.float32, 5000, "general"),
        ((1, 131_071), 1, torch.float32, 50_000, "general"),
        ((1, 131_072), 1, torch.float32, 50_000, "long_vectors"),
    ],
)
def test_the_table_of_plan_h(used, shape, dim, dtype, k, expected):
    torch.manual_seed(1)
    x = torch.randn(shape).to(dtype)
    used()
    soft_binary_argmax(x, k, dim=dim)
    assert used()[0] == expected  # what it declines goes to those behind it


@pytest.mark.parametrize(
    ("n", "k", "expected"),
    [
        (1024, 8, "column_candidates"),
        (1023, 7, "short_vectors"),
        (1024, 9, "short_vectors"),
        (8193, 65, "long_columns"),
    ],
)
def test_the_table_of_plan_h_for_losses(used, n, k, expected):
    torch.manual_seed(1)
    used()
    hypersimplex_loss(torch.randn(n, 40), torch.randint(40, (n,)), k=k)
    assert expected in used()


@pytest.mark.parametrize("dtype", plain_types)
def test_short_vectors_take_the_steps_of_the_scalar_search(force, dtype):
    """The step of newton.h stands a second time in short_vectors.h, lane by lane: both end at the same thresholds."""
    torch.manual_seed(0)
    eps = torch.finfo(dtype).eps
    for name in DISTRIBUTIONS:
        for n in (5, 16, 40, 256):
            x, tau = torch.stack([draw(name, n)[0] for _ in range(70)]).to(dtype), draw(name, 1)[1]
            for k in (0.5, n / 2, n - 1.5):
                thresholds = []
                for solver in ("short_vectors", "general"):
                    force(solver)
                    thresholds.append(soft_binary_argmax(x, k, tau, return_threshold=True)[1])
                size = x.double().abs().amax(1) + tau
                assert ((thresholds[0] - thresholds[1]).abs() <= 4 * eps * size).all(), (name, n, k)


def test_the_reference_has_the_mass_asked_for():
    """As the solvers are compared with it."""
    x = torch.randn(3, 50, dtype=torch.float64)
    y = reference.project_bisection(x, 5, 1.0)
    torch.testing.assert_close(y.sum(1), torch.full((3,), 5.0, dtype=torch.float64))
