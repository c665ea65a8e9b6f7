"""The column loop of `columns` for a GPU, in Triton: one launch a block, where torch makes a few for every column.

A program holds a tile of rows by all columns of the block in registers and goes through the columns; rows do not see
each other, so programs do not either. Column i is taken out of the tile by a masked sum (one value and zeros: exact),
its step, zero point and line of the factors are read when its turn comes. The order of operations is that of
`columns._round_torch`: divided by IEEE rules (Triton's own "/" is off by up to 2 units in the last place, which
moves codes), rounded half to even, the errors' share before the drift's before the residual's.

Imported only where triton is.  Source: see `columns`.  Checked against: `columns._round_torch`, in Triton's
interpreter on the processor (tests/quantization/kernels/interpreted.py). It has not been run on a GPU.
"""

# Triton reads the source of what it compiles: names of tensors' types would say nothing to it.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from letheon.quantization.kernels.columns import Block

_TILE = 2048
"""Weights that a program holds: 16 registers a thread at 4 warps."""


def round_into(block: Block, *, codes: torch.Tensor, errors: torch.Tensor, before: torch.Tensor) -> None:
    """Round a block's columns from left to right.

    Args:
        block: on a GPU (in the interpreter: anywhere), float32 or float64.
        codes, errors, before: (rows, columns), contiguous, filled here; int16 and twice the block's dtype.
    """
    rows, columns = block.values.shape
    width = triton.next_power_of_2(columns)
    tile = max(1, _TILE // width)
    low, high = block.code_range
    values, step, zero, factor = (
        tensor.contiguous() for tensor in (block.values, block.step, block.zero, block.factor)
    )
    # What is not there is never read; a pointer has to point somewhere.
    drift, residual, original = (
        values if tensor is None else tensor.contiguous() for tensor in (block.drift, block.residual, block.original)
    )
    _kernel()[(triton.cdiv(rows, tile),)](
        values, step, zero, factor, drift, residual, original, codes, errors, before, rows, columns,
        LOW=float(low), HIGH=float(high), TILE=tile, WIDTH=width,
        HAS_DRIFT=block.drift is not None, HAS_RESIDUAL=block.residual is not None,
        IS_DOUBLE=block.values.dtype == torch.float64, enable_fp_fusion=False,  # as torch, which rounds in between
    )  # fmt: skip


@cache
def _kernel() -> Any:
    # While testing, checks of types are wrapped around every function.
    return triton.jit(inspect.unwrap(_round_rows))


def _round_rows(
    values, step, zero, factor, drift, residual, original, codes, errors, before, rows, columns,
    LOW: tl.constexpr, HIGH: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
    HAS_DRIFT: tl.constexpr, HAS_RESIDUAL: tl.constexpr, IS_DOUBLE: tl.constexpr,
):  # fmt: skip
    """The formula of `columns`. All matrices are contiguous; compiled, never run as it is."""
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, WIDTH)
    is_row, is_column = row < rows, column < columns
    line = row.to(tl.int64) * columns
    inside = is_row[:, None] & is_column[None, :]
    tile = tl.load(values + line[:, None] + column[None, :], mask=inside, other=0.0)
    for i in range(columns):
        value = tl.sum(tl.where(column[None, :] == i, tile, 0.0), axis=1)
        size = tl.load(step + line + i, mask=is_row, other=1.0)
        centre = tl.load(zero + line + i, mask=is_row, other=0.0)
        diagonal = tl.load(factor + i * columns + i)
        # Adding 1.5 * 2^23 (2^52) leaves no place for a fraction: the sum is rounded, half to even. What is too
        # large for it is outside every range of codes.
        if IS_DOUBLE:
            code = (value / size + 6755399441055744.0) - 6755399441055744.0
        else:
            code = (tl.div_rn(value, size) + 12582912.0) - 12582912.0
        code = tl.minimum(tl.maximum(code + centre, LOW), HIGH)
        lost = value - (code - centre) * size
        error = lost / diagonal if IS_DOUBLE else tl.div_rn(lost, diagonal)
        tl.store(codes + line + i, code.to(tl.int16), mask=is_row)
        tl.store(errors + line + i, error, mask=is_row)
        later = is_column & (column > i)
        shares = tl.load(factor + i * columns + column, mask=later, other=0.0)
        after = tile - error[:, None] * shares[None, :]
        if HAS_DRIFT:
            shares = tl.load(drift + i * columns + column, mask=later, other=0.0)
            after += value[:, None] * shares[None, :]
        if HAS_RESIDUAL:
            moved = tl.load(original + line + i, mask=is_row, other=0.0) - value
            shares = tl.load(residual + i * columns + column, mask=later, other=0.0)
            after += moved[:, None] * shares[None, :]
        tile = tl.where(later[None, :], after, tile)
    tl.store(before + line[:, None] + column[None, :], tile, mask=inside)
