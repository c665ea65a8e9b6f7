"""Sharpness-aware minimization on a quadratic, whose gradient it must have in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from letheon.errors import BadInput, CannotFinish
from letheon.training.gradients import Gradients
from letheon.unlearning.smoothers.sam import SAM
from tests.unlearning.smoothers.quadratic import flat, quadratic


@pytest.mark.parametrize("rho", [0.01, 0.5])
def test_the_gradient_is_that_of_the_worst_point_near_by(rho: float) -> None:
    loss, gradient, parts = quadratic()
    slope = loss.slope(loss.place)
    found = SAM(rho=rho).wrap(gradient, loss.parameters, {})(None, parts)
    wanted = loss.matrix @ (loss.place - loss.centre + rho * slope / slope.norm())
    torch.testing.assert_close(flat(found.tensors), wanted)


def test_the_weights_are_what_they_were_to_the_bit_and_the_radius_is_global() -> None:
    loss, gradient, parts = quadratic()
    before = [parameter.detach().clone() for parameter in loss.parameters]
    seen: list[torch.Tensor] = []

    def spy(model: Any, parts: Any) -> Gradients:
        seen.append(loss.place)
        return gradient(model, parts)

    SAM(rho=0.3).wrap(spy, loss.parameters, {})(None, parts)
    assert float((seen[1] - seen[0]).norm()) == pytest.approx(0.3, rel=1e-5)
    assert all(torch.equal(one, other) for one, other in zip(before, loss.parameters, strict=True))


def test_a_zero_radius_is_the_gradient_itself_to_the_bit() -> None:
    loss, gradient, parts = quadratic()
    found, wanted = SAM(rho=0.0).wrap(gradient, loss.parameters, {})(None, parts), gradient(None, parts)
    assert all(torch.equal(one, other) for one, other in zip(found.tensors, wanted.tensors, strict=True))


def test_the_rise_over_the_radius_tends_to_the_slope() -> None:
    loss, gradient, parts = quadratic()
    slope = float(loss.slope(loss.place).norm())
    gaps = []
    for rho in (1e-2, 1e-3):
        figures = SAM(rho=rho).wrap(gradient, loss.parameters, {})(None, parts).figures
        gaps.append(abs((figures["perturbed_forget_loss"] - figures["forget_loss"]) / rho - slope))
    assert gaps[1] < 0.2 * gaps[0] and gaps[1] < 0.01 * slope


def test_where_there_is_no_slope_nothing_is_perturbed() -> None:
    loss, gradient, parts = quadratic()
    with torch.no_grad():
        loss.parameters[0].copy_(loss.centre[:2])
        loss.parameters[1].copy_(loss.centre[2:, None])
    found = SAM(rho=0.1).wrap(gradient, loss.parameters, {})(None, parts)
    assert flat(found.tensors).abs().max() == 0


def test_a_broken_gradient_is_left_to_the_loop() -> None:
    broken = [torch.tensor([float("nan")])]
    found = SAM(rho=0.1).wrap(lambda model, parts: Gradients(broken, {}), [torch.ones(1)], {})(None, {})
    assert found.tensors is broken


def test_weights_too_coarse_for_the_radius_are_refused() -> None:
    weights = [torch.full((50,), 0.5, dtype=torch.bfloat16)]
    away = Gradients([torch.linspace(-1, 1, 50)], {})
    with pytest.raises(
        CannotFinish, match=r"bfloat16 cannot hold a perturbation so small.*Keep float32 master weights"
    ):
        SAM(rho=1e-4).wrap(lambda model, parts: away, weights, {})(None, {})
    assert torch.equal(weights[0], torch.full((50,), 0.5, dtype=torch.bfloat16))
    SAM(rho=10.0).wrap(lambda model, parts: away, weights, {})(None, {})


@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf")])
def test_an_impossible_radius_is_refused(rho: float) -> None:
    with pytest.raises(BadInput, match="sam needs rho >= 0"):
        SAM(rho=rho)
