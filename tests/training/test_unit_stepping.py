"""Steps in some units: each moves as PyTorch's AdamW alone would move it, and the others keep every bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from letheon.training.active import Active
from letheon.training.stepping import MOMENTS, OptimizerSettings, make_optimizer
from letheon.training.unit_stepping import UnitSteps
from tests.toys import bits

RATE, STEPS = 0.03, 12
KINDS = {"rows": (0, False), "columns": (1, False), "entries": (0, True)}


def units_of(tensor: torch.Tensor, dim: int, is_flat: bool) -> list[torch.Tensor]:
    """Every unit as a tensor of its own."""
    view = tensor.detach().reshape(-1) if is_flat else tensor.detach()
    return [one.clone() for one in view.unbind(dim)]


def chosen_at(step: int, count: int) -> list[int]:
    """Some units, others every step; the last is chosen late, and never the first."""
    generator = torch.Generator().manual_seed(step)
    drawn = torch.rand(count, generator=generator) < 0.5
    drawn[0], drawn[-1] = False, step >= STEPS - 3
    return torch.nonzero(drawn).flatten().tolist()


def gradient_at(step: int, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0 ** (-step % 3)


def made(weight: torch.Tensor, kind: str, settings: OptimizerSettings) -> tuple[nn.Parameter, UnitSteps, Any]:
    dim, is_flat = KINDS[kind]
    parameter = nn.Parameter(weight.clone())
    optimizer = make_optimizer([parameter], settings)
    count = parameter.numel() if is_flat else parameter.shape[dim]
    counts = {"w": torch.zeros(count, dtype=torch.int32)}
    return parameter, UnitSteps(optimizer, settings, {"w": parameter}, counts), optimizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_unit_moves_as_if_the_optimizer_had_seen_its_own_steps_alone(kind: str, name: Any) -> None:
    dim, is_flat = KINDS[kind]
    betas = {"betas": (0.8, 0.95)} if name == "adamw" else {}
    settings = OptimizerSettings(name=name, learning_rate=RATE, weight_decay=0.3, **betas)
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameter, steps, _ = made(weight, kind, settings)
    alone = [nn.Parameter(unit) for unit in units_of(weight, dim, is_flat)]
    optimizers = [make_optimizer([unit], settings) for unit in alone]
    for step in range(STEPS):
        chosen, gradient = chosen_at(step, len(alone)), gradient_at(step, (5, 4))
        steps.step([gradient], {"w": Active(torch.tensor(chosen, dtype=torch.long), dim, is_flat)}, RATE)
        slopes = units_of(gradient, dim, is_flat)
        for unit in chosen:
            alone[unit].grad = slopes[unit]
            optimizers[unit].step()
        for now, expected in zip(units_of(parameter, dim, is_flat), alone, strict=True):
            torch.testing.assert_close(now, expected.detach(), rtol=1e-10, atol=1e-12)
    assert bits(units_of(parameter, dim, is_flat)[0]) == bits(units_of(weight, dim, is_flat)[0])
    assert (int(steps.counts["w"][0]), int(steps.counts["w"][-1])) == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_chosen_keeps_every_bit_of_weight_moments_and_count(kind: str) -> None:
    dim, is_flat = KINDS[kind]
    settings = OptimizerSettings(learning_rate=RATE, weight_decay=0.3)
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    parameter, steps, optimizer = made(weight, kind, settings)

    def state() -> list[list[bytes]]:
        tensors = [parameter, *(optimizer.state[parameter][key] for key in MOMENTS["adamw"])]
        found = [[bits(unit) for unit in units_of(tensor, dim, is_flat)] for tensor in tensors]
        return [*found, [bits(count) for count in steps.counts["w"]]]

    steps.step([gradient_at(0, (5, 4)).float()], {}, RATE)
    assert bits(parameter) == bits(weight)
    for step in range(1, STEPS):
        before, chosen = state(), chosen_at(step, len(steps.counts["w"]))
        steps.step(
            [gradient_at(step, (5, 4)).float()],
            {"w": Active(torch.tensor(chosen, dtype=torch.long), dim, is_flat)},
            RATE,
        )
        for old, new in zip(before, state(), strict=True):
            changed = [unit for unit, (one, other) in enumerate(zip(old, new, strict=True)) if one != other]
            assert changed == chosen


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_step_is_the_one_that_was_foretold_and_asking_changes_nothing(name: Any) -> None:
    settings = OptimizerSettings(name=name, learning_rate=RATE, weight_decay=0.3)
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameter, steps, _ = made(weight, "rows", settings)
    for step in range(4):
        before, gradient = parameter.detach().clone(), gradient_at(step, (5, 4))
        units = {"w": Active(torch.tensor(chosen_at(step, 5), dtype=torch.long))}
        [direction] = steps.direction([gradient], units)
        assert bits(parameter) == bits(before) and bits(gradient) == bits(gradient_at(step, (5, 4)))
        assert not bool(steps.direction([gradient], {})[0].any())
        steps.step([gradient], units, RATE)
        torch.testing.assert_close(before - parameter.detach(), RATE * direction, rtol=1e-9, atol=1e-12)
