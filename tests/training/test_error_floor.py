"""Least squares through rounding: where training ends is set by how well the grid holds the weights in their basis."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


def test_the_floor_follows_the_error_of_the_converged_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theory of RoSTE arXiv:2502.09003: floor <= constant x ||Q(R w) - R w||^2, over eleven bases and four problems."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    module = importlib.import_module("error_floor")
    found = module.floors_and_errors()
    assert module.correlations(found)["logarithms"] > 0.9
    (first_floor, first_error), *_, (last_floor, last_error) = found.mean(0)
    assert last_floor < 0.5 * first_floor and last_error < 0.5 * first_error  # a rotation lowers both
