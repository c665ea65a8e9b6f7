"""Products with codes in Triton against float64. Run by `test_triton.py`, in a process of its own.

TRITON_INTERPRET=1 python -m pytest tests/quantization/kernels/interpreted_low_bit.py; on a GPU without the variable.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch

from letheon.errors import BadInput
from letheon.numerics.grids import dequantize
from letheon.quantization.kernels.low_bit_triton import multiply_in_triton
from letheon.quantization.kernels.packed_codes import PackedCodes, pack_codes
from tests.quantization.kernels.test_low_bit_matmul import layer_of, slowly, tokens

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def moved(packed: PackedCodes) -> PackedCodes:
    return replace(packed, **{name: getattr(packed, name).to(DEVICE) for name in ("codes", "scale", "zero")})


# Tiles are of 64 outputs, 16 to 64 tokens, pieces of 16 to 64 bytes: more than one, fewer, and rests.
CASES = [(4, 32, 1, 66), (4, 64, 5, 64), (4, 192, 17, 7), (4, "row", 3, 65), (4, 6, 2, 5), (8, 32, 4, 66), (8, 96, 70, 9)]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("bits", "group", "count", "outputs"), CASES)
def test_it_is_the_product_with_the_dequantized_layer(
    bits: int, group: Any, count: int, outputs: int, dtype: torch.dtype
) -> None:
    layer = layer_of(outputs, 192, bits=bits, group=group, dtype=dtype)
    x = tokens(count, 192).to(dtype)
    found = multiply_in_triton(x.to(DEVICE), moved(pack_codes(layer))).cpu()
    wanted = slowly(x, layer)
    assert found.dtype == dtype and found.shape == wanted.shape
    # Weights and products are exact, sums are float32, and y is rounded once.
    allowed = torch.finfo(dtype).eps / 2 * wanted.abs() + 1e-5 * wanted.abs().max()
    assert bool(((found.double() - wanted).abs() <= allowed).all())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kept", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_single_weights_are_those_of_the_layer_in_the_dtype_of_x(
    bits: int, kept: torch.dtype, dtype: torch.dtype
) -> None:
    layer = layer_of(8, 48, bits=bits, group=16, dtype=kept)
    x = torch.eye(48, dtype=dtype, device=DEVICE)
    found = multiply_in_triton(x, moved(pack_codes(layer))).cpu()
    assert torch.equal(found.T, dequantize(layer).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_weight_is_rounded_to_the_dtype_of_x_before_it_is_summed(dtype: torch.dtype) -> None:
    layer = layer_of(8, 48, bits=8, group=16, dtype=torch.float32)
    # Differences of two weights: small beside what each has lost.
    x = (torch.eye(48) - torch.eye(48).roll(1, dims=1)).to(dtype)
    found = multiply_in_triton(x.to(DEVICE), moved(pack_codes(layer))).cpu()
    weights = dequantize(layer).to(dtype).float()
    assert torch.equal(found.T, (weights - weights.roll(-1, dims=1)).to(dtype))


def test_another_dtype_is_refused() -> None:
    with pytest.raises(BadInput, match=r"takes float16 and bfloat16, and x is torch\.float32\. Use the way 'tiles'"):
        multiply_in_triton(tokens(1, 64).to(DEVICE), moved(pack_codes(layer_of(4, 64))))
