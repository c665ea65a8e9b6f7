"""What every quantizer promises, run over the folder: a new file is covered without a line added here."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.methods import build, describe, names
from letheon.numerics.grids import Quantized, dequantize, fake_quantize, quantize
from letheon.quantization.statistics import Moments, Statistics
from tests.contract.register import every_variation
from tests.toys import bits

VARIATIONS = every_variation("quantizer")
STATISTICS = {"gram", "drift"}
NEEDY = [one for one in VARIATIONS if STATISTICS & {*build(*one.values).needs}]  # type: ignore[arg-type]
ROWS, INPUTS = 12, 128


def weights(dtype: torch.dtype = torch.float32, *, seed: int = 0) -> Tensor:
    """Rows of different sizes, some of them lopsided."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(ROWS, INPUTS, generator=generator, dtype=torch.float64)
    size = 10.0 ** torch.linspace(-3, 1, ROWS, dtype=torch.float64)
    return ((drawn + torch.linspace(-1, 1, ROWS, dtype=torch.float64)[:, None]) * size[:, None]).to(dtype)


@cache
def inputs(seed: int = 0) -> tuple[Tensor, Tensor]:
    """What reaches the layer, correlated and of unequal power, and what reached it before anything was rounded."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(INPUTS, INPUTS, generator=generator) * torch.logspace(0, -1, INPUTS) / INPUTS**0.5
    power = torch.linspace(0.5, 2, INPUTS)[torch.randperm(INPUTS, generator=generator)]
    original = torch.randn(400, INPUTS, generator=generator) @ mixed.T * power
    return original + 0.1 * power * torch.randn(400, INPUTS, generator=generator), original


def looks_at_inputs(quantizer: Any) -> bool:
    """Whether a layer's weights make up for one another, given what the layer hears."""
    return bool(STATISTICS & {*quantizer.needs})


def statistics(quantizer: Any, *, drifts: bool = True) -> Statistics | None:
    """Just what the quantizer needs, as the pipeline collects it; `drifts` False: nothing has moved."""
    if not looks_at_inputs(quantizer):
        return None
    moments = Moments(INPUTS, has_drift="drift" in quantizer.needs)
    found, original = inputs()
    moments.add(found, original if drifts else found)
    return moments.statistics()


def quantized(quantizer: Any, weight: Tensor, *, drifts: bool = True) -> Quantized:
    found: Quantized = quantizer.quantize_layer(weight, statistics(quantizer, drifts=drifts))
    return found


@pytest.mark.parametrize(("kind", "spec"), VARIATIONS)
def test_it_says_what_it_needs_and_prepares_a_block_where_it_needs_one(kind: str, spec: dict[str, Any]) -> None:
    quantizer = build(kind, spec)
    assert {*quantizer.needs} <= STATISTICS | {"block"}
    assert hasattr(quantizer, "prepare_block") == ("block" in quantizer.needs)


