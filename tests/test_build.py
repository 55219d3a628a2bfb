"""The build: what it finds, what it refuses, and what the module shares with the process it is loaded into."""

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import hypersimplex_ext
from hypersimplex_ext import _C, build_info
from hypersimplex_ext import __main__ as command

ROOT = Path(__file__).resolve().parents[1]
LINUX = Path("/proc/self/maps").exists()
OWN_OPENMP = not build_info().compiler.startswith("GNU")  # other compilers bring a runtime of their own


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


def test_build_info_tells_what_is_loaded():
    info = build_info()
    assert info.version == importlib.metadata.version("hypersimplex_ext")
    assert info.torch == torch.__version__
    assert info.vector_extension in {"baseline", "avx2", "avx512"}
    assert info.compiler[-1].isdigit()
    assert (info.cuda is None) == (info.cuda_architectures == ())
    assert (info.cuda is not None) == hasattr(_C, "cuda")


def test_build_info_without_a_core(monkeypatch):
    monkeypatch.delattr(hypersimplex_ext, "_C")
    monkeypatch.setitem(sys.modules, "hypersimplex_ext._C", None)
    spec = importlib.util.find_spec("hypersimplex_ext._build_info")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    info = module.build_info()
    assert str(info).startswith("hypersimplex_ext  native core missing\n")
    assert info.compiler is None
    assert info.cuda_architectures == ()
    assert info.torch == torch.__version__


def test_openmp_runtime_is_unknown_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert build_info().openmp == ()
    assert "OpenMP runtime    unknown" in str(build_info())


def test_core_belongs_to_the_package_under_test():
    assert Path(_C.__file__).parent == Path(hypersimplex_ext.__file__).parent


@pytest.mark.skipif(not LINUX or OWN_OPENMP, reason="only a build by GCC on Linux shares torch's runtime")
def test_core_brings_no_second_openmp_runtime():
    code = """
import torch
from hypersimplex_ext import build_info, soft_binary_argmax
torch.set_num_threads(2)
soft_binary_argmax(torch.randn(64, 100_000), k=100)
print(*build_info().openmp, sep="\\n")
"""
    runtimes = run_python(code).splitlines()
    assert len(runtimes) == 1, runtimes
    torch_alone = run_python("""
import torch
print(*{line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.rpartition("/")[2]}, sep="\\n")
""").splitlines()
    assert runtimes == torch_alone


@pytest.mark.skipif(not LINUX or OWN_OPENMP, reason="only a build by GCC on Linux shares torch's runtime")
def test_core_runs_on_the_threads_that_torch_has_started():
    before, after = run_python("""
import os, torch
from hypersimplex_ext import soft_binary_argmax
def threads():
    return len(os.listdir("/proc/self/task"))
torch.set_num_threads(2)
x = torch.randn(64, 100_000)
x.exp()
print(threads())
soft_binary_argmax(x, k=100)
print(threads())
""").split()
    assert before == after


def test_core_exports_its_entry_point_alone():
    library = ctypes.CDLL(_C.__file__)
    assert hasattr(library, "PyInit__C")
    for name in ("cudaGetDevice", "cudaLaunchKernelExC", "__cudaRegisterFatBinary"):
        assert not hasattr(library, name), name


def test_every_clone_that_the_processor_can_run_passes_the_self_check():
    clones = ["baseline", "avx2", "avx512"]
    code = """
import sys
from hypersimplex_ext import __main__ as command, build_info
print(build_info().vector_extension)
sys.exit(command.main())
"""
    chosen = [run_python(code, HYPERSIMPLEX_ISA=limit).split()[0] for limit in clones]
    best = clones.index(chosen[-1])
    assert chosen == [clones[min(limit, best)] for limit in range(len(clones))]


def test_self_check_prints_the_build_and_the_papers_illustration(capsys):
    assert command.main() == 0
    *info, check = capsys.readouterr().out.splitlines()
    assert "\n".join(info) == str(build_info())
    assert check.startswith("self-check        ok: 0.1, 1.6, 1 -> 0, 0.8, 0.2 on cpu")


def test_self_check_reports_a_wrong_result(monkeypatch, capsys):
    monkeypatch.setattr(command, "soft_binary_argmax", lambda x, k: torch.full_like(x, k / x.numel()))
    assert command.main() == 1
    assert "WRONG, 0, 0.8, 0.2 expected: 0.1, 1.6, 1 -> 0.333, 0.333, 0.333 on cpu" in capsys.readouterr().out


