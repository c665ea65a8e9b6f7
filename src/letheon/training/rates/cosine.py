"""Half a cosine from the full rate to a floor, after a linear warm-up.

    factor(t) = (t + 1) / w  for t < w,  else  floor + (1 - floor) (1 + cos(pi (t - w) / (T - w))) / 2
    w = warmup * T

Source: Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts.  Checked against: the values by hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from letheon.errors import require


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Settings of the cosine schedule."""

    warmup: float = 0.06
    """Share of all steps over which the rate rises from near zero, 0 to 1."""
    floor: float = 0.05
    """Share of the base rate that is left at the end, 0 to 1."""

    def __post_init__(self) -> None:
        require(0 <= self.warmup < 1, f"cosine needs 0 <= warmup < 1, got {self.warmup}")
        require(0 <= self.floor <= 1, f"cosine needs 0 <= floor <= 1, got {self.floor}")

    def factor(self, step: int, steps: int) -> float:
        """What the base rate is multiplied with at a step (0-based), 0 to 1."""
        rising = self.warmup * steps
        if step < rising:
            return min(1.0, (step + 1) / rising)
        turned = math.pi * (step - rising) / max(1.0, steps - rising)
        return self.floor + (1 - self.floor) * (1 + math.cos(turned)) / 2
