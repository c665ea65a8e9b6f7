"""Keep of the forget gradient only what leaves the retain loss alone to first order, and add the retain gradient.

    step gradient = g_r + (g_f - <g_f, g_r> g_r / ||g_r||^2)
g_f is the gradient of the forget loss that is minimised (the paper's -g_F). The projection is made at every step, also
where the two agree: <g_r, step> = ||g_r||^2 always, and nothing is promised to the forget loss beyond what is left. A
gradient shorter than 1e-12 is dropped: nothing is divided by its length.

Source: the orthogonal baseline of arXiv:2410.22086.
Checked against: the projection by hand, the retain slope, a forget gradient along the retain gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from letheon.unlearning.geometry import Pair, measure, weighted_sum


@dataclass(frozen=True, kw_only=True)
class Orthogonal:
    """No settings."""

    is_linear: ClassVar[bool] = False
    is_shareable: ClassVar[bool] = True
    """Several processes, each with a share of every weight, give what one gives."""
    needs_retain: ClassVar[bool] = True
    """With the retain gradient missing there is nothing to be orthogonal to."""

    def coefficients(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """What the forget and the retain gradient are multiplied with."""
        overlap = torch.where(pair.has_forget, pair.product / pair.retain_norm**2, 0.0)
        return pair.has_forget.to(overlap), torch.where(pair.has_retain, 1 - overlap, 0.0)

    def combine(self, forget: Sequence[Tensor], retain: Sequence[Tensor]) -> list[Tensor]:
        """One gradient from two, tensor by tensor."""
        forget_weight, retain_weight = self.coefficients(measure(forget, retain))
        return weighted_sum(forget, forget_weight, retain, retain_weight)
