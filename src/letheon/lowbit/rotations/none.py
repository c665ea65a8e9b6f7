"""No rotation: weights are rounded in the basis they were trained in.

    R = I
The model that other software knows best, and the baseline of the other rotations.

Source: this project.  Checked against: nothing of a model changes, bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from letheon.lowbit.online import OnlineRotations
from letheon.lowbit.rotating import Rotated


@dataclass(frozen=True, kw_only=True)
class NoRotation:
    """No settings."""

    needs: ClassVar[tuple[str, ...]] = ()

    def check(self, model: Any) -> None:
        """Every model can be left as it is."""

    def rotate(self, model: Any, calibration: object = None) -> Rotated:
        """Do nothing."""
        return Rotated(online=OnlineRotations(), is_untied=False)
