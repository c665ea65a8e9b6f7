"""Tokens times a layer on its codes for a GPU, in Triton: weights are made in registers and never stand in memory.

    y[t, r] = sum over k of x[t, k] * w[r, k]        w as in `packed_codes`, then in the dtype of x; sums in float32
A program makes a tile of y. It goes through the groups of its rows and, inside a group, through pieces of both halves
(4 bits) at once: a byte is read once and gives a weight for each. Weights that are already of x's dtype are exact, as
in a product with the dequantized layer.

Imported only where triton is.  Source: this project.  Checked against: float64, in Triton's interpreter on the
processor (tests/quantization/kernels/interpreted_low_bit.py), and compiled for a GPU. It has not been run on one.
The interpreter cuts numbers off where bfloat16 is rounded, and multiplies the bits of bfloat16 as whole numbers: there
the kernel rounds by itself and multiplies in float32, which holds the same numbers.
"""

# Triton reads the source of what it compiles: names of tensors' types would say nothing to it.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from letheon.errors import require
from letheon.quantization.kernels.packed_codes import PackedCodes

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def multiply_in_triton(x: Float[Tensor, "tokens inputs"], packed: PackedCodes) -> Float[Tensor, "tokens outputs"]:
    """x W^T in the dtype of x.

    Args:
        x: float16 or bfloat16, on a GPU (in the interpreter: anywhere).
        packed: on the same device.
    Raises:
        BadInput: x of another dtype.
    """
    require(
        x.dtype in (torch.float16, torch.bfloat16),
        f"the product with codes in Triton takes float16 and bfloat16, and x is {x.dtype}. Use the way 'tiles'",
    )
    (tokens, inputs), outputs = x.shape, packed.shape[0]
    found = x.new_empty(tokens, outputs)
    half = packed.group * packed.bits // 8
    tile = min(64, max(16, triton.next_power_of_2(tokens)))
    piece = min(64, max(16, triton.next_power_of_2(half)))
    grid = (triton.cdiv(tokens, tile), triton.cdiv(outputs, 64))
    _kernel()[grid](
        x.detach().contiguous(), packed.codes, packed.scale, packed.zero, found, tokens, outputs, inputs,
        inputs // packed.group, packed.group, half,
        IS_HALVED=packed.bits == 4, KEPT=_KINDS[packed.dtype], GIVEN=_KINDS[x.dtype], TOKENS=tile, OUTPUTS=64,
        PIECE=piece, IS_INTERPRETED=bool(triton.knobs.runtime.interpret), enable_fp_fusion=False,
    )  # fmt: skip
    return found


@cache
def _kernel() -> Any:
    # While testing, checks of types are wrapped around every function.
    return triton.jit(inspect.unwrap(_multiply))


def _round(number, KIND: tl.constexpr, IS_INTERPRETED: tl.constexpr):
    """The nearest number that a dtype holds, half to even, as float32. Compiled, never run as it is."""
    if KIND == 1:
        if IS_INTERPRETED:
            found = number.to(tl.uint32, bitcast=True)
            found = (found + 0x7FFF + ((found >> 16) & 1)) & 0xFFFF0000
            number = found.to(tl.float32, bitcast=True)
        else:
            number = number.to(tl.bfloat16).to(tl.float32)
    if KIND == 2:
        number = number.to(tl.float16).to(tl.float32)
    return number


_rounded = triton.jit(inspect.unwrap(_round))


def _add(
    total, code, centre, step, x,
    KEPT: tl.constexpr, GIVEN: tl.constexpr, IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    """total + x w^T for codes (outputs, some inputs) and x (tokens, some inputs). Compiled, never run as it is."""
    weight = _rounded((code.to(tl.float32) - centre) * step, KEPT, IS_INTERPRETED)
    if KEPT != GIVEN:
        weight = _rounded(weight, GIVEN, IS_INTERPRETED)
    if IS_INTERPRETED:
        total += tl.dot(x.to(tl.float32), tl.trans(weight), input_precision="ieee")
    else:
        total = tl.dot(x, tl.trans(weight.to(x.dtype)), total)
    return total


_added = triton.jit(inspect.unwrap(_add))


def _multiply(
    x, codes, scale, zero, found, tokens, outputs, inputs, groups, size, half,
    IS_HALVED: tl.constexpr, KEPT: tl.constexpr, GIVEN: tl.constexpr, TOKENS: tl.constexpr, OUTPUTS: tl.constexpr,
    PIECE: tl.constexpr, IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The formula above; all matrices are contiguous. Compiled, never run as it is."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    row = (tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    is_token, is_row = token < tokens, row < outputs
    x_line = x + token.to(tl.int64)[:, None] * inputs
    total = tl.zeros((TOKENS, OUTPUTS), dtype=tl.float32)
    for group in range(groups):
        step = tl.load(scale + row * groups + group, mask=is_row, other=0.0)[:, None]
        centre = tl.load(zero + row * groups + group, mask=is_row, other=0).to(tl.float32)[:, None]
        line = codes + (row * groups + group)[:, None] * half
        for begin in range(0, half, PIECE):
            k = begin + tl.arange(0, PIECE)[None, :]
            # Beyond the group x is 0, and what weight it meets does not matter.
            inside = is_token[:, None] & (k < half)
            byte = tl.load(line + k, mask=is_row[:, None] & (k < half), other=0).to(tl.int32)
            low = tl.load(x_line + group * size + k, mask=inside, other=0.0)
            if IS_HALVED:
                high = tl.load(x_line + group * size + half + k, mask=inside, other=0.0)
                total = _added(total, byte & 15, centre, step, low, KEPT, GIVEN, IS_INTERPRETED)
                total = _added(total, byte >> 4, centre, step, high, KEPT, GIVEN, IS_INTERPRETED)
            else:
                total = _added(total, byte, centre, step, low, KEPT, GIVEN, IS_INTERPRETED)
    tl.store(
        found + token.to(tl.int64)[:, None] * outputs + row[None, :],
        _rounded(total, GIVEN, IS_INTERPRETED).to(found.dtype.element_ty),
        mask=is_token[:, None] & is_row[None, :],
    )
