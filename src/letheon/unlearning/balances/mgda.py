"""Take the shortest gradient between the two: the one step that lowers both losses equally.

    step gradient = c g_r + (1 - c) g_f,   c = clip((||g_f||^2 - <g_f, g_r>) / ||g_f - g_r||^2, 0, 1)
g_f is the gradient of the forget loss that is minimised; written with the paper's g_F = -g_f the product changes its
sign. Inside the clip <g_f, step> = <g_r, step> = ||step||^2. The shorter gradient counts more, so scales decide, unlike
in ngdiff. A gradient shorter than 1e-12 is dropped and the other one taken as it is.

Source: Sener and Koltun 2018, arXiv:1810.04650, the case of two tasks.
Checked against: a search over c, equal slopes, equal lengths = ngdiff's direction, equal and opposite gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from letheon.unlearning.geometry import Pair, measure, weighted_sum


@dataclass(frozen=True, kw_only=True)
class MGDA:
    """No settings."""

    is_linear: ClassVar[bool] = False
    is_shareable: ClassVar[bool] = True
    """Several processes, each with a share of every weight, give what one gives."""
    needs_retain: ClassVar[bool] = True
    """With the retain gradient missing there is nothing to balance."""

    def coefficients(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """What the forget and the retain gradient are multiplied with; they add up to 1 unless one was dropped."""
        apart = pair.forget_norm**2 + pair.retain_norm**2 - 2 * pair.product
        inside = torch.clamp((pair.forget_norm**2 - pair.product) / apart, 0.0, 1.0)
        share = torch.where(apart <= 0, 0.5, inside)  # where the two are equal, every share gives the same
        return (
            torch.where(pair.has_forget, torch.where(pair.has_retain, 1 - share, 1.0), 0.0),
            torch.where(pair.has_retain, torch.where(pair.has_forget, share, 1.0), 0.0),
        )

    def combine(self, forget: Sequence[Tensor], retain: Sequence[Tensor]) -> list[Tensor]:
        """One gradient from two, tensor by tensor."""
        forget_weight, retain_weight = self.coefficients(measure(forget, retain))
        return weighted_sum(forget, forget_weight, retain, retain_weight)