def test_source_distribution_holds_what_its_tests_use(tmp_path):
    pytest.importorskip("pybind11")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path]
    command += ["sdist", "--formats", "tar", "--dist-dir", tmp_path]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=True)
    with tarfile.open(next(tmp_path.glob("*.tar"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    sources = [path for folder in ("bench", "tests") for path in (ROOT / folder).rglob("*.py")]
    sources += [*(ROOT / "docs").iterdir(), *(ROOT / "csrc").rglob("*.md")]
    used = {str(path.relative_to(ROOT)) for path in sources} | {
        ".ci/kernels.py",
        ".ci/loads.py",
        ".ci/run",
        "CONTRIBUTING.md",
        "Makefile",
        "README.md",
    }
    assert used <= packed, used - packed
    assert not any(name.startswith("bench/results/") for name in packed)


# ---- what CMake decides, by configuring alone ----

PLAIN_PATH = "/usr/bin:/bin"  # where a C++ compiler usually is, and nvcc usually is not


def configure(folder, *options, **environment):
    """Exit status and output, on one line, of configuring the project."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    cmake, ninja = (shutil.which(name, path=path) for name in ("cmake", "ninja"))
    pybind11 = pytest.importorskip("pybind11")
    if cmake is None or ninja is None:
        pytest.skip("cmake and ninja are not installed")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA", "CMAKE", "HYPERSIMPLEX"))}
    tools = {"CMAKE_MAKE_PROGRAM": ninja, "Python_EXECUTABLE": sys.executable, "pybind11_DIR": pybind11.get_cmake_dir()}
    defined = [f"-D{name}={value}" for name, value in tools.items()]
    process = subprocess.run(
        [cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", *defined, *options],
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return process.returncode, " ".join(process.stdout.split())


@pytest.fixture
def path_without_nvcc():
    if shutil.which("nvcc", path=PLAIN_PATH) or not shutil.which("c++", path=PLAIN_PATH):
        pytest.skip("no PATH holds a C++ compiler and no nvcc")
    return PLAIN_PATH


@pytest.fixture
def broken_toolkit(tmp_path):
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'nvcc fatal: broken' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    return nvcc.parents[1]


def test_cuda_asked_for_and_not_found_is_an_error_with_a_remedy(tmp_path, path_without_nvcc):
    status, output = configure(tmp_path, "-DHYPERSIMPLEX_CUDA=ON", PATH=path_without_nvcc)
    assert status != 0
    assert "HYPERSIMPLEX_CUDA=ON, but no nvcc was found on PATH, in CUDA_HOME or in CUDA_PATH" in output
    assert "set CUDA_HOME to its folder, or build for the CPU alone with HYPERSIMPLEX_CUDA=OFF" in output


def test_cuda_not_found_means_a_cpu_build(tmp_path, path_without_nvcc):
    status, output = configure(tmp_path, PATH=path_without_nvcc)
    assert status == 0, output
    assert "Building for the CPU alone: no nvcc was found" in output


@pytest.mark.parametrize("place", ["PATH", "CUDA_HOME", "CUDA_PATH"])
def test_broken_toolkit_means_a_cpu_build(tmp_path, path_without_nvcc, broken_toolkit, place):
    where = f"{broken_toolkit}/bin:{path_without_nvcc}" if place == "PATH" else str(broken_toolkit)
    status, output = configure(tmp_path / "build", **({"PATH": path_without_nvcc} | {place: where}))
    assert status == 0, output
    assert f"Building for the CPU alone: {broken_toolkit}/bin/nvcc cannot compile" in output


def test_cuda_asked_for_and_broken_is_an_error(tmp_path, broken_toolkit):
    status, output = configure(tmp_path / "build", "-DHYPERSIMPLEX_CUDA=ON", CUDA_HOME=str(broken_toolkit))
    assert status != 0
    assert f"HYPERSIMPLEX_CUDA=ON, but {broken_toolkit}/bin/nvcc cannot compile" in output


def test_cuda_choice_is_one_of_three(tmp_path):
    status, output = configure(tmp_path, "-DHYPERSIMPLEX_CUDA=maybe")
    assert status != 0
    assert "HYPERSIMPLEX_CUDA must be ON, OFF or AUTO, got 'maybe'" in output


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA toolkit")
def test_cuda_architectures(tmp_path):
    status, output = configure(tmp_path, "-DCMAKE_CUDA_ARCHITECTURES=86;90-virtual")
    assert status == 0, output
    assert "architectures 86,90-virtual." in output
    status, output = configure(tmp_path, "-U", "CMAKE_CUDA_ARCHITECTURES")
    assert status == 0, output
    if torch.cuda.is_available():
        assert "{}{}-real".format(*torch.cuda.get_device_capability()) in output
    else:
        known = re.search(r"architectures (80-real,86-real,89-real,90(?:,100-real,120)?)\.", output)
        assert known, output
        printed = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
        assert known[1].endswith("120") == ("compute_100" in printed and "compute_120" in printed)
