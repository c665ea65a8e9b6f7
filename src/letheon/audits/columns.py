"""What stands in a column of the matrix, and the scores that fill it.

Source: this project.  Checked against: the aggregates of every test that reads an audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from letheon.numerics.scores import auc

Aggregate = Literal["mean", "auc", "exp_mean"]
Bounds = tuple[float, float]


@dataclass(frozen=True)
class Column:
    """One column: what its numbers are and how items become one number."""

    label: str
    about: Literal["forget", "membership", "utility"]
    aggregate: Aggregate = "mean"
    """mean over items; auc of members over non-members; exp_mean: exp of the mean (a perplexity)."""
    better: Literal["low", "high", "control"] = "low"
    """For a model that has forgotten and is still useful."""
    top: float | None = 1.0
    """Largest possible value; null where there is none."""
    asked_of: Literal["questions", "texts", "wrong answers"] = "questions"
    """Which records of the forget set it needs; without any, the column is not applicable."""


@dataclass(frozen=True)
class Scores:
    """One number an item, for one column of one model under one condition."""

    items: Sequence[str]
    units: Sequence[str]
    values: Sequence[float]
    member: Sequence[int] | None = None
    """For an auc: 1 for items of the forget set, 0 for strangers; higher values are more familiar."""

    def aggregate(self, how: Aggregate) -> float:
        """The column's number."""
        values = np.asarray(self.values, dtype=np.float64)
        if how == "auc":
            is_member = np.asarray(self.member) == 1
            return auc(values[is_member], values[~is_member])
        mean = float(values.mean())
        return float(np.exp(mean)) if how == "exp_mean" else mean

    @property
    def n_units(self) -> int:
        """Distinct units."""
        return len(set(self.units))

    def rounded(self) -> Scores:
        """Eight digits a value: what a file keeps, so that everything made from it can be made again to the bit."""
        return replace(self, values=[float(f"{value:.8g}") for value in self.values])
