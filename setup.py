"""Builds the native core: setuptools' build_ext hands the work to CMake and Ninja.

Environment variables: HYPERSIMPLEX_CUDA (ON, OFF or AUTO), CMAKE_CUDA_ARCHITECTURES, CMAKE_ARGS (further arguments for
CMake), and those CMake itself reads, among them CXX, CUDACXX and CMAKE_BUILD_PARALLEL_LEVEL.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# One folder per interpreter, kept from one installation to the next, so that only what changed is compiled again.
BUILD = ROOT / "build" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"


def find_tool(name: str) -> str:
    """Full path of a program on PATH or, for an environment that is not activated, beside its interpreter."""
    path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    found = shutil.which(name, path=path)
    if found is None:
        sys.exit(f"hypersimplex_ext needs {name} to build: pip install {name}")
    return found


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt; the module lands where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        """Build the one extension."""
        cmake = find_tool("cmake")
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "HYPERSIMPLEX_CUDA": os.environ.get("HYPERSIMPLEX_CUDA", "AUTO"),
            "HYPERSIMPLEX_OUTPUT_DIRECTORY": str(Path(self.get_ext_fullpath(ext.name)).resolve().parent),
        }
        if architectures := os.environ.get("CMAKE_CUDA_ARCHITECTURES"):
            options["CMAKE_CUDA_ARCHITECTURES"] = architectures
        configure = [cmake, "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", "-U", "CMAKE_CUDA_ARCHITECTURES"]
        configure += [f"-D{name}={value}" for name, value in options.items()]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        for command in (configure, [cmake, "--build", str(BUILD)]):
            if subprocess.run(command).returncode != 0:
                sys.exit(f"hypersimplex_ext: this failed, for the reason given above: {shlex.join(command)}")


setup(ext_modules=[Extension("hypersimplex_ext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
