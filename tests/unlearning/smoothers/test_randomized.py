"""Randomized smoothing: the mean over its draws, and draws that a continued run goes on with."""

from __future__ import annotations

import pytest
import torch

from letheon.errors import BadInput
from letheon.unlearning.smoothers.randomized import RandomizedSmoothing
from tests.unlearning.smoothers.quadratic import flat, quadratic


def test_no_noise_is_the_gradient_itself() -> None:
    loss, gradient, _ = quadratic()
    assert RandomizedSmoothing(sigma=0.0).wrap(gradient, loss.parameters, {}) is gradient


def test_on_a_quadratic_it_is_the_slope_at_the_mean_draw() -> None:
    loss, gradient, parts = quadratic()
    before = loss.place
    smoother = RandomizedSmoothing(sigma=0.3, samples=4)
    generator = torch.Generator().manual_seed(5)
    draws = [flat([torch.randn(weight.shape, generator=generator) for weight in loss.parameters]) for _ in range(4)]
    found = smoother.wrap(gradient, loss.parameters, smoother.init({}, 5))(None, parts)
    wanted = loss.slope(loss.place + 0.3 * torch.stack(draws).double().mean(0))
    torch.testing.assert_close(flat(found.tensors), wanted, rtol=1e-6, atol=1e-9)
    assert torch.equal(loss.place, before)


def test_at_the_bottom_its_mean_loss_is_half_the_trace() -> None:
    loss, gradient, parts = quadratic()
    with torch.no_grad():
        loss.parameters[0].copy_(loss.centre[:2])
        loss.parameters[1].copy_(loss.centre[2:, None])
    smoother = RandomizedSmoothing(sigma=0.1, samples=4000)
    found = smoother.wrap(gradient, loss.parameters, smoother.init({}, 0))(None, parts)
    assert found.figures["forget_loss"] == pytest.approx(0.5 * 0.1**2 * float(loss.matrix.trace()), rel=0.08)


def test_the_second_step_draws_anew_and_a_restored_state_draws_the_same() -> None:
    loss, gradient, parts = quadratic()
    smoother = RandomizedSmoothing(sigma=0.3, samples=2)
    state = smoother.init({}, 1)
    step = smoother.wrap(gradient, loss.parameters, state)
    first = flat(step(None, parts).tensors)
    saved = state["generator"].clone()
    second = flat(step(None, parts).tensors)
    assert not torch.equal(first, second)
    state["generator"].copy_(saved)  # as the loop restores a checkpoint
    assert torch.equal(flat(step(None, parts).tensors), second)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sigma": -1.0}, "sigma >= 0, got -1.0"),
        ({"sigma": float("nan")}, "sigma >= 0"),
        ({"samples": 0}, "samples >= 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        RandomizedSmoothing(**settings)  # type: ignore[arg-type]
