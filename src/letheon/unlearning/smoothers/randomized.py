"""Randomized smoothing of the forget term: forget on average over a cloud of weights.

    gradient = mean over K draws of grad loss(w + delta),   delta ~ N(0, sigma^2) for each weight
E ||delta|| = sigma * sqrt(number of moving weights), so sigma and sam's rho are not comparable.

Source: arXiv:2502.05374 (there without clipping, since its optimizer stepped before; here clipped like all others).
Checked against: sigma = 0 bit for bit, the mean of a quadratic's gradients, a run stopped and continued.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from letheon.errors import require
from letheon.training.gradients import Gradient, Gradients, Parts
from letheon.training.sharding import laid_out
from letheon.unlearning.perturbing import moved


@dataclass(frozen=True, kw_only=True)
class RandomizedSmoothing:
    """Settings of randomized smoothing."""

    sigma: float = 1e-4
    """Standard deviation for each weight, >= 0."""
    samples: int = 3
    """Draws a step, >= 1."""

    is_identity: ClassVar[bool] = False
    draws_everywhere: ClassVar[bool] = True
    """It looks at no gradient, so nothing keeps its draws to the units that a step chooses."""
    is_shareable: ClassVar[bool] = True
    """Several processes, each with a share of every weight, give what one gives."""

    def __post_init__(self) -> None:
        require(math.isfinite(self.sigma) and self.sigma >= 0, f"randomized needs sigma >= 0, got {self.sigma}")
        require(self.samples >= 1, f"randomized needs samples >= 1, got {self.samples}")

    def init(self, parameters: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """The state of the generator, so that a run that is continued draws on."""
        return {"generator": torch.Generator().manual_seed(seed).get_state()}

    def wrap(self, gradient: Gradient, parameters: Sequence[Tensor], state: dict[str, Tensor]) -> Gradient:
        """The mean gradient over draws around the weights."""
        if self.sigma == 0:
            return gradient

        def smoothed(model: Any, parts: Parts) -> Gradients:
            generator = torch.Generator()  # on the CPU: the same draws on every device
            generator.set_state(state["generator"])
            total: list[Tensor] = []
            figures: dict[str, float] = {}
            for _ in range(self.samples):
                noise = [laid_out(torch.randn(weight.shape, generator=generator), weight) for weight in parameters]
                with moved(parameters, noise, self.sigma):
                    found = gradient(model, parts)
                if total:
                    torch._foreach_add_(total, found.tensors)
                else:
                    total = found.tensors
                for name, value in found.figures.items():
                    figures[name] = figures.get(name, 0.0) + value / self.samples
            state["generator"].copy_(generator.get_state())
            torch._foreach_div_(total, float(self.samples))
            return Gradients(total, figures)

        return smoothed
