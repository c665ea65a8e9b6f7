"""Round to nearest: settings reach the grid, nothing but the weight matters, and the card can be read."""

from __future__ import annotations

import pytest
import torch

from letheon import methods
from letheon.errors import BadInput
from letheon.numerics.grids import CodebookGrid, Grid, dequantize, fake_quantize
from letheon.quantization.quantizers.rtn import RTN


def weights(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 16, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("scheme", ["sym", "sym_clipped", "sym_centred", "asym"])
@pytest.mark.parametrize("group", ["row", "tensor", 4])
@pytest.mark.parametrize("clip", ["absmax", "mse"])
def test_every_setting_reaches_the_grid(bits: int, scheme: str, group: int | str, clip: str) -> None:
    quantizer = RTN(bits=bits, scheme=scheme, group=group, clip=clip)  # type: ignore[arg-type]
    grid = Grid(bits=bits, scheme=scheme, group=group, clip=clip)  # type: ignore[arg-type]
    result = quantizer.quantize_layer(weights())
    assert result.grid == grid
    assert torch.equal(dequantize(result), fake_quantize(weights(), grid))


def test_default_is_four_bits_restricted_range_by_row() -> None:
    weight = torch.tensor([[0.7, -0.34, 0.36, 0.0], [14.0, 1.0, -3.1, 5.0]])
    result = RTN().quantize_layer(weight)
    assert result.codes.tolist() == [[7, -3, 4, 0], [7, 0, -2, 2]]
    torch.testing.assert_close(result.scale, torch.tensor([[0.1], [2.0]]))


def test_the_weight_is_not_touched_and_statistics_do_not_matter() -> None:
    weight = weights()
    kept = weight.clone()
    first = RTN().quantize_layer(weight, None)
    second = RTN().quantize_layer(weight, {"gram": torch.ones(16, 16)})
    assert torch.equal(weight, kept)
    assert torch.equal(first.codes, second.codes)
    assert RTN.needs == ()


@pytest.mark.parametrize("levels", ["fp4", "nf4"])
def test_tables_of_sixteen_values_stand_for_the_whole_grid(levels: str) -> None:
    result = RTN(levels=levels, bits=8).quantize_layer(weights())  # type: ignore[arg-type]
    assert torch.equal(dequantize(result), fake_quantize(weights(), CodebookGrid(levels)))  # type: ignore[arg-type]


def test_no_other_code_is_nearer() -> None:
    quantizer = RTN(bits=3, group=4)
    result = quantizer.quantize_layer(weights(1))
    step = result.scale.repeat_interleave(4, dim=1)
    low, high = result.grid.code_range  # type: ignore[union-attr]
    levels = torch.arange(low, high + 1)[:, None, None] * step
    best = (levels - weights(1)).abs().amin(dim=0)
    torch.testing.assert_close((dequantize(result) - weights(1)).abs(), best)


def test_sixteen_bits_change_nothing() -> None:
    assert torch.equal(dequantize(RTN(bits=16).quantize_layer(weights())), weights())


def test_bad_settings_are_refused_when_typed() -> None:
    with pytest.raises(BadInput, match="a grid of 9 bits does not exist"):
        RTN(bits=9)
    with pytest.raises(BadInput, match="group of 5 does not divide the 16 inputs"):
        RTN(group=5).quantize_layer(weights())


def test_card_and_three_spellings() -> None:
    card = methods.card("quantizer", "rtn")
    assert card.class_name == "RTN" and card.source and card.checked_against
    assert [setting.name for setting in card.settings] == ["bits", "group", "scheme", "clip", "scale_dtype", "levels"]
    assert all(setting.doc for setting in card.settings)
    built = methods.build("quantizer", {"name": "rtn", "bits": "3", "group": "32", "clip": "mse"})
    assert built == RTN(bits=3, group=32, clip="mse")
    assert methods.build("quantizer", {"name": "rtn", "group": "tensor"}) == RTN(group="tensor")
    assert methods.build("quantizer", methods.describe(built)) == built
