"""GPTQ against least squares on the tokens themselves, what it is where it has no choice, and what it must ignore."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from letheon import methods
from letheon.errors import BadInput
from letheon.numerics.grids import Grid, Quantized, dequantize, group_parameters, quantize
from letheon.quantization.compensation import check_settings
from letheon.quantization.factors import DampingRaised, NotPositiveDefinite
from letheon.quantization.quantizers.gptq import GPTQ
from letheon.quantization.quantizers.rtn import RTN
from letheon.quantization.statistics import Statistics
from tests.quantization.slow_solvers import (
    Layer,
    by_weight,
    least_squares_codes,
    made_up,
    order_of,
    slow_codes,
    synthetic,
)
from tests.toys import bits


def slowly(layer: Layer, quantizer: GPTQ, found: Quantized) -> list[list[int]]:
    return least_squares_codes(
        layer,
        order=order_of(layer, quantizer.act_order),
        step=by_weight(found, found.scale),
        zero=by_weight(found, found.zero),
        code_range=quantizer.grid.code_range,
        damping=quantizer.damping,
    )


@pytest.mark.parametrize("act_order", ["none", "static"])
@pytest.mark.parametrize("settings", [{}, {"scheme": "asym", "bits": 3}, {"scheme": "sym_centred", "damping": 0.3}])
@pytest.mark.parametrize("block", [5, 128])
def test_every_column_leaves_the_others_at_their_least_squares_answer(
    act_order: Any, settings: dict[str, Any], block: int
) -> None:
    layer = made_up(1)
    quantizer = GPTQ(act_order=act_order, block=block, **settings)
    found = quantizer.quantize_layer(layer.weight, layer.statistics)
    scale, zero = group_parameters(layer.weight, quantizer.grid)
    assert torch.equal(found.scale, scale) and torch.equal(found.zero, zero.to(torch.int16))
    assert found.codes.tolist() == slowly(layer, quantizer, found)
    assert not torch.equal(found.codes, quantize(layer.weight, quantizer.grid).codes)


def test_the_two_slow_solvers_agree() -> None:
    layer = made_up(2)
    grid = Grid(bits=3)
    given = quantize(layer.weight, grid)
    known: dict[str, Any] = {
        "order": order_of(layer, "static"),
        "step": by_weight(given, given.scale),
        "zero": by_weight(given, given.zero),
        "code_range": grid.code_range,
        "damping": 0.01,
    }
    assert slow_codes(layer, **known) == least_squares_codes(layer, **known)


@pytest.mark.parametrize("clip", ["absmax", "mse"])
def test_static_groups_have_the_grids_of_the_unmodified_neighbours(clip: Any) -> None:
    layer = made_up(3)
    quantizer = GPTQ(bits=3, group=8, clip=clip)
    found = quantizer.quantize_layer(layer.weight, layer.statistics)
    assert torch.equal(found.scale, group_parameters(layer.weight, quantizer.grid)[0])
    assert found.scale.shape == (6, 3) and found.group_index is None
    assert found.codes.tolist() == slowly(layer, quantizer, found)


def corrected(layer: Layer, found: Quantized, fixed: list[int], free: list[int]) -> Tensor:
    """What the free columns are when the fixed ones are rounded: the least-squares answer, by the moments."""
    gram = layer.statistics.gram
    gram = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    lost = (layer.weight - dequantize(found))[:, fixed]
    return layer.weight[:, free] + lost @ gram[fixed][:, free] @ torch.linalg.inv(gram[free][:, free])


@pytest.mark.parametrize("act_order", ["none", "dynamic"])
@pytest.mark.parametrize("clip", ["absmax", "mse"])
def test_groups_fitted_in_their_turn_have_the_grids_of_the_corrected_weights(act_order: Any, clip: Any) -> None:
    """With block = group every correction is in when a group is fitted: the slow solver knows what it then sees."""
    layer = made_up(4)
    quantizer = GPTQ(bits=3, group=6, block=6, act_order=act_order, clip=clip)
    found = quantizer.quantize_layer(layer.weight, layer.statistics)
    assert found.codes.tolist() == slowly(layer, quantizer, found)
    order = order_of(layer, act_order)
    for group in range(4):
        values = corrected(layer, found, order[: 6 * group], order[6 * group :])
        expected = group_parameters(values[:, :6], Grid(bits=3, clip=clip))[0]
        torch.testing.assert_close(found.scale[:, group : group + 1], expected, rtol=1e-5, atol=0)
    if act_order == "none":
        assert found.group_index is None
    else:
        assert found.group_index is not None and found.group_index.dtype == torch.int32
        assert [int(found.group_index[one]) for one in order] == [number // 6 for number in range(24)]


def test_a_group_smaller_than_a_block_is_fitted_on_what_the_block_began_with() -> None:
    """As in the published code: the corrections of its own block are missing, those of earlier blocks are there."""
    layer = made_up(5)
    found = GPTQ(bits=3, group=4, block=12, act_order="none").quantize_layer(layer.weight, layer.statistics)
    uncorrected = group_parameters(layer.weight, Grid(bits=3, group=4))[0]
    assert torch.equal(found.scale[:, :3], uncorrected[:, :3])
    assert not bool(torch.isclose(found.scale[:, 3:], uncorrected[:, 3:], rtol=1e-3).any())


def test_a_group_that_crosses_the_end_of_its_block_is_fitted_whole_where_it_begins() -> None:
    layer = made_up(5, inputs=48, tokens=200)
    found = GPTQ(bits=3, group=8, block=12, act_order="none").quantize_layer(layer.weight, layer.statistics)
    for begins_in, group in ((0, 1), (12, 2), (24, 3), (24, 4), (36, 5)):
        values = corrected(layer, found, list(range(begins_in)), list(range(begins_in, 48)))
        inside = values[:, 8 * group - begins_in : 8 * group - begins_in + 8]
        expected = group_parameters(inside, Grid(bits=3))[0]
        torch.testing.assert_close(found.scale[:, group : group + 1], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sixteen_bits_change_nothing(dtype: torch.dtype) -> None:
    layer = made_up()
    weight = layer.weight.to(dtype)
    assert bits(dequantize(GPTQ(bits=16).quantize_layer(weight, layer.statistics))) == bits(weight)


@pytest.mark.parametrize("settings", [{}, {"group": 8}, {"damping": 0.7, "clip": "mse"}, {"act_order": "none"}])
def test_inputs_that_do_not_correlate_leave_nothing_to_make_up(settings: dict[str, Any]) -> None:
    weight = made_up().weight.float()
    statistics = Statistics(gram=torch.eye(24) * 3.7, tokens=10)
    found = GPTQ(bits=3, **settings).quantize_layer(weight, statistics)
    grid = {key: value for key, value in settings.items() if key in ("group", "clip")}
    expected = RTN(bits=3, **grid).quantize_layer(weight)
    assert torch.equal(found.codes, expected.codes) and torch.equal(found.scale, expected.scale)


@pytest.mark.parametrize("settings", [{}, {"group": 32}, {"act_order": "none", "scheme": "asym"}])
def test_the_size_of_a_block_does_not_matter(settings: dict[str, Any]) -> None:
    layer = synthetic(0)
    found = [
        GPTQ(bits=3, block=block, **settings).quantize_layer(layer.weight, layer.statistics).codes
        for block in (1, 32, 100, 128, 256, 1000)
    ]
    assert all(torch.equal(codes, found[0]) for codes in found)


@pytest.mark.parametrize("inputs", [1, 2, 3, 5, 8, 16, 32, 64])
def test_it_loses_less_than_rounding_to_nearest(inputs: int) -> None:
    """On average of 50 draws; of one input there is nothing to make up with."""
    ours, nearest = [], []
    for seed in range(50):
        layer = made_up(seed, rows=3, inputs=inputs, tokens=4 * inputs, noise=0.0)
        ours.append(layer.loss(GPTQ(bits=3).quantize_layer(layer.weight, layer.statistics)))
        nearest.append(layer.loss(RTN(bits=3).quantize_layer(layer.weight)))
    assert sum(ours) < sum(nearest) or (inputs == 1 and ours == nearest)


@pytest.mark.parametrize("settings", [{}, {"clip": "mse", "group": 8}, {"group": 8, "act_order": "dynamic"}])
def test_rows_do_not_see_each_other(settings: dict[str, Any]) -> None:
    """So that layers with one input may be stacked."""
    layer = made_up(6)
    whole = GPTQ(bits=3, **settings).quantize_layer(layer.weight, layer.statistics)
    apart = [GPTQ(bits=3, **settings).quantize_layer(rows, layer.statistics) for rows in layer.weight.split(4)]
    turned = GPTQ(bits=3, **settings).quantize_layer(layer.weight.flip(0), layer.statistics)
    assert torch.equal(whole.codes, torch.cat([part.codes for part in apart]))
    assert torch.equal(whole.codes, turned.codes.flip(0))


@pytest.mark.parametrize("settings", [{}, {"clip": "mse"}, {"group": 8, "act_order": "dynamic", "scheme": "asym"}])
@pytest.mark.parametrize("factor", [0.25, 3.7])
def test_scaling_weights_or_inputs_scales_the_result(settings: dict[str, Any], factor: float) -> None:
    layer = made_up(7)
    found = GPTQ(bits=3, **settings).quantize_layer(layer.weight, layer.statistics)
    larger = GPTQ(bits=3, **settings).quantize_layer(layer.weight * factor, layer.statistics)
    torch.testing.assert_close(dequantize(larger), dequantize(found) * factor, rtol=1e-6, atol=0)
    louder = replace(layer.statistics, gram=layer.statistics.gram * factor)
    assert torch.equal(GPTQ(bits=3, **settings).quantize_layer(layer.weight, louder).codes, found.codes)


def with_dead(layer: Layer, dead: list[int]) -> Layer:
    found = layer.found.clone()
    found[:, dead] = 0
    return replace(layer, found=found)


@pytest.mark.parametrize("act_order", ["none", "static", "dynamic"])
def test_a_dead_input_loses_its_weight_and_pulls_at_no_other(act_order: Any) -> None:
    dead, alive = [0, 7, 23], [one for one in range(24) if one not in (0, 7, 23)]
    layer = with_dead(made_up(8), dead)
    quantizer = GPTQ(bits=3, act_order=act_order, scheme="asym")
    found = quantizer.quantize_layer(layer.weight, layer.statistics)
    assert not bool(dequantize(found)[:, dead].any())
    # The grid is the whole row's: what dies is part of what the file holds for other texts.
    assert torch.equal(found.scale, group_parameters(layer.weight, quantizer.grid)[0])
    rest = Layer(layer.weight[:, alive], layer.found[:, alive], layer.original[:, alive])
    expected = least_squares_codes(
        rest,
        order=order_of(rest, act_order),
        step=by_weight(found, found.scale)[:, alive],
        zero=by_weight(found, found.zero)[:, alive],
        code_range=quantizer.grid.code_range,
        damping=0.01,
    )
    assert found.codes[:, alive].tolist() == expected


def test_scales_are_rounded_before_any_weight_is() -> None:
    layer = made_up(9)
    quantizer = GPTQ(bits=3, group=8, scale_dtype="bfloat16")
    found = quantizer.quantize_layer(layer.weight, layer.statistics)
    assert torch.equal(found.scale, found.scale.bfloat16().float())
    assert not torch.equal(found.scale, group_parameters(layer.weight, Grid(bits=3, group=8))[0])
    assert found.codes.tolist() == slowly(layer, quantizer, found)


def test_single_precision_finds_what_double_does() -> None:
    layer = synthetic(1)
    exact = GPTQ().quantize_layer(layer.weight, layer.statistics)
    single = replace(layer.statistics, gram=layer.statistics.gram.float(), drift=None)
    found = GPTQ().quantize_layer(layer.weight.float(), single)
    assert float((found.codes == exact.codes).double().mean()) > 0.99
    assert layer.loss(found) == pytest.approx(layer.loss(exact), rel=2e-3)
    halved = GPTQ().quantize_layer(layer.weight.bfloat16(), single)
    assert halved.dtype == torch.bfloat16
    assert bits(halved.codes) == bits(GPTQ().quantize_layer(layer.weight.bfloat16().float(), single).codes)


def test_what_goes_in_is_not_touched() -> None:
    layer = made_up(10)
    statistics, weight = layer.statistics, layer.weight.clone()
    statistics.gram[:, 3], statistics.gram[3] = 0, 0
    before = bits(statistics.gram)
    GPTQ().quantize_layer(weight, statistics)
    assert bits(statistics.gram) == before and torch.equal(weight, layer.weight)


def test_moments_of_too_few_tokens_are_damped_until_they_can_be_inverted() -> None:
    layer = made_up(11, tokens=5)
    with pytest.warns(DampingRaised, match=r"a damping of 0 was not enough: 0\.001 was used"):
        found = GPTQ(damping=0.0).quantize_layer(layer.weight, layer.statistics)
    expected = GPTQ(damping=0.001).quantize_layer(layer.weight, layer.statistics)
    assert torch.equal(found.codes, expected.codes)


def broken(gram: Tensor) -> Statistics:
    return Statistics(gram=gram, tokens=10)


def test_moments_that_nothing_mends_are_refused() -> None:
    layer = made_up(12)
    with pytest.raises(NotPositiveDefinite, match="no usable inverse, even with a damping of 1"):
        GPTQ().quantize_layer(layer.weight, broken(layer.statistics.gram - 40 * torch.eye(24, dtype=torch.float64)))
    with pytest.raises(BadInput, match="NaN or infinite moments"):
        GPTQ().quantize_layer(layer.weight, broken(layer.statistics.gram * torch.nan))
    with pytest.raises(BadInput, match="inputs are all zero"):
        GPTQ().quantize_layer(layer.weight, broken(torch.zeros(24, 24)))
    with pytest.raises(BadInput, match="statistics of 12 inputs do not fit a layer of 24 inputs"):
        GPTQ().quantize_layer(layer.weight, broken(torch.eye(12)))


@pytest.mark.parametrize("act_order", ["none", "static", "dynamic"])
def test_bad_layers_are_refused(act_order: Any) -> None:
    layer = made_up(13)
    with pytest.raises(BadInput, match="group of 5 does not divide the 24 inputs"):
        GPTQ(group=5, act_order=act_order).quantize_layer(layer.weight, layer.statistics)
    weight = layer.weight.clone()
    weight[3, 23] = torch.nan
    with pytest.raises(BadInput, match=r"NaN or infinite values \(first in row 3\)"):
        GPTQ(group=8, act_order=act_order).quantize_layer(weight, layer.statistics)


def test_bad_settings_are_refused_when_typed() -> None:
    for settings, words in (
        ({"bits": 9}, "a grid of 9 bits does not exist"),
        ({"damping": -0.1}, "damping -0.1 is not a share"),
        ({"damping": 1.5}, "damping 1.5 is not a share"),
        ({"block": 0}, "a block of 0 columns is not usable"),
    ):
        with pytest.raises(BadInput, match=words):
            GPTQ(**settings)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="group 'tensor' fits no solver that goes by column"):
        check_settings(Grid(group="tensor"), damping=0.01, block=128)
    with pytest.raises(BadInput, match="group"):
        methods.build("quantizer", {"name": "gptq", "group": "tensor"})


def test_card_and_three_spellings() -> None:
    card = methods.card("quantizer", "gptq")
    assert card.class_name == "GPTQ" and GPTQ.needs == ("gram",)
    built = methods.build("quantizer", {"name": "gptq", "bits": "3", "group": "32", "act_order": "dynamic"})
    assert built == GPTQ(bits=3, group=32, act_order="dynamic")
