"""Scales leave every architecture's function as it was, and the search leaves the weights as they were."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from letheon.lowbit.architectures import BlockLayout, ScalePair, block_layout, gain, model_layout, set_gain
from letheon.models import as_matrix
from letheon.numerics.grids import Grid
from letheon.quantization import channel_scales
from letheon.quantization.channel_scales import best_scale, candidate_scales, relative_sizes, scale_pair
from letheon.quantization.streams import Batch, first_batches
from tests.architectures.models import ARCHITECTURES, make_model
from tests.lowbit.lively import IDS, lively, logits
from tests.toys import bits


def every_bit(model: Any) -> dict[str, bytes]:
    return {name: bits(parameter) for name, parameter in model.named_parameters()}


def pairs_of(model: Any) -> list[tuple[BlockLayout, ScalePair, int]]:
    """With the number of their channels."""
    found = []
    for block in block_layout(model):
        for pair in block.scale_pairs:
            consumer = model.get_submodule(pair.consumers[0])
            found.append((block, pair, as_matrix(consumer, consumer.weight).shape[1]))
    return found


# --- the line


def test_candidates_are_powers_of_the_magnitude_around_one() -> None:
    magnitude = torch.tensor([4.0, 1.0, 0.25, 16.0])
    found = candidate_scales(magnitude, 4)
    for place, ratio in enumerate((0, 0.25, 0.5, 0.75)):
        raw = magnitude**ratio
        torch.testing.assert_close(found[place], raw / (raw.max() * raw.min()) ** 0.5)
    assert torch.equal(found[0], torch.ones(4))
    torch.testing.assert_close(found.amax(dim=1) * found.amin(dim=1), torch.ones(4))


def test_a_dead_channel_has_a_finite_scale() -> None:
    found = candidate_scales(torch.tensor([0.0, 1.0, 4.0]), 20)
    assert torch.equal(found[0], torch.ones(3)) and bool(torch.isfinite(found).all()) and bool((found > 0).all())
    torch.testing.assert_close(found[10], torch.tensor([1e-4, 1.0, 2.0]) / (2e-4) ** 0.5)


def test_sizes_of_columns_are_shares_of_their_groups() -> None:
    weight = torch.tensor([[2.0, -4.0, 0.5, 0.25], [1.0, 1.0, -3.0, 3.0]])
    torch.testing.assert_close(relative_sizes(weight, Grid(group=2)), torch.tensor([0.75, 1.0, 1.0, 0.75]))
    expected = torch.tensor([(0.5 + 1 / 3) / 2, (1 + 1 / 3) / 2, (0.125 + 1) / 2, (0.0625 + 1) / 2])
    torch.testing.assert_close(relative_sizes(weight, Grid()), expected)


def test_sizes_pull_against_the_magnitude() -> None:
    magnitude, sizes = torch.tensor([4.0, 1.0, 2.0]), torch.tensor([0.5, 0.25, 1.0])
    found = candidate_scales(magnitude, 2, sizes)
    for place, ratio in enumerate((0.0, 0.5)):
        raw = magnitude**ratio / (sizes ** (1 - ratio) + 1e-4)
        torch.testing.assert_close(found[place], raw / (raw.max() * raw.min()) ** 0.5)


# --- put into the weights


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_function_stays(name: str) -> None:
    model = lively(name, seed=4).float()
    before = logits(model)
    untouched = every_bit(model)
    for number, (block, pair, width) in enumerate(pairs_of(model)):
        scale = torch.rand(width, generator=torch.Generator().manual_seed(number)) * 1.5 + 0.5
        torch.testing.assert_close(scale_pair(model, block, pair, scale), scale.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    changed = {name for name, one in every_bit(model).items() if one != untouched[name]}
    assert {f"{consumer}.weight" for _, pair, _ in pairs_of(model) for consumer in pair.consumers} <= changed
    assert {f"{pair.producer}.weight" for _, pair, _ in pairs_of(model)} <= changed


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"gemma"}))
def test_powers_of_two_change_no_bit_of_it(name: str) -> None:
    """(Gemma's norms hold gain - 1, in which a power of two is a number like any other.)"""
    model = lively(name, seed=5).float()
    before = logits(model)
    for number, (block, pair, width) in enumerate(pairs_of(model)):
        power = torch.randint(-3, 4, (width,), generator=torch.Generator().manual_seed(number))
        scale_pair(model, block, pair, 2.0**power)
    assert bits(logits(model)) == bits(before)


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2"])
def test_what_a_norm_in_bfloat16_cannot_hold_its_readers_make_up_for(name: str) -> None:
    model = lively(name, seed=6).bfloat16()
    block, pair, width = pairs_of(model)[0]
    norm, reader = model.get_submodule(pair.producer), model.get_submodule(pair.consumers[0])

    def product() -> Tensor:
        gains = norm.weight.detach().double() + (name == "gemma")
        return as_matrix(reader, reader.weight.detach()).double() * gains

    before = product()
    factor = scale_pair(model, block, pair, torch.logspace(-1, 2, width))
    # Only the reader's own rounding is left: half of the last of its 8 digits, before and after.
    assert float(((product() - before).abs() / before.abs().clamp_min(1e-9)).max()) < 2.0**-8
    assert float((factor / torch.logspace(-1, 2, width) - 1).abs().max()) > (0.05 if name == "gemma" else 1e-4)


def test_a_gain_that_would_be_lost_stays_and_one_of_zero_is_left_alone() -> None:
    model = lively("gemma", seed=7).bfloat16()
    block, pair, width = pairs_of(model)[0]
    norm = model.get_submodule(pair.producer)
    with torch.no_grad():
        norm.weight[:3] = torch.tensor([-0.5, -1.0, 0.0])
    factor = scale_pair(model, block, pair, torch.full((width,), 4096.0))
    assert factor[:3].tolist() == [1, 1, 1] and norm.weight[:3].tolist() == [-0.5, -1.0, 0.0]


# --- the search


def streams(model: Any, size: int = 2) -> list[Batch]:
    return first_batches(model, model_layout(model), IDS, size=size, device="cpu")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_search_leaves_every_weight_as_it_was(name: str) -> None:
    model = lively(name).float()
    before = every_bit(model)
    for block, pair, width in pairs_of(model)[:4]:
        scales = candidate_scales(torch.linspace(0.1, 3, width), 3)
        found = best_scale(model, block, pair, streams(model), scales, Grid(bits=3), device="cpu")
        assert any(torch.equal(found, scale) for scale in scales)
    assert every_bit(model) == before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_so_does_one_that_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    before = every_bit(model)
    block, pair, width = pairs_of(model)[0]
    calls = itertools.count()
    rounded = channel_scales.fake_quantize

    def breaking(*given: Any) -> Tensor:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return rounded(*given)

    monkeypatch.setattr(channel_scales, "fake_quantize", breaking)
    with pytest.raises(KeyboardInterrupt):
        best_scale(model, block, pair, streams(model), torch.ones(3, width), Grid(), device="cpu")
    assert every_bit(model) == before


def test_every_trial_starts_from_the_original_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    block, pair, width = pairs_of(model)[0]
    given: list[Tensor] = []

    def kept(weight: Tensor, grid: Grid) -> Tensor:
        given.append(weight.clone())
        return torch.zeros_like(weight)

    monkeypatch.setattr(channel_scales, "fake_quantize", kept)
    scales = candidate_scales(torch.linspace(0.1, 3, width), 3)
    best_scale(model, block, pair, streams(model, size=1), scales, Grid(), device="cpu")
    wanted = [
        model.get_submodule(name).weight * scale for _ in range(2) for scale in scales for name in pair.consumers
    ]  # two batches
    assert len(given) == len(wanted)
    assert all(torch.equal(one, other) for one, other in zip(given, wanted, strict=True))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_pieces_of_the_text_count_as_the_whole(name: str) -> None:
    model = lively(name).float()
    for block, pair, width in pairs_of(model)[:4]:
        scales = candidate_scales(torch.linspace(0.01, 3, width), 20)
        whole, pieces = (
            best_scale(model, block, pair, streams(model, size), scales, Grid(bits=3), device="cpu") for size in (2, 1)
        )
        assert torch.equal(whole, pieces)


def test_of_equals_the_first_is_kept_and_a_candidate_without_a_number_never() -> None:
    model = lively("llama").float()
    block, pair, width = pairs_of(model)[0]
    scales = torch.stack([torch.full((width,), 1e-38), torch.ones(width) * 2, torch.ones(width)])
    found = best_scale(model, block, pair, streams(model), scales, Grid(), device="cpu")
    assert torch.equal(found, scales[1])


def test_a_norm_that_is_set_is_read_back() -> None:
    """What `scale_pair` stands on, in the dtype in which it does: Gemma's weight is gain - 1."""
    model = lively("gemma")
    norm = model.get_submodule(pairs_of(model)[0][1].producer)
    value = gain(norm, "rms_plus_one").detach() / 3
    set_gain(norm, "rms_plus_one", value)
    torch.testing.assert_close(gain(norm, "rms_plus_one"), value)
