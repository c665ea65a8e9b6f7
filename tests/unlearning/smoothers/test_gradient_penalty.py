"""The gradient penalty against its closed form, finite differences and a real model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.unlearning.smoothers.gradient_penalty import GradientPenalty
from letheon.unlearning.smoothers.sam import SAM
from tests.unlearning.smoothers.quadratic import flat, quadratic


@pytest.mark.parametrize("mu", [0.1, 10.0])
def test_the_penalty_has_a_gradient_and_it_is_the_real_one(mu: float) -> None:
    loss, gradient, parts = quadratic()
    slope = loss.slope(loss.place)
    found = GradientPenalty(mu=mu).wrap(gradient, loss.parameters, {})(None, parts)
    torch.testing.assert_close(flat(found.tensors), slope + mu * loss.matrix @ slope / slope.norm())
    assert found.figures["penalty"] == pytest.approx(mu * float(slope.norm()))
    assert (flat(found.tensors) - slope).norm() > 0.01  # what a detached penalty would leave is the slope alone


def test_it_is_the_slope_of_loss_and_norm_by_finite_differences() -> None:
    loss, gradient, parts = quadratic(3)
    found = flat(GradientPenalty(mu=0.7).wrap(gradient, loss.parameters, {})(None, parts).tensors)

    def value(place: Tensor) -> float:
        away = place - loss.centre
        return float(0.5 * away @ loss.matrix @ away + 0.7 * loss.slope(place).norm())

    for entry in range(5):
        nudge = torch.zeros(5, dtype=torch.float64)
        nudge[entry] = 1e-6
        wanted = (value(loss.place + nudge) - value(loss.place - nudge)) / 2e-6
        assert float(found[entry]) == pytest.approx(wanted, rel=1e-6)


def test_a_small_radius_of_sam_is_this_penalty() -> None:
    loss, gradient, parts = quadratic()
    gaps = []
    for radius in (1e-1, 1e-2):
        sharp = flat(SAM(rho=radius).wrap(gradient, loss.parameters, {})(None, parts).tensors)
        flat_one = flat(GradientPenalty(mu=radius).wrap(gradient, loss.parameters, {})(None, parts).tensors)
        gaps.append(float((sharp - flat_one).norm()))
    assert gaps[1] <= 0.02 * gaps[0] + 1e-12  # O(rho^2); on a quadratic the two are equal


def test_no_weight_is_no_penalty() -> None:
    loss, gradient, _ = quadratic()
    assert GradientPenalty(mu=0.0).wrap(gradient, loss.parameters, {}) is gradient


def test_an_impossible_weight_is_refused() -> None:
    with pytest.raises(BadInput, match=r"gradient_penalty needs mu >= 0, got -1\.0"):
        GradientPenalty(mu=-1.0)
