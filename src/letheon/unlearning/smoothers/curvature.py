"""Penalize the forget term's curvature along its own gradient.

    g = grad loss(w),  v = g / ||g||,  d = grad loss(w + h v) - g          penalty = mu * ||d||,  v held fixed
    gradient = g + mu * (H(w + h v) - H(w)) d / ||d||                     H: Hessian, times d exactly
The published code has neither the penalty's gradient nor a way to be called; this follows its formula.

Source: arXiv:2502.05374.
Checked against: the penalty h ||A v|| of a quadratic, finite differences with v fixed, mu = 0 bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from letheon.errors import require
from letheon.training.gradients import CurvedGradient, Gradient, Gradients, Parts, global_norm
from letheon.unlearning.perturbing import moved


@dataclass(frozen=True, kw_only=True)
class Curvature:
    """Settings of curvature regularization."""

    mu: float = 10.0
    """Weight of the penalty, >= 0."""
    h: float = 0.01
    """Length of the step along the gradient, > 0, in the norm over all moving weights."""

    is_identity: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(math.isfinite(self.mu) and self.mu >= 0, f"curvature needs mu >= 0, got {self.mu}")
        require(math.isfinite(self.h) and self.h > 0, f"curvature needs h > 0, got {self.h}")

    def init(self, parameters: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """No memory."""
        return {}

    def wrap(self, gradient: CurvedGradient, parameters: Sequence[Tensor], state: dict[str, Tensor]) -> Gradient:
        """The gradient of loss and penalty."""
        if self.mu == 0:
            return gradient

        def smoothed(model: Any, parts: Parts) -> Gradients:
            here = gradient(model, parts)
            norm = float(global_norm(here.tensors))
            if norm == 0 or not math.isfinite(norm):
                return here
            scale = self.h / norm
            with moved(parameters, here.tensors, scale):
                change = gradient(model, parts).tensors
            torch._foreach_sub_(change, here.tensors)
            size = float(global_norm(change))
            if size == 0 or not math.isfinite(size):
                return here
            with moved(parameters, here.tensors, scale):
                curved = gradient.times_hessian(model, parts, change)
            torch._foreach_sub_(curved, gradient.times_hessian(model, parts, change))
            torch._foreach_add_(here.tensors, curved, alpha=self.mu / size)
            return Gradients(here.tensors, {**here.figures, "penalty": self.mu * size})

        return smoothed
