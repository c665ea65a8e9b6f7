"""Arithmetic that several floors share: low-bit grids, intervals over units, scores of answers."""
