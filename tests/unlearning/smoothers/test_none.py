"""No smoothing: the gradient itself."""

from __future__ import annotations

from typing import Any

from letheon.training.gradients import Gradients
from letheon.unlearning.smoothers.none import NoSmoothing


def test_the_gradient_is_handed_on() -> None:
    def gradient(model: Any, parts: Any) -> Gradients:
        return Gradients([], {})

    assert NoSmoothing().wrap(gradient, [], {}) is gradient
    assert NoSmoothing.is_identity
