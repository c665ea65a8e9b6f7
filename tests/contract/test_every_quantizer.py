"""What every quantizer promises, run over the folder: a new file is covered without a line added here."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.methods import build, names
from letheon.numerics.grids import Quantized, dequantize
from tests.contract.register import every_variation
from tests.toys import bits

VARIATIONS = every_variation("quantizer")
ROWS, INPUTS = 12, 128


def weights(dtype: torch.dtype = torch.float32, *, seed: int = 0) -> Tensor:
    """Rows of different sizes, some of them lopsided."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(ROWS, INPUTS, generator=generator, dtype=torch.float64)
    size = 10.0 ** torch.linspace(-3, 1, ROWS, dtype=torch.float64)
    return ((drawn + torch.linspace(-1, 1, ROWS, dtype=torch.float64)[:, None]) * size[:, None]).to(dtype)


def quantized(quantizer: Any, weight: Tensor) -> Quantized:
    assert quantizer.needs == (), f"needs {quantizer.needs}: give the statistics here"
    found: Quantized = quantizer.quantize_layer(weight, None)
    return found


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
    """Rounding again moves no code of a group whose scale is found again; by default nothing moves at all.

    A range that cuts its largest weight off (sym_clipped, sym_centred, clip="mse") is another one the second time.
    """
    quantizer = build(kind, spec)
    first = quantized(quantizer, weights())
    second = quantized(quantizer, dequantize(first))
    if quantizer.bits == 16:
        assert torch.equal(second.codes, first.codes)
        return
    is_found = torch.isclose(first.scale, second.scale, rtol=1e-6)
    if spec == VARIATIONS[0].values[1]:
        assert bits(dequantize(second)) == bits(dequantize(first))
    members = first.codes.numel() // first.scale.numel()
    same = (first.codes == second.codes).reshape(-1, members).all(dim=1)
    assert bool(same[is_found.reshape(-1)].all())


@pytest.mark.parametrize(("kind", "spec"), VARIATIONS)
def test_a_weight_counts_for_its_size_alone(kind: str, spec: dict[str, Any]) -> None:
    """Twice the weights are twice the result, and rows in another order the same rows in that order."""
    quantizer = build(kind, spec)
    found = dequantize(quantized(quantizer, weights()))
    assert torch.equal(dequantize(quantized(quantizer, weights() * 2)), found * 2)
    turned = dequantize(quantized(quantizer, weights().flip(0).contiguous()))
    assert torch.equal(turned.flip(0), found)


@pytest.mark.parametrize(("kind", "spec"), VARIATIONS)
def test_zeros_stay_zeros(kind: str, spec: dict[str, Any]) -> None:
    weight = weights()
    weight[0], weight[1, ::2] = 0, 0
    found = dequantize(quantized(build(kind, spec), weight))
    assert not bool(found[weight == 0].any())
    assert not bool(dequantize(quantized(build(kind, spec), torch.zeros(ROWS, INPUTS))).any())


@pytest.mark.parametrize("name", names("quantizer"))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(name: str, value: float) -> None:
    weight = weights()
    weight[3, 4] = value
    with pytest.raises(BadInput, match="NaN or infinite"):
        quantized(build("quantizer", name), weight)


def test_settings_are_not_changed_by_work() -> None:
    for kind, spec in (param.values for param in VARIATIONS):
        quantizer = build(str(kind), spec)
        before = copy.deepcopy(quantizer)
        quantized(quantizer, weights())
        assert quantizer == before
