"""CUDA sources of the benchmark as libraries, which nvcc makes for the GPU at hand when they are first wanted."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build" / "bench"


def compiled(source: Path, architecture: str) -> Path:
    """The library of a source for this architecture, compiled unless it is there already.

    Raises:
        RuntimeError: there is no nvcc, or it failed; the message says why.
    """
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    library = BUILD / f"{source.stem}-{architecture}-{digest}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(f".{os.getpid()}")
        command = [nvcc(), "-O3", "-std=c++17", f"-arch={architecture}", "-shared", "-Xcompiler", "-fPIC"]
        done = subprocess.run([*command, "-o", unfinished, source], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"nvcc could not compile {source.name}: {done.stderr.strip()}")
        unfinished.replace(library)
    return library


def nvcc() -> str:
    """Full path of nvcc, looked for where the build looks."""
    homes = [Path(os.environ[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = shutil.which("nvcc", path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, homes)]))
    if found is None:
        raise RuntimeError("no nvcc on PATH, in CUDA_HOME or in CUDA_PATH")
    return found
