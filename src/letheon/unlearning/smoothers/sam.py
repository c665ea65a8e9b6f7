"""Sharpness-aware minimization of the forget term: forget also where a small change of weights would undo it.

    g = grad loss(w),   eps = rho * g / ||g||,   gradient = grad loss(w + eps)         ||.||: L2 over all moving weights
For gradient ascent eps lowers the loss of the answers: it imitates one step of relearning. The same batch is used for
both passes, the retain term is taken at w, and no second-order term is kept.

Source: Foret et al. 2021, arXiv:2010.01412; for unlearning arXiv:2502.05374.
Checked against: the closed form on a quadratic, rho = 0 bit for bit, ||eps|| = rho, the slope ||g|| as rho -> 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from letheon.errors import require
from letheon.training.gradients import Gradient, Gradients, Parts, global_norm
from letheon.unlearning.perturbing import moved


@dataclass(frozen=True, kw_only=True)
class SAM:
    """Settings of sharpness-aware minimization."""

    rho: float = 0.01
    """Radius, >= 0, of the perturbation in the norm over all moving weights. The paper: 0.01 for 7 billion weights."""

    is_identity: ClassVar[bool] = False
    is_shareable: ClassVar[bool] = True
    """Several processes, each with a share of every weight, give what one gives."""

    def __post_init__(self) -> None:
        require(math.isfinite(self.rho) and self.rho >= 0, f"sam needs rho >= 0, got {self.rho}")

    def init(self, parameters: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """No memory."""
        return {}

    def wrap(self, gradient: Gradient, parameters: Sequence[Tensor], state: dict[str, Tensor]) -> Gradient:
        """The gradient at the worst point near by."""

        def smoothed(model: Any, parts: Parts) -> Gradients:
            here = gradient(model, parts)
            norm = float(global_norm(here.tensors))
            if self.rho == 0 or norm == 0 or not math.isfinite(norm):  # what is not finite is the loop's to report
                return here
            with moved(parameters, here.tensors, self.rho / norm) as cosine:
                there = gradient(model, parts)
            figures = {f"perturbed_{name}": value for name, value in there.figures.items()}
            return Gradients(there.tensors, {**here.figures, **figures, "perturbation_cosine": cosine})

        return smoothed
