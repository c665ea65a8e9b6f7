"""Bring both gradients to length 1 and add them: no weight to choose, and neither loss is sacrificed to the other.

    step gradient = g_f / ||g_f|| + g_r / ||g_r||             ||.||: L2 over all moving weights
g_f is the gradient of the forget loss that is minimised; for gradient_ascent it is the paper's -g_F. The step halves
the angle between the two, so to first order both losses fall, whatever their scales:
    <g_r, step> = ||g_r|| (1 + cosine),   <g_f, step> = ||g_f|| (1 + cosine),   ||step||^2 = 2 (1 + cosine) <= 4
AdamW rescales entries and voids that promise; SGD keeps it. The two are made of the whole logical batch first, and
nothing is added to a length: a gradient shorter than 1e-12 is dropped, and the log says so. The forget gradient never
fades, so a run needs something that ends it.

Source: arXiv:2410.22086.
Checked against: the three closed forms, rescaled losses bit for bit, the static weight it amounts to, parallel,
opposite and vanishing gradients, finite differences on a small network, two quadratics of scales 1 : 1000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from letheon.unlearning.geometry import Pair, measure, weighted_sum


@dataclass(frozen=True, kw_only=True)
class NGDiff:
    """No settings: that is its point."""

    is_linear: ClassVar[bool] = False
    is_shareable: ClassVar[bool] = True
    """Several processes, each with a share of every weight, give what one gives."""
    needs_retain: ClassVar[bool] = True
    """With the retain gradient missing there is nothing to balance."""
    fixes_norm: ClassVar[bool] = True
    """The length of the step is a statement (how far the two agree), which clipping would overwrite."""

    def coefficients(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """What the forget and the retain gradient are multiplied with: 1 / length, or 0 for a dropped one."""
        return (
            torch.where(pair.has_forget, 1 / pair.forget_norm, 0.0),
            torch.where(pair.has_retain, 1 / pair.retain_norm, 0.0),
        )

    def combine(self, forget: Sequence[Tensor], retain: Sequence[Tensor]) -> list[Tensor]:
        """One gradient from two, tensor by tensor."""
        forget_weight, retain_weight = self.coefficients(measure(forget, retain))
        return weighted_sum(forget, forget_weight, retain, retain_weight)
