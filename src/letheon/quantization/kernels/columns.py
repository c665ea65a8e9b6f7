"""A block of columns, rounded one by one, each error carried to the columns after it: for any device, and compiled.

For column i of a block of b, all rows at once, with w its value by then, s and z its step and zero point:
    c = clamp(round(w / s) + z, lo, hi)      q = s * (c - z)      e = (w - q) / U_ii
    w_k <- w_k - e U_ik + w P_ik + (w0 - w) R_ik            for k > i
U, P, R (b, b): the block's part of the factor, of the drift's share and of the residual's; w0: the original
weight. Without P and R this is GPTQ, with P GPTAQ, with both ResComp. Rows do not see each other.

Three ways, equal up to rounding: "torch" (any device; a few launches a column, nothing is read back), "numba"
(the processor; one compiled loop over rows, strips of rows in the first cache, on as many threads as torch has) and
"triton" (a GPU; one launch a block, in `columns_triton`).
numba comes with letheon[quantize] and triton with torch's builds for GPUs; without them "torch" runs, and `kernel_for`
says which.

Source: GPTQ arXiv:2210.17323 (lazy blocks), GPTAQ arXiv:2504.02692, ResComp arXiv:2604.07955.
Checked against: each other, and a loop over single weights in Python.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor

from letheon.errors import MissingExtra, require

Kernel = Literal["torch", "numba", "triton"]

_STRIP = 16
"""Rows whose divisions the compiled loop has under way at once: one row's columns wait for one another."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """What a kernel works on. All tensors of one dtype, float32 or float64, on one device."""

    values: Float[Tensor, "rows columns"]
    """The weights by now; not changed."""
    step: Float[Tensor, "rows columns"]
    zero: Float[Tensor, "rows columns"]
    code_range: tuple[int, int]
    factor: Float[Tensor, "columns columns"]
    """U, upper, with a positive diagonal."""
    drift: Float[Tensor, "columns columns"] | None = None
    """P, strictly upper."""
    residual: Float[Tensor, "columns columns"] | None = None
    """R, strictly upper."""
    original: Float[Tensor, "rows columns"] | None = None
    """w0; asked for with `residual`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundedBlock:
    """What comes out of a block."""

    codes: Int16[Tensor, "rows columns"]
    errors: Float[Tensor, "rows columns"]
    """e."""
    before: Float[Tensor, "rows columns"]
    """w: what each column was when its turn came."""


def kernel_for(device: torch.device | str) -> Kernel:
    """The way that `round_block` goes on a device unless told otherwise."""
    kind = torch.device(device).type
    if kind == "cuda" and _has_triton():
        return "triton"
    return "numba" if kind == "cpu" and _compiled() is not None else "torch"


def round_block(block: Block, *, kernel: Kernel | None = None) -> RoundedBlock:
    """Round a block's columns from left to right. `kernel`: None for the fastest that is there.

    Raises:
        MissingExtra: "numba" was asked for by name and is not installed.
        BadInput: "triton" was.
    """
    chosen = kernel or kernel_for(block.values.device)
    ways = {"torch": _round_torch, "numba": _round_compiled, "triton": _round_in_triton}
    return ways[chosen](block)


def _round_torch(block: Block) -> RoundedBlock:
    # Turned, so that a column of weights is one stretch of memory.
    before, step, zero = (values.T.contiguous() for values in (block.values.clone(), block.step, block.zero))
    low, high = block.code_range
    codes, errors = torch.empty_like(before, dtype=torch.int16), torch.empty_like(before)
    for column, value in enumerate(before):
        code = (value / step[column]).round_().add_(zero[column]).clamp_(low, high)
        codes[column] = code
        error = value - code.sub_(zero[column]).mul_(step[column])
        errors[column] = error.div_(block.factor[column, column])
        after = slice(column + 1, None)
        later = before[after]
        later.addr_(block.factor[column, after], errors[column], alpha=-1)
        if block.drift is not None:
            later.addr_(block.drift[column, after], value)
        if block.residual is not None:
            assert block.original is not None
            later.addr_(block.residual[column, after], block.original[:, column] - value)
    return RoundedBlock(codes=codes.T, errors=errors.T, before=before.T)


def _round_in_triton(block: Block) -> RoundedBlock:
    require(
        _has_triton(),
        "the column loop in Triton needs the package triton, which is not installed. It comes with PyTorch's builds "
        "for GPUs; or pip install triton",
    )
    from letheon.quantization.kernels.columns_triton import round_into

    before = torch.empty_like(block.values, memory_format=torch.contiguous_format)
    codes, errors = torch.empty_like(before, dtype=torch.int16), torch.empty_like(before)
    round_into(block, codes=codes, errors=errors, before=before)
    return RoundedBlock(codes=codes, errors=errors, before=before)


def _round_compiled(block: Block) -> RoundedBlock:
    compiled = _compiled()
    if compiled is None:
        raise MissingExtra("the compiled column loop", "quantize")
    before = block.values.clone(memory_format=torch.contiguous_format)
    codes, errors = torch.empty_like(before, dtype=torch.int16), torch.empty_like(before)
    by_row = [values.contiguous().numpy() for values in (before, block.step, block.zero, codes, errors)]
    original = (before.new_empty(0, 0) if block.original is None else block.original).contiguous().numpy()
    coefficients = [
        (before.new_empty(0, 0) if matrix is None else matrix).contiguous().numpy()
        for matrix in (block.factor, block.drift, block.residual)
    ]
    limits = [by_row[0].dtype.type(limit) for limit in block.code_range]

    def work(some: slice) -> None:
        compiled(*(values[some] for values in by_row), original[some], *coefficients, *limits)

    threads = min(torch.get_num_threads(), len(before))
    ends = [len(before) * part // threads for part in range(threads + 1)]
    pieces = [slice(begin, end) for begin, end in pairwise(ends)]
    if threads == 1:
        work(pieces[0])
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, pieces))  # a fault inside a thread is raised here
    return RoundedBlock(codes=codes, errors=errors, before=before)


def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _compiled() -> Callable[..., None] | None:
    try:
        import numba
    except ImportError:
        return None
    # Threads are ours (nogil), so that torch's setting counts. While testing, checks of types are wrapped around it.
    made: Callable[..., None]
    loop, how = inspect.unwrap(_round_rows), dict[str, Any](nogil=True, error_model="numpy")
    try:
        made = numba.njit(cache=True, **how)(loop)
    except RuntimeError:  # no folder can be written to: it is compiled anew in every process, in a second
        made = numba.njit(**how)(loop)
    return made


def _round_rows(values, step, zero, codes, errors, original, factor, drift, residual, low, high):  # type: ignore[no-untyped-def]
    """The formula above, row by row; an empty matrix is one that is not there. Compiled, never run as it is."""
    rows, columns = values.shape
    for begin in range(0, rows, _STRIP):
        strip = range(begin, min(begin + _STRIP, rows))
        for column in range(columns):
            for row in strip:
                centre = zero[row, column]
                code = min(max(np.rint(values[row, column] / step[row, column]) + centre, low), high)
                error = values[row, column] - (code - centre) * step[row, column]
                codes[row, column] = code
                errors[row, column] = error / factor[column, column]
            for row in strip:
                value, later = values[row, column], values[row, column + 1 :]
                error, answers = errors[row, column], factor[column, column + 1 :]
                for other in range(later.size):
                    later[other] -= error * answers[other]
                if drift.size:
                    answers = drift[column, column + 1 :]
                    for other in range(later.size):
                        later[other] += value * answers[other]
                if residual.size:
                    lost, answers = original[row, column] - value, residual[column, column + 1 :]
                    for other in range(later.size):
                        later[other] += lost * answers[other]