@pytest.mark.parametrize(("kind", "spec"), VARIATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_shape_dtype_and_device_are_kept_and_the_weight_is_not_touched(
    kind: str, spec: dict[str, Any], dtype: torch.dtype
) -> None:
    weight = weights(dtype)
    before = bits(weight)
    found = dequantize(quantized(build(kind, spec), weight))
    assert (found.shape, found.dtype, found.device) == (weight.shape, dtype, weight.device)
    assert bool(torch.isfinite(found).all()) and not found.requires_grad
    assert bits(weight) == before


@pytest.mark.parametrize(("kind", "spec"), VARIATIONS)
def test_codes_fit_into_their_bits_and_are_deterministic(kind: str, spec: dict[str, Any]) -> None:
    quantizer = build(kind, spec)
    first, second = (quantized(quantizer, weights()) for _ in range(2))
    for part in ("codes", "scale", "zero"):
        assert bits(getattr(first, part)) == bits(getattr(second, part))
    if quantizer.bits == 16:
        return
    levels = 16 if spec.get("levels", "uniform") != "uniform" else 2**quantizer.bits
    assert int(first.codes.max()) - int(first.codes.min()) < levels
    for row in dequantize(first):
        groups = INPUTS // quantizer.group if isinstance(quantizer.group, int) else 1
        assert len(row.unique()) <= levels * max(groups, INPUTS // 64)


@pytest.mark.parametrize(("kind", "spec"), VARIATIONS)
def test_what_is_on_its_grid_stays_there(kind: str, spec: dict[str, Any]) -> None:
    """What lies on the grid moves no code of a group whose scale is found again; by default nothing moves at all.

    A range that cuts its largest weight off (sym_clipped, sym_centred, clip="mse") is another one the second time.
    Columns that make up for others have nothing to make up for where every scale of their row is found again, and
    the inputs have not drifted.
    """
    quantizer = build(kind, spec)
    first = quantize(weights(), quantizer.grid)
    second = quantized(quantizer, dequantize(first), drifts=False)
    if quantizer.bits == 16:
        assert torch.equal(second.codes, first.codes)
        return
    if spec == describe(build(kind, spec["name"])):
        if quantizer.scheme == "asym":  # the last digit of a range, which is a difference, is not found again
            assert torch.equal(second.codes, first.codes)
            torch.testing.assert_close(dequantize(second), dequantize(first), rtol=1e-6, atol=0)
        else:
            assert bits(dequantize(second)) == bits(dequantize(first))
    is_found = torch.isclose(first.scale, second.scale, rtol=1e-6)
    if looks_at_inputs(quantizer):
        is_found = is_found.all(dim=1)
    members = first.codes.numel() // is_found.numel()
    same = (first.codes == second.codes).reshape(-1, members).all(dim=1)
    assert bool(same[is_found.reshape(-1)].all())


@pytest.mark.parametrize(("kind", "spec"), VARIATIONS)
def test_a_weight_counts_for_its_size_alone(kind: str, spec: dict[str, Any]) -> None:
    """Twice the weights are twice the result, and rows in another order the same rows in that order."""
    quantizer = build(kind, spec)
    found = quantized(quantizer, weights())
    assert torch.equal(dequantize(quantized(quantizer, weights() * 2)), dequantize(found) * 2)
    turned = quantized(quantizer, weights().flip(0).contiguous())
    if looks_at_inputs(quantizer):
        # A product of matrices may add up in another order at another place: its last bit reaches no code.
        torch.testing.assert_close(dequantize(turned).flip(0), dequantize(found), rtol=1e-6, atol=0)
    else:
        assert torch.equal(dequantize(turned).flip(0), dequantize(found))
    assert quantizer.bits == 16 or torch.equal(turned.codes.flip(0).sort().values, found.codes.sort().values)


@pytest.mark.parametrize(("kind", "spec"), VARIATIONS)
def test_zeros_stay_zeros(kind: str, spec: dict[str, Any]) -> None:
    """All of them where weights do not see each other; otherwise rows of nothing, which have nothing to make up for."""
    quantizer = build(kind, spec)
    weight = weights()
    weight[0], weight[1, ::2] = 0, 0
    found = dequantize(quantized(quantizer, weight))
    assert not bool((found[0] if looks_at_inputs(quantizer) else found[weight == 0]).any())
    assert not bool(dequantize(quantized(quantizer, torch.zeros(ROWS, INPUTS))).any())


@pytest.mark.parametrize("name", names("quantizer"))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(name: str, value: float) -> None:
    weight = weights()
    weight[3, 4] = value
    with pytest.raises(BadInput, match="NaN or infinite"):
        quantized(build("quantizer", name), weight)


@pytest.mark.parametrize(("kind", "spec"), NEEDY)
@pytest.mark.parametrize("drifts", [False, True])
def test_what_it_needs_makes_it_better_than_its_own_grid_alone(kind: str, spec: dict[str, Any], drifts: bool) -> None:
    """At keeping the outputs, the point of calibration text: those of undrifted inputs, and those before the drift."""
    quantizer = build(kind, spec)
    if quantizer.bits == 16 or (drifts and "drift" not in quantizer.needs):
        return
    found, original = inputs()
    target = (original if drifts else found) @ weights().T

    def loss(rounded: Tensor) -> float:
        # Row by row: they differ in size by ten thousand.
        return float(((found @ rounded.T - target).square().sum(dim=0) / target.square().sum(dim=0)).mean())

    # Most of what a drifted layer loses it has lost already.
    share = 0.95 if drifts else 0.6
    ours = dequantize(quantized(quantizer, weights(), drifts=drifts))
    assert loss(ours) < share * loss(fake_quantize(weights(), quantizer.grid))


@pytest.mark.parametrize(("kind", "spec"), NEEDY)
def test_the_statistics_are_not_touched_and_their_unit_does_not_matter(kind: str, spec: dict[str, Any]) -> None:
    """They are shared by layers with one input, and another way to average over tokens changes no weight."""
    quantizer = build(kind, spec)
    known = statistics(quantizer)
    assert known is not None
    before = [bits(part) for part in (known.gram, known.drift) if part is not None]
    found = quantizer.quantize_layer(weights(), known)
    assert [bits(part) for part in (known.gram, known.drift) if part is not None] == before
    louder = replace(known, gram=known.gram * 64, drift=None if known.drift is None else known.drift * 64)
    assert bits(dequantize(quantizer.quantize_layer(weights(), louder))) == bits(dequantize(found))


@pytest.mark.parametrize(("kind", "spec"), NEEDY)
def test_drift_is_used_where_it_is_asked_for(kind: str, spec: dict[str, Any]) -> None:
    quantizer = build(kind, spec)
    with_drift, without = (dequantize(quantized(quantizer, weights(), drifts=drifts)) for drifts in (True, False))
    is_unused = quantizer.bits == 16 or "drift" not in quantizer.needs
    assert torch.equal(with_drift, without) == is_unused


@pytest.mark.parametrize(("kind", "spec"), NEEDY)
def test_too_few_tokens_and_dead_inputs_leave_finite_weights(kind: str, spec: dict[str, Any]) -> None:
    quantizer = build(kind, spec)
    found, original = (values[:20].clone() for values in inputs())
    found[:, [3, 64]] = 0
    moments = Moments(INPUTS, has_drift="drift" in quantizer.needs)
    moments.add(found, original)
    rounded = dequantize(quantizer.quantize_layer(weights(), moments.statistics()))
    assert bool(torch.isfinite(rounded).all())
    assert quantizer.bits == 16 or not bool(rounded[:, [3, 64]].any())


def test_settings_are_not_changed_by_work() -> None:
    for kind, spec in (param.values for param in VARIATIONS):
        quantizer = build(str(kind), spec)
        before = copy.deepcopy(quantizer)
        quantized(quantizer, weights())
        assert quantizer == before
