"""No smoothing: the gradient of the loss where the weights stand.

    gradient = grad loss(w)

Source: the published baselines.  Checked against: the gradient of the loss itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from letheon.training.gradients import Gradient


@dataclass(frozen=True, kw_only=True)
class NoSmoothing:
    """No settings."""

    is_identity: ClassVar[bool] = True
    """The loss's own gradient is used, so that it may be computed together with another's."""
    is_shareable: ClassVar[bool] = True
    """Several processes, each with a share of every weight, give what one gives."""

    def init(self, parameters: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """No memory."""
        return {}

    def wrap(self, gradient: Gradient, parameters: Sequence[Tensor], state: dict[str, Tensor]) -> Gradient:
        """The gradient as it is."""
        return gradient
