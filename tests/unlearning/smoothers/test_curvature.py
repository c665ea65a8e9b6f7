"""Curvature regularization: nothing on a quadratic but the penalty's value; finite differences on a bent loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.training.gradients import MeanGradient
from letheon.unlearning.smoothers.curvature import Curvature
from tests.unlearning.smoothers.quadratic import flat, quadratic, share


def test_a_quadratics_penalty_is_the_matrix_along_the_slope_and_has_no_gradient() -> None:
    loss, gradient, parts = quadratic()
    slope = loss.slope(loss.place)
    found = Curvature(mu=2.0, h=0.01).wrap(gradient, loss.parameters, {})(None, parts)
    along = slope / slope.norm()
    assert found.figures["penalty"] == pytest.approx(2.0 * 0.01 * float((loss.matrix @ along).norm()))
    torch.testing.assert_close(flat(found.tensors), slope)  # its Hessian is the same everywhere


@dataclass(frozen=True)
class Bent:
    """sum of w^4 / 4 + w_0 w_1^2: third derivatives that are not 0."""

    weight: Tensor

    def __call__(self, model: Any, batch: Any) -> tuple[Tensor, int]:
        return batch.size * bent(self.weight), batch.size

    def count(self, batch: Any) -> int:
        return int(batch.size)


def bent(weight: Tensor) -> Tensor:
    return (weight**4).sum() / 4 + weight[0] * weight[1] ** 2


def slope_of(weight: Tensor) -> Tensor:
    place = weight.detach().clone().requires_grad_(True)
    return torch.autograd.grad(bent(place), place)[0]


def test_it_is_the_slope_of_loss_and_penalty_with_the_direction_held() -> None:
    weight = torch.tensor([0.5, -1.2, 0.8], dtype=torch.float64, requires_grad=True)
    gradient = MeanGradient(Bent(weight), "forget", [weight])
    parts = {"forget": [share(2), share(1)]}
    found = flat(Curvature(mu=3.0, h=0.2).wrap(gradient, [weight], {})(None, parts).tensors)
    along = slope_of(weight) / slope_of(weight).norm()

    def value(place: Tensor) -> float:
        return float(bent(place) + 3.0 * (slope_of(place + 0.2 * along) - slope_of(place)).norm())

    for entry in range(3):
        nudge = torch.zeros(3, dtype=torch.float64)
        nudge[entry] = 1e-6
        here = weight.detach()
        assert float(found[entry]) == pytest.approx((value(here + nudge) - value(here - nudge)) / 2e-6, rel=1e-5)
    assert (found - slope_of(weight)).norm() > 0.1


def test_no_weight_is_no_penalty() -> None:
    loss, gradient, _ = quadratic()
    assert Curvature(mu=0.0).wrap(gradient, loss.parameters, {}) is gradient


@pytest.mark.parametrize(("settings", "words"), [({"mu": -1.0}, "mu >= 0, got -1.0"), ({"h": 0.0}, "h > 0, got 0.0")])
def test_impossible_settings_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Curvature(**settings)
