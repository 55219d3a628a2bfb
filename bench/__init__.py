"""Experiments and benchmarks of hypersimplex_ext."""
