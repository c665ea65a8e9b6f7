"""Rounding of tokens against a loop over single values, the measured errors, and gradients that pass straight."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.numerics.hadamard import Hadamard, random_signs
from letheon.numerics.token_grids import TokenGrid, round_tokens, token_errors
from tests.toys import bits

GRIDS = [
    TokenGrid(bits=4),
    TokenGrid(bits=4, scheme="sym"),
    TokenGrid(bits=2, clip=0.9),
    TokenGrid(bits=3, scheme="sym", clip=0.8, group=4),
    TokenGrid(bits=8, group=8),
    TokenGrid(bits=4, clip=0.7, mask="clip"),
    TokenGrid(bits=4, scheme="sym", clip=0.7, mask="clip", group=8),
]
FOUR = TokenGrid(bits=4)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(token: list[float], grid: TokenGrid) -> list[float]:
    """One group of one token, written down, in Python's floats (float64, half to even)."""
    low, high = grid.clip * min(*token, 0.0), grid.clip * max(*token, 0.0)
    if grid.scheme == "sym":
        top = 2 ** (grid.bits - 1) - 1
        step = grid.clip * max(abs(value) for value in token) / top or 1.0
        return [step * min(max(round(value / step), -top - 1), top) for value in token]
    top = 2**grid.bits - 1
    step = (high - low) / top or 1.0
    zero = round(-low / step)
    return [step * (min(max(round(value / step) + zero, 0), top) - zero) for value in token]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_group_of_every_token_by_hand(grid: TokenGrid) -> None:
    x = drawn(3, 5, 16) + torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    x[0, 0], x[1, 1] = 0, x[1, 1].abs()
    x[1, 2] = -x[1, 2].abs()
    found = round_tokens(x, grid)
    size = grid.group or 16
    for token, rounded in zip(x.reshape(-1, size).tolist(), found.reshape(-1, size), strict=True):
        expected = torch.tensor(by_hand(token, grid), dtype=torch.float64)
        torch.testing.assert_close(rounded, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_token_knows_nothing_of_the_others(grid: TokenGrid) -> None:
    x = drawn(2, 7, 16).float()
    whole = round_tokens(x, grid)
    x[:, 3] *= 1000
    again = round_tokens(x, grid)
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(again[:, others], whole[:, others])
    assert torch.equal(torch.cat([round_tokens(x[:, place, None], grid) for place in range(7)], 1), again)


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid.clip == 1], ids=str)
def test_zero_stays_zero_and_nothing_moves_by_more_than_half_a_step(grid: TokenGrid) -> None:
    x = drawn(50, 16)
    x[:, 3] = 0
    found = round_tokens(x, grid)
    assert not found[:, 3].any()
    assert not round_tokens(torch.zeros(2, 16), grid).any()
    grouped = x.view(50, -1, grid.group or 16)
    span = grouped.amax(-1).clamp(min=0) - grouped.amin(-1).clamp(max=0)
    step = span / (2**grid.bits - 1) if grid.scheme == "asym" else grouped.abs().amax(-1) / (2 ** (grid.bits - 1) - 1)
    moved = (found - x).view_as(grouped).abs().amax(-1)
    # The zero point is rounded too: at the ends of an asym range a value may be cut by what that moved the range.
    assert bool((moved <= step * (0.5 + 1e-9 + 0.5 * (grid.scheme == "asym"))).all())
    assert all(len(row.unique()) <= 2**grid.bits for row in found.view(-1, grid.group or 16))


def test_ranges_too_small_for_a_step_round_to_zero_and_broken_values_stay_broken() -> None:
    for scheme in ("asym", "sym"):
        grid = TokenGrid(bits=8, scheme=scheme)  # type: ignore[arg-type]
        assert not round_tokens(torch.full((1, 4), 1e-45), grid).any()
        x = drawn(2, 4).float()
        x[0, 1] = float("nan")
        assert bool(round_tokens(x, grid)[0].isnan().all()) and bool(torch.isfinite(round_tokens(x, grid)[1]).all())
        x[0, 1] = float("inf")
        assert bool(round_tokens(x, grid)[0].isnan().any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dtype_is_kept_and_halves_are_rounded_in_float32(dtype: torch.dtype) -> None:
    x = drawn(4, 32).to(dtype)
    found = round_tokens(x, FOUR)
    assert found.dtype == dtype
    assert torch.equal(found, round_tokens(x.float(), FOUR).to(dtype))


def test_sixteen_bits_are_the_tensor_itself_and_its_gradient() -> None:
    x = drawn(2, 5).requires_grad_(True)
    for scheme in ("asym", "sym"):
        assert round_tokens(x, TokenGrid(bits=16, scheme=scheme, clip=0.5, group=3, mask="clip")) is x  # type: ignore[arg-type]
    assert not token_errors(x, TokenGrid(bits=16)).any()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_gradient_is_that_of_a_detached_residual(grid: TokenGrid) -> None:
    weight = drawn(16, 3, seed=1)

    def loss(rounding: Any, x: Tensor) -> Tensor:
        return (torch.tanh(rounding(x) @ weight)).square().sum()

    x = drawn(4, 16).requires_grad_(True)
    (found,) = torch.autograd.grad(loss(lambda given: round_tokens(given, grid), x), x)

    def surrogate(given: Tensor) -> Tensor:
        return given + (round_tokens(given, grid) - given).detach()

    (expected,) = torch.autograd.grad(loss(surrogate, x), x)
    grouped = x.detach().view(4, -1, grid.group or 16)
    low, high = grouped.amin(-1, keepdim=True).clamp(max=0), grouped.amax(-1, keepdim=True).clamp(min=0)
    if grid.scheme == "sym":
        high = torch.maximum(-low, high)
        low = -high
    is_within = ((grouped >= grid.clip * low) & (grouped <= grid.clip * high)).view(4, 16)
    if grid.mask == "clip":
        assert 0 < int((~is_within).sum()) < 32
        expected = expected * is_within
    assert torch.equal(found, expected)


def test_the_gradient_is_that_of_the_surrogate_by_finite_differences() -> None:
    """The step function itself has gradient 0; what is followed is x + a constant residual."""
    x, direction = drawn(2, 8), drawn(2, 8, seed=9)
    residual = round_tokens(x, FOUR) - x
    leaf = x.clone().requires_grad_(True)
    round_tokens(leaf, FOUR).pow(3).sum().backward()
    step = 1e-5
    ahead, behind = ((x + sign * step * direction + residual).pow(3).sum() for sign in (1, -1))
    assert leaf.grad is not None
    assert float((leaf.grad * direction).sum()) == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-7)


