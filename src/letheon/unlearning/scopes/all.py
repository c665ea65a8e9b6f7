"""Every weight may move.

Source: the published baselines.  Checked against: each tensor of a trained model has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class All:
    """No settings."""

    is_shareable: ClassVar[bool] = True
    """Several processes, each with a share of every weight, give what one gives."""

    def select(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that may move; tied parameters once."""
        return dict(model.named_parameters())

    def init(self, model: nn.Module, moving: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """No state."""
        return {}

    def after_step(self, moving: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
        """Nothing to put back."""
