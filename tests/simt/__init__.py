"""The CUDA kernels on a machine without a GPU: builds and imports the modules that CMakeLists.txt here describes.

>>> simt = load("_C_simt")          # the functions of hypersimplex_ext._C.cuda, over host memory
>>> device = Device(simt)
>>> device.seed = 7                 # of the schedule; an error message ends in the seed that repeats it

`python tests/simt [--sanitize] [command]` builds, prints where the modules are, and runs the command. With --sanitize
they are built with AddressSanitizer and UndefinedBehaviorSanitizer, and the command runs with sanitizer_environment(),
which makes load() take them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build"


def sanitized() -> bool:
    return os.environ.get("SIMT_SANITIZE", "0") == "1"


def build(sanitize: bool = False, target: str = "all") -> Path:
    """Builds what is out of date of `target`, a module's name or all; returns the folder that holds the modules."""
    folder = BUILD / ("simt-sanitized" if sanitize else "simt")
    if not (folder / "build.ninja").exists():
        pybind11 = subprocess.run(
            [sys.executable, "-m", "pybind11", "--cmakedir"], check=True, capture_output=True, text=True
        ).stdout.strip()
        command = ["cmake", "-S", HERE, "-B", folder, "-G", "Ninja", f"-Dpybind11_DIR={pybind11}"]
        command += [f"-DPython_EXECUTABLE={sys.executable}", f"-DSIMT_SANITIZE={'ON' if sanitize else 'OFF'}"]
        _run(command)
    _run(["cmake", "--build", folder, "--target", target])
    return folder


def _run(command: list[str | Path]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    # A virtual environment's cmake and ninja, also where it is not activated.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout}")


def sanitizer_environment() -> dict[str, str]:
    """Variables for a process that is to load the sanitized modules: Python itself is not linked with the sanitizer."""
    # The C++ runtime comes along so that the sanitizer finds the function that it wraps when exceptions are thrown.
    libraries = [_library("libasan.so"), _library("libstdc++.so.6")]
    return {"SIMT_SANITIZE": "1", "LD_PRELOAD": ":".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}


def _library(name: str) -> str:
    command = [os.environ.get("CXX", "c++"), f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def library(name: str) -> Path:
    """The file of a module or library, built first if need be."""
    (path,) = build(sanitized(), name).glob(f"{name}.*")
    return path


def load(name: str) -> ModuleType:
    """Imports `_C_simt` or `_simt_faults`, built first if need be."""
    if name not in sys.modules:
        path = library(name)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


class Device:
    """The emulated device under a module."""

    MULTIPROCESSORS = 16
    CAPABILITY_MAJOR = 75
    SHARED_MEMORY_AT_FIRST = 8  # per block; more than that a kernel has to ask for
    SHARED_MEMORY_PER_MULTIPROCESSOR = 81
    SHARED_MEMORY_PER_BLOCK = 97
    CLUSTER_LAUNCH = 120
    CLUSTERS_AT_ONCE = 1000  # and 2, 4, 8 or 16: how many clusters of so many blocks

    def __init__(self, module: ModuleType) -> None:
        assert module.__file__ is not None
        library = ctypes.CDLL(module.__file__)
        library.simt_set_seed.argtypes = [ctypes.c_uint64]
        library.simt_get_seed.restype = ctypes.c_uint64
        library.simt_take_launches.restype = ctypes.c_char_p
        library.simt_take_clusters.restype = ctypes.c_char_p
        library.simt_take_streams.restype = ctypes.c_char_p
        self._library = library

    @property
    def seed(self) -> int:
        """Of the next launch's schedule. Every launch leaves a new one."""
        return int(self._library.simt_get_seed())

    @seed.setter
    def seed(self, value: int) -> None:
        self._library.simt_set_seed(value)

    def __getitem__(self, attribute: int) -> int:
        """What cudaDeviceGetAttribute answers."""
        return int(self._library.simt_get_attribute(attribute))

    def __setitem__(self, attribute: int, value: int) -> None:
        """Put another device in its place, with another number, that differs in this."""
        self._library.simt_set_attribute(attribute, value)

    @contextlib.contextmanager
    def changed(self, attributes: dict[int, int]) -> Iterator[None]:
        """A device that differs in these, for a while."""
        before = {attribute: self[attribute] for attribute in attributes}
        try:
            for attribute, value in attributes.items():
                self[attribute] = value
            yield
        finally:
            for attribute, value in before.items():
                self[attribute] = value

    def take_launches(self) -> list[str]:
        """The names of the kernels launched since the last call."""
        return self._library.simt_take_launches().decode().splitlines()

    def take_clusters(self) -> list[int]:
        """Blocks per cluster of each launch since the last call."""
        return [int(line) for line in self._library.simt_take_clusters().decode().splitlines()]

    def take_counts(self) -> dict[str, int]:
        """What kernels did since the last call: loads through the read-only cache, by threads, and barriers."""
        counts = (ctypes.c_uint64 * 4)()
        self._library.simt_take_counts(counts)
        return dict(zip(("packs", "entries", "block_barriers", "cluster_barriers"), map(int, counts), strict=True))

    def take_streams(self) -> list[int]:
        """The streams that launches, memsets and copies were put on since the last call."""
        return [int(line) for line in self._library.simt_take_streams().decode().splitlines()]
