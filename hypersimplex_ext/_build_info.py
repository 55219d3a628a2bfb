"""What this build is made of and what it runs on."""

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

import torch

try:
    from . import _C
except ImportError:  # _backends.py says why when it is missed
    _core = {}
else:
    _core = _C.build_info()

__all__ = ["BuildInfo", "__version__", "build_info"]


def _version() -> str:
    """The version of the core; without one that of the distribution, if it is installed."""
    try:
        return str(_core["version"]) if _core else importlib.metadata.version("hypersimplex_ext")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


__version__ = _version()

_OPENMP_FILE = re.compile(r"lib(gomp|omp|iomp5)\b.*\.so")


@dataclass(frozen=True)
class BuildInfo:
    """Versions and choices of this build; printed one per line."""

    version: str | None
    """Version of the native core; where there is none, nothing that describes it is known."""
    compiler: str | None
    """Host compiler and its version."""
    vector_extension: str | None
    """The CPU loops chosen for this processor: "baseline", "avx2" or "avx512"."""
    openmp: tuple[str, ...]
    """Files of the OpenMP runtimes in this process; torch's own is the one in use. Empty where /proc does not tell."""
    cuda: str | None
    """Version of the CUDA toolkit the kernels were built with, None for a build without CUDA."""
    cuda_architectures: tuple[str, ...]
    """Compute capabilities compiled for; one without "-real" comes as PTX too, which newer GPUs can run."""
    torch: str
    """Version of torch in this process."""

    def __str__(self) -> str:
        values = {
            "hypersimplex_ext": self.version or "native core missing",
            "compiler": self.compiler or "none",
            "vector extension": self.vector_extension or "none",
            "OpenMP runtime": ", ".join(self.openmp) or "unknown",
            "CUDA": f"{self.cuda}, architectures {', '.join(self.cuda_architectures)}" if self.cuda else "not built",
            "torch": self.torch,
        }
        return "\n".join(f"{name:18}{value}" for name, value in values.items())


def build_info() -> BuildInfo:
    """Tell the version, compiler, CUDA, OpenMP runtime and vector extension of this build.

    Returns:
        A frozen dataclass, see :class:`BuildInfo`.

    Example:
        >>> import hypersimplex_ext
        >>> hypersimplex_ext.build_info().vector_extension in {"baseline", "avx2", "avx512"}
        True
    """
    return BuildInfo(
        version=_core.get("version"),
        compiler=_core.get("compiler"),
        vector_extension=_core.get("vector_extension"),
        openmp=_mapped_openmp_runtimes(),
        cuda=_core.get("cuda"),
        cuda_architectures=tuple(filter(None, _core.get("cuda_architectures", "").split(","))),
        torch=torch.__version__,
    )


def _mapped_openmp_runtimes() -> tuple[str, ...]:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return ()
    lines = (line.split(maxsplit=5) for line in maps.read_text().splitlines())
    paths = {fields[5] for fields in lines if len(fields) == 6}
    return tuple(sorted(path for path in paths if _OPENMP_FILE.match(Path(path).name)))
