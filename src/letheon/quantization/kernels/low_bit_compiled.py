"""A few tokens times a layer on its codes, compiled for the processor: every weight is made in a register and used.

    y[t, r] = sum over groups of  sum over k of x[t, k] * w[r, k]        w as in `packed_codes`, exact
What is saved is reading: 0.5 or 1 byte a weight in the place of 4. What it costs is making the weights, once for four
tokens; so it is for few. Sums run in float32 in an order of their own, and nothing else differs from a product with
the dequantized weights. Rows are shared among as many threads as torch has.

Source: this project.  Checked against: float64, with an error no larger than that of torch's own product.
"""

# numba reads what it compiles, and infers types itself.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from letheon.errors import MissingExtra
from letheon.quantization.kernels.packed_codes import PackedCodes

_AT_LEAST = 2**18
"""Weights a thread should have: a smaller share is done before another thread has woken up."""


def is_there() -> bool:
    """Whether numba, which compiles this, is installed."""
    return find_spec("numba") is not None


def multiply_compiled(x: Float[Tensor, "tokens inputs"], packed: PackedCodes) -> Float[Tensor, "tokens outputs"]:
    """x W^T in float32.

    Args:
        x: float32, on the CPU.
        packed: on the CPU.
    Raises:
        MissingExtra: numba is not installed.
    """
    one, four, _ = _functions(packed)
    found = x.new_empty(len(x), packed.shape[0])
    given, out = x.detach().contiguous().numpy(), found.numpy()
    codes, scale, zero = packed.codes.numpy(), packed.scale.numpy(), packed.zero.numpy()
    whole = len(given) // 4 * 4

    def work(some: slice) -> None:
        for begin in range(0, whole, 4):
            four(given[begin : begin + 4], codes[some], scale[some], zero[some], out[begin : begin + 4, some])
        for begin in range(whole, len(given)):
            one(given[begin], codes[some], scale[some], zero[some], out[begin, some])

    _shared(work, packed.shape[0], weights=packed.codes.numel() * 8 // packed.bits * len(given))
    return found


def fill_compiled(packed: PackedCodes, rows: slice, out: Float[Tensor, "some inputs"]) -> None:
    """Write the weights of some rows, those of `packed_codes.values`, into a float32 matrix on the CPU.

    Raises:
        MissingExtra: numba is not installed.
    """
    _, _, fill = _functions(packed)
    values = out.numpy()
    codes, scale, zero = (tensor[rows].numpy() for tensor in (packed.codes, packed.scale, packed.zero))

    def work(some: slice) -> None:
        fill(codes[some], scale[some], zero[some], values[some])

    _shared(work, len(values), weights=values.size)


def _shared(work: Callable[[slice], None], rows: int, *, weights: int) -> None:
    """Do the work on all rows, on as many threads as torch has and the work is worth."""
    threads = max(1, min(torch.get_num_threads(), weights // _AT_LEAST, rows))
    if threads == 1:
        work(slice(0, rows))
        return
    ends = [rows * part // threads for part in range(threads + 1)]
    # A fault inside a thread is raised here.
    list(_pool(os.getpid(), threads).map(work, [slice(begin, end) for begin, end in pairwise(ends)]))


def _functions(packed: PackedCodes) -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]]:
    if not is_there():
        raise MissingExtra("the compiled product with codes", "quantize")
    return _compiled(packed.bits, packed.dtype)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Kept, since making threads takes longer than a small product. `process`: a fork has none of its parent's."""
    return ThreadPoolExecutor(threads)


@cache
def _compiled(bits: int, dtype: torch.dtype) -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]]:
    """The product with one token, with four, and the weights themselves."""
    import numba

    # Sums may be taken in any order; how a single weight is rounded may not be touched.
    exactly = numba.njit(nogil=True, error_model="numpy")
    summing = numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
    rounded = _rounding(dtype)
    halves = 8 // bits

    def made(code, zero, step):
        return rounded(np.float32(np.int32(np.int32(code) - zero)) * step)

    weight = exactly(inspect.unwrap(made))

    # int32 by hand: numba computes in int64 otherwise, and half as many numbers are handled at once.
    def one(x, codes, scale, zero, out):
        rows, groups = scale.shape
        size = x.size // groups
        half = size // halves
        for row in range(rows):
            total = np.float32(0)
            for group in range(groups):
                step, centre = scale[row, group], np.int32(zero[row, group])
                line = codes[row, group * half : (group + 1) * half]
                x_low = x[group * size : group * size + half]
                x_high = x[(group + 1) * size - half : (group + 1) * size]
                low, high = np.float32(0), np.float32(0)
                if bits == 4:
                    for k in range(half):
                        code = np.int32(line[k])
                        low += x_low[k] * weight(code & 15, centre, step)
                        high += x_high[k] * weight(code >> 4, centre, step)
                else:
                    for k in range(half):
                        low += x_low[k] * weight(line[k], centre, step)
                total += low + high
            out[row] = total

    def four(x, codes, scale, zero, out):
        rows, groups = scale.shape
        size = x.shape[1] // groups
        half = size // halves
        for row in range(rows):
            y0 = y1 = y2 = y3 = np.float32(0)
            for group in range(groups):
                step, centre = scale[row, group], np.int32(zero[row, group])
                line = codes[row, group * half : (group + 1) * half]
                here = slice(group * size, group * size + half)
                a0, a1, a2, a3 = x[0, here], x[1, here], x[2, here], x[3, here]
                there = slice((group + 1) * size - half, (group + 1) * size)
                b0, b1, b2, b3 = x[0, there], x[1, there], x[2, there], x[3, there]
                s0 = s1 = s2 = s3 = np.float32(0)
                if bits == 4:
                    for k in range(half):
                        code = np.int32(line[k])
                        low, high = weight(code & 15, centre, step), weight(code >> 4, centre, step)
                        s0 += a0[k] * low + b0[k] * high
                        s1 += a1[k] * low + b1[k] * high
                        s2 += a2[k] * low + b2[k] * high
                        s3 += a3[k] * low + b3[k] * high
                else:
                    for k in range(half):
                        low = weight(line[k], centre, step)
                        s0 += a0[k] * low
                        s1 += a1[k] * low
                        s2 += a2[k] * low
                        s3 += a3[k] * low
                y0 += s0
                y1 += s1
                y2 += s2
                y3 += s3
            out[0, row], out[1, row], out[2, row], out[3, row] = y0, y1, y2, y3

    def fill(codes, scale, zero, out):
        rows, groups = scale.shape
        size = out.shape[1] // groups
        half = size // halves
        for row in range(rows):
            for group in range(groups):
                step, centre = scale[row, group], np.int32(zero[row, group])
                line = codes[row, group * half : (group + 1) * half]
                low = out[row, group * size : group * size + half]
                if bits == 4:
                    high = out[row, group * size + half : (group + 1) * size]
                    for k in range(half):
                        low[k] = weight(np.int32(line[k]) & 15, centre, step)
                    for k in range(half):
                        high[k] = weight(np.int32(line[k]) >> 4, centre, step)
                else:
                    for k in range(half):
                        low[k] = weight(line[k], centre, step)

    return summing(inspect.unwrap(one)), summing(inspect.unwrap(four)), exactly(inspect.unwrap(fill))


def _rounding(dtype: torch.dtype) -> Any:
    """float32 -> the nearest value of a dtype, half to even, as float32; in instructions that no optimization moves."""
    import numba
    from llvmlite import ir
    from numba.core.types import float32
    from numba.extending import intrinsic

    word = ir.IntType(32)

    def bfloat16(context, number):
        def code(context, builder, signature, arguments):
            found = builder.bitcast(arguments[0], word)
            is_odd = builder.and_(builder.lshr(found, word(16)), word(1))
            found = builder.add(builder.add(found, word(0x7FFF)), is_odd)
            return builder.bitcast(builder.and_(found, word(0xFFFF0000)), ir.FloatType())

        return float32(float32), inspect.unwrap(code)

    def float16(context, number):
        def code(context, builder, signature, arguments):
            return builder.fpext(builder.fptrunc(arguments[0], ir.HalfType()), ir.FloatType())

        return float32(float32), inspect.unwrap(code)

    def unchanged(number):
        return number

    if dtype == torch.float32:
        return numba.njit(nogil=True)(inspect.unwrap(unchanged))
    return intrinsic(inspect.unwrap(bfloat16 if dtype == torch.bfloat16 else float16))
