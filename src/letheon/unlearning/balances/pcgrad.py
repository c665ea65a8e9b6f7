"""Where the two gradients conflict, take out of each what works against the other; elsewhere add them as they are.

    <g_f, g_r> < 0:  step gradient = (g_f - <g_f, g_r> g_r / ||g_r||^2) + (g_r - <g_f, g_r> g_f / ||g_f||^2)
    otherwise:       step gradient = g_f + g_r
g_f is the gradient of the forget loss that is minimised, so a conflict is where the paper's g_F and g_r agree. Each is
projected off the other as it was, so with two tasks there is no order to draw. A gradient shorter than 1e-12 is
dropped: nothing is divided by its length.

Source: Yu et al. 2020, arXiv:2001.06782, the case of two tasks.
Checked against: projections by hand, no first-order harm to either loss, the plain sum without a conflict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from letheon.unlearning.geometry import Pair, measure, weighted_sum


@dataclass(frozen=True, kw_only=True)
class PCGrad:
    """No settings."""

    is_linear: ClassVar[bool] = False
    is_shareable: ClassVar[bool] = True
    """Several processes, each with a share of every weight, give what one gives."""
    needs_retain: ClassVar[bool] = True
    """With the retain gradient missing there is nothing to balance."""

    def coefficients(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """What the forget and the retain gradient are multiplied with; both 1 without a conflict, 0 for a dropped one.

        The two projections together are a weighted sum of the two gradients again.
        """
        is_conflict = (pair.product < 0) & pair.has_forget & pair.has_retain
        return (
            torch.where(is_conflict, 1 - pair.product / pair.forget_norm**2, pair.has_forget.to(pair.product)),
            torch.where(is_conflict, 1 - pair.product / pair.retain_norm**2, pair.has_retain.to(pair.product)),
        )

    def combine(self, forget: Sequence[Tensor], retain: Sequence[Tensor]) -> list[Tensor]:
        """One gradient from two, tensor by tensor."""
        forget_weight, retain_weight = self.coefficients(measure(forget, retain))
        return weighted_sum(forget, forget_weight, retain, retain_weight)
