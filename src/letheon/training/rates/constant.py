"""The same learning rate at every step, after an optional linear warm-up.

    factor(t) = min(1, (t + 1) / (warmup * T))        t = 0 .. T-1

Source: the MUSE and SURE training scripts use a constant rate.  Checked against: the values by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from letheon.errors import require


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Settings of the constant rate."""

    warmup: float = 0.0
    """Share of all steps over which the rate rises from near zero, 0 to 1."""

    def __post_init__(self) -> None:
        require(0 <= self.warmup < 1, f"constant needs 0 <= warmup < 1, got {self.warmup}")

    def factor(self, step: int, steps: int) -> float:
        """What the base rate is multiplied with at a step (0-based), 0 to 1."""
        rising = self.warmup * steps
        return min(1.0, (step + 1) / rising) if rising >= 1 else 1.0
