# ruff: noqa: N999
from typing import Any

from torch import Tensor

cpu: Any
cuda: Any  # absent from a build without CUDA

def build_info() -> dict[str, Any]: ...
def enumerations() -> dict[str, dict[str, int]]: ...
def check_memory(name: str, tensor: Tensor) -> None: ...