def test_what_is_kept_for_the_gradient_is_nothing_or_a_byte_a_value() -> None:
    def kept(grid: TokenGrid) -> list[Tensor]:
        found: list[Tensor] = []
        x = drawn(4, 64).requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: found.append(tensor) or tensor, lambda tensor: tensor
        ):
            round_tokens(x, grid)
        return found

    assert kept(FOUR) == []
    (mask,) = kept(TokenGrid(bits=4, mask="clip"))
    assert mask.dtype == torch.bool


def test_errors_by_hand() -> None:
    """Range 0..15 in steps of 1: 0.4 and 7.4 lose 0.4 each, squared 0.32 of 0.16 + 54.76 + 225."""
    x = torch.tensor([[0.4, 7.4, 15.0, 0.0], [0.0, 1.0, 2.0, 15.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([0.32 / 279.92, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(token_errors(x, FOUR), expected, rtol=1e-12, atol=0)
    assert bits(token_errors(x * 4, FOUR)) == bits(token_errors(x, FOUR))
    assert bits(token_errors(x.flip(0), FOUR)) == bits(token_errors(x, FOUR).flip(0))


def rotation(size: int, seed: int) -> Hadamard:
    return Hadamard(size=size, signs=random_signs(size, torch.Generator().manual_seed(seed)))


def error(x: Tensor) -> float:
    return float(token_errors(x, FOUR).mean())


def test_gaussian_tokens_lose_one_percent_with_or_without_a_rotation() -> None:
    x = drawn(4096, 128)
    assert error(x) == pytest.approx(0.01012, rel=0.02)
    assert error(rotation(128, seed=5).rotate(x)) == pytest.approx(0.01017, rel=0.02)


def test_one_outlier_channel_costs_six_times_what_it_does_after_a_rotation() -> None:
    x = drawn(4096, 128)
    x[:, 5] *= 50
    rotated = rotation(128, seed=5).rotate(x)
    assert error(x) == pytest.approx(0.0338, rel=0.02)
    assert error(rotated) == pytest.approx(0.0052, rel=0.02)
    size = x.square().sum(-1)
    assert float((token_errors(x, FOUR) * size).mean()) == pytest.approx(64, rel=0.02)
    assert float((token_errors(rotated, FOUR) * size).mean()) == pytest.approx(7.9, rel=0.02)


def test_whole_numbers_are_exact_until_they_are_rotated_and_a_plain_rotation_collects_their_mean() -> None:
    x = torch.randint(0, 16, (4096, 128), generator=torch.Generator().manual_seed(0)).double()
    x[:, 0], x[:, 1] = 0, 15
    assert not token_errors(x, FOUR).any()
    assert error(Hadamard(size=128).rotate(x)) == pytest.approx(0.045, rel=0.02)
    randomised = [error(rotation(128, seed).rotate(x)) for seed in range(6)]
    assert all(0.0085 < found < 0.0125 for found in randomised)  # how much of the mean is left depends on the signs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, "a token grid of 1 bits does not exist. Use 2 to 8, or 16"),
        ({"clip": 0.0}, "a clip ratio of 0.0 is not usable"),
        ({"clip": 1.5}, "a clip ratio of 1.5 is not usable"),
        ({"group": 0}, "a token group of 0 channels is not usable"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        TokenGrid(**settings)


def test_a_group_that_does_not_divide_the_channels_is_refused() -> None:
    with pytest.raises(
        BadInput, match=re.escape("a token group of 5 does not divide 16 channels. Use a divisor of 16")
    ):
        round_tokens(drawn(1, 16), TokenGrid(bits=4, group=5))
