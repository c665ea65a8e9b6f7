"""A linear fall to zero after a linear warm-up.

    factor(t) = (t + 1) / w  for t < w,  else  (T - t) / (T - w)        w = warmup * T

Source: the schedule of most fine-tuning recipes (Hugging Face's default).  Checked against: the values by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from letheon.errors import require


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Settings of the linear schedule."""

    warmup: float = 0.0
    """Share of all steps over which the rate rises from near zero, 0 to 1."""

    def __post_init__(self) -> None:
        require(0 <= self.warmup < 1, f"linear needs 0 <= warmup < 1, got {self.warmup}")

    def factor(self, step: int, steps: int) -> float:
        """What the base rate is multiplied with at a step (0-based), 0 to 1; never 0 within the run."""
        rising = self.warmup * steps
        if step < rising:
            return min(1.0, (step + 1) / rising)
        return (steps - step) / (steps - rising)
