"""Gradient descent on the retain set, its loss multiplied by a constant: does a method notice the scale of a loss?

    loss = scale * (-mean over sequences of (mean over labelled tokens of log p))
A file of one's own, as `letheon forget --retain-term ./scaled_gdr.py` takes it.

Source: this project.  Checked against: scale = 1 is gdr.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ScaledGDR:
    """Settings."""

    scale: float = 1.0
    """What the loss is multiplied with, > 0."""

    denominator: ClassVar[Literal["sequence"]] = "sequence"
    needs: ClassVar[tuple[str, ...]] = ("log_probs",)
    reduction: ClassVar[Literal["mean"]] = "mean"

    def loss(self, current: Tensor) -> tuple[Tensor, int]:
        """Sum of -scale log p over the batch, and how many sequences it holds."""
        return -self.scale * current.sum(), len(current)
