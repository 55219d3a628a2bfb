"""Differentiable top-k and zero-one loss through Euclidean projection onto the hypersimplex."""

from . import batch, functional, nn, reference
from ._build_info import __version__, build_info
from ._temperature import suggest_tau
from .functional import binary_argmax, hypersimplex_loss, soft_binary_argmax
from .order import isotonic_regression, sort
from .ranking import project_permutahedron, soft_rank, soft_sort

__all__ = [
    "__version__",
    "batch",
    "binary_argmax",
    "build_info",
    "functional",
    "hypersimplex_loss",
    "isotonic_regression",
    "nn",
    "project_permutahedron",
    "reference",
    "soft_binary_argmax",
    "soft_rank",
    "soft_sort",
    "sort",
    "suggest_tau",
]
