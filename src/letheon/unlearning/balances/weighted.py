"""A fixed weighted sum of the two gradients.

    step gradient = forget_weight * grad(forget) + alpha * grad(retain)
Being linear, it is computed as one backward pass of the weighted losses.

Source: the total loss L_f + alpha L_r of MUSE, arXiv:2407.06460.
Checked against: the sum of the two gradients made apart, alpha = 0 and no retain term at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from letheon.errors import require


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """Settings of the weighted sum."""

    alpha: float = 1.0
    """Weight of the retain gradient, >= 0."""
    forget_weight: float = 1.0
    """Weight of the forget gradient, > 0."""

    is_linear: ClassVar[bool] = True
    """The combination is a fixed linear one, so one joint backward pass gives it."""
    is_shareable: ClassVar[bool] = True
    """Several processes, each with a share of every weight, give what one gives."""

    def __post_init__(self) -> None:
        require(self.alpha >= 0, f"weighted needs alpha >= 0, got {self.alpha}")
        require(self.forget_weight > 0, f"weighted needs forget_weight > 0, got {self.forget_weight}")

    @property
    def weights(self) -> tuple[float, float]:
        """(forget, retain)."""
        return self.forget_weight, self.alpha

    def combine(self, forget: Sequence[Tensor], retain: Sequence[Tensor]) -> list[Tensor]:
        """One gradient from two, tensor by tensor."""
        if self.forget_weight == 1.0:
            return list(torch._foreach_add(list(forget), list(retain), alpha=self.alpha))
        scaled = torch._foreach_mul(list(forget), self.forget_weight)
        torch._foreach_add_(scaled, list(retain), alpha=self.alpha)
        return list(scaled)
