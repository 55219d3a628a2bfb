# ruff: noqa: N999
from typing import Any

cpu: Any
cuda: Any  # absent from a build without CUDA

def build_info() -> dict[str, Any]: ...
