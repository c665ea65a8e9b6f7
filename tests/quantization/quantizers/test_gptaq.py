"""GPTAQ against its definition with every trailing inverse solved anew, and what it is where nothing has drifted."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch

from letheon import methods
from letheon.errors import BadInput
from letheon.numerics.grids import dequantize, group_parameters
from letheon.quantization.quantizers.gptaq import GPTAQ
from letheon.quantization.quantizers.gptq import GPTQ
from letheon.quantization.quantizers.rtn import RTN
from tests.quantization.slow_solvers import by_weight, made_up, order_of, slow_codes, synthetic
from tests.toys import bits


@pytest.mark.parametrize("act_order", ["none", "static"])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
@pytest.mark.parametrize(("outer", "beyond"), [("quantized", "quantized"), ("pre", "before")])
@pytest.mark.parametrize("block", [7, 24])
def test_it_does_what_its_definition_says(act_order: Any, alpha: float, outer: Any, beyond: str, block: int) -> None:
    layer = made_up(1)
    quantizer = GPTAQ(bits=3, act_order=act_order, alpha=alpha, outer=outer, block=block)
    found = quantizer.quantize_layer(layer.weight, layer.statistics)
    assert torch.equal(found.scale, group_parameters(layer.weight, quantizer.grid)[0])
    expected = slow_codes(
        layer,
        order=order_of(layer, act_order),
        step=by_weight(found, found.scale),
        zero=by_weight(found, found.zero),
        code_range=quantizer.grid.code_range,
        damping=0.01,
        alpha=alpha,
        block=block,
        beyond=beyond,
    )
    assert found.codes.tolist() == expected
    # The drift is large enough for this to say something.
    without = GPTQ(bits=3, act_order=act_order).quantize_layer(layer.weight, layer.statistics)
    assert found.codes.tolist() != without.codes.tolist()


SETTINGS: list[dict[str, Any]] = [{}, {"group": 32, "act_order": "dynamic"}, {"group": 64, "act_order": "none"}]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("outer", ["quantized", "pre"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_without_drift_it_is_gptq_bit_by_bit(settings: dict[str, Any], outer: Any, dtype: torch.dtype) -> None:
    layer = synthetic(0)
    weight, known = layer.weight.to(dtype), layer.statistics
    assert known.drift is not None
    known = replace(known, gram=known.gram.to(dtype), drift=known.drift.to(dtype))
    expected = GPTQ(**settings).quantize_layer(weight, known)
    for same in (
        GPTAQ(outer=outer, **settings).quantize_layer(weight, replace(known, drift=None)),
        GPTAQ(outer=outer, **settings).quantize_layer(weight, replace(known, drift=torch.zeros_like(known.gram))),
        GPTAQ(outer=outer, alpha=0.0, **settings).quantize_layer(weight, known),
    ):
        assert bits(same.scale) == bits(expected.scale) and bits(same.codes) == bits(expected.codes)


def test_the_published_outer_update_depends_on_the_block_and_pre_does_not() -> None:
    layer = synthetic(1)
    found = {
        outer: [
            GPTAQ(bits=2, alpha=1.0, outer=outer, block=block).quantize_layer(layer.weight, layer.statistics).codes  # type: ignore[arg-type]
            for block in (1, 32, 128, 256)
        ]
        for outer in ("quantized", "pre")
    }
    assert all(torch.equal(codes, found["pre"][0]) for codes in found["pre"])
    assert not any(torch.equal(codes, found["quantized"][-1]) for codes in found["quantized"][:-1])
    assert torch.equal(found["quantized"][-1], found["pre"][0])  # a single block has no outside


def test_sixteen_bits_change_nothing() -> None:
    layer = made_up(2)
    assert bits(dequantize(GPTAQ(bits=16).quantize_layer(layer.weight, layer.statistics))) == bits(layer.weight)


@pytest.mark.parametrize("noise", [0.15, 0.3])
def test_a_drifted_layer_loses_less_than_by_gptq_and_that_less_than_by_rounding(noise: float) -> None:
    """On the calibration text, at 3 bits, for each of six layers. (Of less drift, not for each.)"""
    losses: dict[str, list[float]] = {"rtn": [], "gptq": [], "gptaq": []}
    for seed in range(6):
        layer = synthetic(seed, noise=noise)
        losses["rtn"].append(layer.loss(RTN(bits=3).quantize_layer(layer.weight)))
        losses["gptq"].append(layer.loss(GPTQ(bits=3).quantize_layer(layer.weight, layer.statistics)))
        losses["gptaq"].append(layer.loss(GPTAQ(bits=3).quantize_layer(layer.weight, layer.statistics)))
    for rtn, gptq, gptaq in zip(*losses.values(), strict=True):
        assert rtn > gptq > gptaq
    rtn, gptq, gptaq = (statistics.fmean(values) for values in losses.values())
    assert rtn - gptq > 0.03 and (gptq - gptaq) / gptq > 0.01


def test_undrifted_layers_lose_half_of_what_rounding_loses() -> None:
    for seed in range(6):
        layer = synthetic(seed, noise=0.0)
        found = layer.loss(GPTAQ(bits=3).quantize_layer(layer.weight, layer.statistics))
        assert found == layer.loss(GPTQ(bits=3).quantize_layer(layer.weight, layer.undrifted))
        assert found < 0.5 * layer.loss(RTN(bits=3).quantize_layer(layer.weight))


def test_all_of_the_drift_overfits_little_text() -> None:
    """alpha = 1 helps on the text it was measured on and hurts on other text, where there are few tokens."""
    seen, unseen = [], []
    for seed in range(6):
        layer = synthetic(seed, noise=0.3)
        few = replace(layer, found=layer.found[:300], original=layer.original[:300])
        other = replace(layer, found=layer.found[300:], original=layer.original[300:])
        quarter, whole = (
            GPTAQ(bits=3, alpha=alpha).quantize_layer(layer.weight, few.statistics) for alpha in (0.25, 1.0)
        )
        seen.append(few.loss(whole) - few.loss(quarter))
        unseen.append(other.loss(whole) - other.loss(quarter))
    assert max(seen) < 0 < min(unseen)


def test_a_dead_input_has_no_part_in_the_drift() -> None:
    layer = made_up(3)
    found = layer.found.clone()
    found[:, 5] = 0
    layer = replace(layer, found=found)
    result = GPTAQ(alpha=1.0).quantize_layer(layer.weight, layer.statistics)
    assert not bool(dequantize(result)[:, 5].any())
    other = layer.weight.clone()
    other[:, 5] *= -0.5  # within the row's range, so that no grid changes
    same = GPTAQ(alpha=1.0).quantize_layer(other, layer.statistics)
    assert torch.equal(same.codes, result.codes)


def test_bad_statistics_and_settings_are_refused() -> None:
    layer = made_up(4)
    known = layer.statistics
    with pytest.raises(BadInput, match="drifted to NaN or infinite"):
        GPTAQ().quantize_layer(layer.weight, replace(known, drift=torch.full((24, 24), torch.inf)))
    with pytest.raises(BadInput, match=r"alpha 1\.5 is not a share"):
        GPTAQ(alpha=1.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("settings", SETTINGS)
def test_an_accelerator_finds_what_the_processor_does(settings: dict[str, Any]) -> None:
    layer = synthetic(3)
    known = layer.statistics
    assert known.drift is not None
    there = replace(known, gram=known.gram.cuda(), drift=known.drift.cuda())
    expected = GPTAQ(**settings).quantize_layer(layer.weight, known)
    found = GPTAQ(**settings).quantize_layer(layer.weight.cuda(), there)
    assert found.codes.is_cuda and found.scale.is_cuda
    assert float((found.codes.cpu() == expected.codes).double().mean()) > 0.999
    assert layer.loss(dequantize(found).cpu()) == pytest.approx(layer.loss(expected), rel=1e-3)


def test_card_and_three_spellings() -> None:
    card = methods.card("quantizer", "gptaq")
    assert card.class_name == "GPTAQ" and GPTAQ.needs == ("gram", "drift")
    built = methods.build("quantizer", {"name": "gptaq", "alpha": "0.5", "outer": "pre"})
    assert built == GPTAQ(alpha=0.5, outer="pre")
