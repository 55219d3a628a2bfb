"""Boosted trees on tables: the HyperSimplex objectives beside the libraries' own."""
