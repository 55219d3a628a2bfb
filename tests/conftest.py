"""Seeds, and the backends that tests run on: the CPU core, the CUDA kernels emulated on the CPU, and on a GPU."""

import contextlib
import importlib
import os
import re
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from hypersimplex_ext import _backends, _calls
from tests.processes import Processes

with warnings.catch_warnings():  # PyTorch loads this at the first use of forward mode, and warns about itself
    for category in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    import torch._decomp.decompositions_for_jvp

SEED = int(os.environ.get("HYPERSIMPLEX_SEED", "0"))
ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc" / "cuda"
BOOSTING = {"LGBMClassifier": "lightgbm", "XGBClassifier": "xgboost"}

settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True, database=None)
settings.load_profile("fixed")


def pytest_configure(config):
    """Warnings are errors, but not those of other versions of torch about themselves."""
    pinned = re.search(r"^torch==(\S+)", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)[1]
    if torch.__version__.partition("+")[0] != pinned:
        config.addinivalue_line("filterwarnings", "default")


def pytest_report_header():
    return f"HYPERSIMPLEX_SEED={SEED}"


# One thread, or runtimes waiting for cores that other processes hold slow the suite down tenfold. Tests that results do
# not depend on the number set it themselves.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _start_afresh():
    torch.manual_seed(SEED)
    _calls._known.clear()  # of calls into other kernels


def _call_simt(function, device, *arguments):
    """Call an emulated CUDA function as the real one is called; its stream is 0, its memory the host's."""
    workspace = []

    def allocate(size):
        workspace.append(torch.empty(size, dtype=torch.uint8))
        return workspace[-1].data_ptr()

    function(*arguments, 0, allocate)


def _names():
    names = ["cpu"]
    if any(KERNELS.glob("*.cu")) and importlib.util.find_spec("tests.simt"):
        names.append("simt")
    if torch.cuda.is_available() and "cuda" in _backends.BACKENDS:
        names.append("cuda")
    return names


@pytest.fixture(params=_names())
def backend(request, monkeypatch):
    """The name of a backend: "cpu", "simt" or "cuda". Tensors belong on `device`."""
    if request.param == "simt":
        kernels = importlib.import_module("tests.simt").load("_C_simt").cuda
        monkeypatch.setitem(_backends.BACKENDS, "cpu", _backends.Backend(kernels, _call_simt, False))
    return request.param


@pytest.fixture
def device(backend):
    """The device of tensors that `backend` serves."""
    return torch.device("cuda" if backend == "cuda" else "cpu")


@pytest.fixture
def without_kernels(monkeypatch):
    """No kernels for any device, and no warning about it."""
    monkeypatch.setattr(_backends, "BACKENDS", {})
    monkeypatch.setattr(_backends, "_announced", {"cpu", "cuda"})


@pytest.fixture
def set_threads():
    """torch.set_num_threads, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def force():
    """A function that forces a solver of the CPU (csrc/cpu/projection/plan.h) until the test ends, "" no longer."""
    native = pytest.importorskip("hypersimplex_ext._C").cpu
    yield native.force_solver
    native.force_solver("")


@pytest.fixture
def used():
    """A function that tells which solvers of the CPU have been at work since it was last called, in plan.h's order."""
    native = pytest.importorskip("hypersimplex_ext._C").cpu
    native.take_solvers()
    return native.take_solvers


def needs_clusters(regime):
    """Skip where the GPU cannot launch what a regime wants."""
    if regime.startswith("cluster") and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("clusters need compute capability 9.0")


@pytest.fixture(
    params=[
        pytest.param(
            "simt", marks=pytest.mark.skipif(not importlib.util.find_spec("tests.simt"), reason="no emulator")
        ),
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
    ]
)
def on_device(request, monkeypatch):
    """The device whose tensors the kernels take, and the names of the kernels launched since the last call."""
    if request.param == "cuda":
        needs_clusters(request.node.callspec.params.get("regime", ""))
        yield torch.device("cuda"), lambda: None
        return
    simt = importlib.import_module("tests.simt")
    module = simt.load("_C_simt")

    def call(function, device, *arguments):
        memory = []

        def allocate(size):
            memory.append(torch.full((size,), 255, dtype=torch.uint8))  # as good as uninitialised
            return memory[-1].data_ptr()

        function(*arguments, 0, allocate)

    monkeypatch.setitem(_backends.BACKENDS, "cpu", _backends.Backend(module.cuda, call, False))
    yield torch.device("cpu"), simt.Device(module).take_launches


@contextlib.contextmanager
def emulated(kernels):
    """In the place of the CPU core the CUDA kernels, emulated, where `kernels` is "simt"."""
    if kernels != "simt":
        yield
        return
    before, known = _backends.BACKENDS["cpu"], dict(_calls._known)
    module = importlib.import_module("tests.simt").load("_C_simt").cuda
    _calls._known.clear()
    _backends.BACKENDS["cpu"] = _backends.Backend(module, _call_simt, False)
    try:
        yield
    finally:
        _backends.BACKENDS["cpu"] = before
        _calls._known.clear()
        _calls._known.update(known)


@pytest.fixture(params=[name for name in _names() if name != "cuda"])
def kernels(request):
    """What processes compute with: "cpu" or "simt", for `emulated`."""
    if request.param == "simt":
        importlib.import_module("tests.simt").load("_C_simt")  # built here, not by all of them
    return request.param


@pytest.fixture(params=BOOSTING)
def classifier(request):
    """The class of one of the two classifiers of boosting."""
    pytest.importorskip(BOOSTING[request.param], reason=f"{BOOSTING[request.param]} is not installed")
    from hypersimplex_ext import boosting

    return getattr(boosting, request.param)


@pytest.fixture(scope="session")
def processes():
    """Four processes, which run functions together."""
    pool = Processes(4)
    yield pool
    pool.close()
