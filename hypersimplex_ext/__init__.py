"""Differentiable top-k and zero-one loss through Euclidean projection onto the hypersimplex."""

from . import functional, nn, reference
from ._build_info import build_info
from .functional import binary_argmax, hypersimplex_loss, soft_binary_argmax

__all__ = ["binary_argmax", "build_info", "functional", "hypersimplex_loss", "nn", "reference", "soft_binary_argmax"]
