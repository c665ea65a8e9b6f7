"""ResComp against its definition with every trailing inverse solved anew, and the solvers it contains."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch

from letheon import methods
from letheon.errors import BadInput
from letheon.numerics.grids import dequantize, fake_quantize
from letheon.quantization.quantizers.gptaq import GPTAQ
from letheon.quantization.quantizers.gptq import GPTQ
from letheon.quantization.quantizers.rescomp import ResComp
from tests.quantization.slow_solvers import Layer, by_weight, made_up, order_of, slow_codes, synthetic
from tests.toys import bits


def slowly(layer: Layer, quantizer: ResComp, beyond: str) -> tuple[Any, Any]:
    found = quantizer.quantize_layer(layer.weight, layer.statistics)
    expected = slow_codes(
        layer,
        order=order_of(layer, quantizer.act_order),
        step=by_weight(found, found.scale),
        zero=by_weight(found, found.zero),
        code_range=quantizer.grid.code_range,
        damping=0.01,
        alpha=quantizer.alpha,
        alpha2=quantizer.alpha2,
        block=quantizer.block,
        beyond=beyond,
    )
    return found.codes.tolist(), expected


@pytest.mark.parametrize("act_order", ["none", "static"])
@pytest.mark.parametrize(("mode", "beyond"), [("org", "quantized"), ("allw", "clipped")])
@pytest.mark.parametrize("shares", [{}, {"alpha": 0.0, "alpha2": 1.0}, {"alpha": 1.0}])
@pytest.mark.parametrize("block", [7, 24])
def test_it_does_what_its_definition_says(
    act_order: Any, mode: Any, beyond: str, shares: dict[str, float], block: int
) -> None:
    layer = made_up(1)
    quantizer = ResComp(bits=3, clip="mse", group=8, act_order=act_order, mode=mode, block=block, **shares)
    if act_order == "none":
        quantizer = replace(quantizer, group="row")
    found, expected = slowly(layer, quantizer, beyond)
    assert found == expected


def test_the_mode_is_org_at_two_bits_and_allw_above() -> None:
    layer = synthetic(0)
    for number, mode, other in ((2, "org", "allw"), (3, "allw", "org"), (4, "allw", "org")):
        found, same, different = (
            ResComp(bits=number, mode=mode).quantize_layer(layer.weight, layer.statistics).codes  # type: ignore[arg-type]
            for mode in ("auto", mode, other)
        )
        assert torch.equal(found, same) and not torch.equal(found, different)


def test_what_cannot_be_reached_counts_as_the_end_of_its_own_grid() -> None:
    """Clamping matters here: values are pushed beyond a narrow grid. parity clamps to the block's last column's."""
    layer = replace(made_up(2), weight=made_up(2).weight * torch.logspace(1, -1, 24, dtype=torch.float64))
    quantizer = ResComp(bits=3, group=4, block=12, clip="mse", act_order="static", alpha=1.0, alpha2=1.0, mode="allw")
    found, expected = slowly(layer, quantizer, "clipped")
    assert found == expected != slowly(layer, quantizer, "before")[1]
    reference = replace(quantizer, parity=True).quantize_layer(layer.weight, layer.statistics)
    assert reference.codes.tolist() != found
    whole = replace(quantizer, group="row")
    assert torch.equal(
        replace(whole, parity=True).quantize_layer(layer.weight, layer.statistics).codes,
        whole.quantize_layer(layer.weight, layer.statistics).codes,
    )  # with one grid a row there is no other column's


@pytest.mark.parametrize("mode", ["org", "allw"])
@pytest.mark.parametrize("settings", [{}, {"bits": 2, "group": 32, "act_order": "dynamic"}])
def test_without_shares_it_is_gptq_bit_by_bit(mode: Any, settings: dict[str, Any]) -> None:
    layer = synthetic(1)
    weight = layer.weight.float()
    expected = GPTQ(**settings).quantize_layer(weight, layer.statistics)
    found = ResComp(alpha=0.0, alpha2=0.0, mode=mode, **settings).quantize_layer(weight, layer.statistics)
    assert bits(found.codes) == bits(expected.codes) and bits(found.scale) == bits(expected.scale)


def test_without_the_residuals_share_it_is_gptaq_bit_by_bit() -> None:
    layer = synthetic(2)
    weight = layer.weight.float()
    for alpha in (0.25, 1.0):
        expected = GPTAQ(bits=3, alpha=alpha).quantize_layer(weight, layer.statistics)
        found = ResComp(bits=3, alpha=alpha, alpha2=0.0, mode="org").quantize_layer(weight, layer.statistics)
        assert bits(found.codes) == bits(expected.codes)


@pytest.mark.parametrize("mode", ["org", "allw"])
def test_weights_that_nothing_has_moved_have_no_residual(mode: Any) -> None:
    """Sixteen bits, and weights that lie on their grid: neither error nor, without drift, anything to take back."""
    layer = made_up(3)
    assert bits(dequantize(ResComp(bits=16).quantize_layer(layer.weight, layer.statistics))) == bits(layer.weight)
    quantizer = ResComp(bits=3, mode=mode, alpha2=1.0)
    exact = fake_quantize(layer.weight, quantizer.grid)
    assert torch.equal(dequantize(quantizer.quantize_layer(exact, layer.undrifted)), exact)


def test_without_drift_it_takes_back_a_part_of_what_gptq_has_gained() -> None:
    ours, gptq = [], []
    for seed in range(6):
        layer = synthetic(seed, noise=0.0)
        ours.append(layer.loss(ResComp(bits=3).quantize_layer(layer.weight, layer.undrifted)))
        gptq.append(layer.loss(GPTQ(bits=3).quantize_layer(layer.weight, layer.undrifted)))
        assert gptq[-1] < ours[-1]
    assert statistics.fmean(ours) < 1.3 * statistics.fmean(gptq)


def test_of_a_drifted_layer_it_loses_about_what_gptaq_does() -> None:
    ours, gptaq = [], []
    for seed in range(6):
        layer = synthetic(seed)
        ours.append(layer.loss(ResComp(bits=3).quantize_layer(layer.weight, layer.statistics)))
        gptaq.append(layer.loss(GPTAQ(bits=3).quantize_layer(layer.weight, layer.statistics)))
    assert 1 < statistics.fmean(ours) / statistics.fmean(gptaq) < 1.1


def test_bad_settings_are_refused_when_typed() -> None:
    with pytest.raises(BadInput, match=r"alpha2 -0\.5 is not a share"):
        ResComp(alpha2=-0.5)
    with pytest.raises(BadInput, match=r"alpha 2\.0 is not a share"):
        ResComp(alpha=2.0)


def test_card_and_three_spellings() -> None:
    card = methods.card("quantizer", "rescomp")
    assert card.class_name == "ResComp" and ResComp.needs == ("gram", "drift")
    built = methods.build("quantizer", {"name": "rescomp", "alpha2": "0.5", "mode": "org", "parity": "true"})
    assert built == ResComp(alpha2=0.5, mode="org", parity=True)
