"""Low-bit grids: which values a weight may take, and which of them it gets.

A weight matrix W is (out, in). Weights that share a scale form a group: a row, a stretch of `group` inputs
of a row, or the whole tensor. With step s, zero point z and codes c in [lo, hi]:
    c = clamp(round(w / s) + z, lo, hi)        Q(w) = s * (c - z)        round: half to even, all in float32
Four conventions are in use and files of one are misread by another, so they are named. b bits, M = max|w|:
    sym          s = M / (2^(b-1) - 1)        z = 0              codes -2^(b-1) .. 2^(b-1)-1 (QuaRot, GPTAQ)
    sym_clipped  s = M / 2^(b-1)              z = 0              as sym; +M is cut by a whole step (SURE)
    sym_centred  s = 2M / (2^b - 1)           z = 2^(b-1)        codes 0 .. 2^b-1; +M cut by half one (GPTQ)
    asym         s = (max - min) / (2^b - 1)  z = round(-min/s)  codes 0 .. 2^b-1; the range always holds 0
In sym_centred a weight at +M or -M lies midway between two codes: the last bit of M / s decides about it.
M and the range are floored at 1e-5; a group of zeros takes -1 .. 1 in asym and sym_centred, as in the
reference code.
clip="mse" tries the steps p*s for p = 1, 0.99, ..., 0.21 and keeps, for each group, the
first with the smallest sum |w - Q(w)|^2.4. (z stays: -min/s does not change when both shrink alike.)

FP4 and NF4 are tables of 16 values times the absmax of a block; the nearest value is taken, a tie goes to the
smaller magnitude in FP4 and to the lower value in NF4, as in bitsandbytes' kernels. Blocks run over the
flattened matrix.

Source: QuaRot arXiv:2404.00456, GPTQ arXiv:2210.17323 (sym_centred, clip search), SURE arXiv:2410.16454
(sym_clipped), QLoRA arXiv:2305.14314 and bitsandbytes (FP4, NF4: tables and tie rule).
Checked against: a loop over single weights, |Q(w) - w| <= s/2, scale equivariance, Q(0) = 0, level counts, an
independent table with a search over all 16 values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from letheon.errors import BadInput, require

_FLOOR = 1e-5
"""Smallest absmax or range of a group, as in the reference code."""

_CLIP_POWER, _CLIP_TRIALS = 2.4, 80
"""Clip search: error norm, and ranges tried in steps of 1 % (GPTQ: norm 2.4, grid 100, maxshrink 0.8)."""
_CLIP_CHUNK = 2**16
"""Weights searched at once."""

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_FP4 = tuple(sign * level / 12 for sign in (1, -1) for level in (0, 0.0625, 8, 12, 4, 6, 2, 3))
_TABLES = {"fp4": _FP4, "nf4": _NF4}
"""Code -> value for an absmax of 1. FP4: sign, two exponent bits, one fraction bit; 8 (minus zero) unused."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A uniform grid. See the module's docstring for the formulas."""

    bits: int = 4
    """2 to 8; 16 means off (weights pass unchanged)."""
    scheme: Literal["sym", "sym_clipped", "sym_centred", "asym"] = "sym"
    """Which convention gives step and codes. Name it in a report: 4-bit symmetric steps differ by 14 %."""
    group: int | Literal["row", "tensor"] = "row"
    """Weights that share a scale: a row, the whole tensor, or this many neighbouring inputs of a row."""
    clip: Literal["absmax", "mse"] = "absmax"
    """absmax covers the largest weight; mse searches the smallest error, in about 30 times the time."""
    scale_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """What a file stores scales as. They are rounded to it before any weight is, so that the file holds this grid."""

    def __post_init__(self) -> None:
        require(
            self.bits in (2, 3, 4, 5, 6, 7, 8, 16),
            f"a grid of {self.bits} bits does not exist. Use 2 to 8, or 16 to leave weights as they are",
        )
        schemes = ("sym", "sym_clipped", "sym_centred", "asym")
        require(
            self.scheme in schemes,
            f"grid scheme {self.scheme!r} is not known. Use one of {', '.join(schemes)}",
        )
        is_size = isinstance(self.group, int) and not isinstance(self.group, bool) and self.group >= 1
        require(
            is_size or self.group in ("row", "tensor"),
            f"grid group {self.group!r} is not usable. Use 'row', 'tensor', or a number such as 128",
        )
        require(self.clip in ("absmax", "mse"), f"grid clip {self.clip!r} is not known. Use 'absmax' or 'mse'")
        require(
            self.scale_dtype in ("float32", "float16", "bfloat16"),
            f"grid scale_dtype {self.scale_dtype!r} is not known. Use 'float32', 'float16' or 'bfloat16'",
        )

    @property
    def code_range(self) -> tuple[int, int]:
        """Lowest and highest code. Raises BadInput for 16 bits, which has no codes."""
        require(self.bits != 16, "a grid of 16 bits is off and has no codes. Use 2 to 8 bits")
        if self.scheme in ("sym", "sym_clipped"):
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1


@dataclass(frozen=True)
class CodebookGrid:
    """bitsandbytes' 4-bit types, simulated: 16 uneven values times a block's absmax (a float32)."""

    name: Literal["fp4", "nf4"]
    """fp4: default of `load_in_4bit`, with all below 0.086 absmax at 0 or +-0.0052 absmax; nf4: QLoRA's."""
    block: int = 64
    """Weights that share an absmax, along the flattened matrix: a block may run over the end of a row."""

    def __post_init__(self) -> None:
        require(self.name in _TABLES, f"codebook {self.name!r} is not known. Use 'fp4' or 'nf4'")
        require(
            self.block >= 1,
            f"a codebook block of {self.block} weights is not usable. Use 64, as bitsandbytes does",
        )


def grid_named(name: str) -> Grid | CodebookGrid:
    """A grid from a word: "int4" (one scale a row), "int4/128" (one for 128 inputs), "fp4", "nf4".

    Raises:
        BadInput: another word.

    >>> grid_named("int4/128")
    Grid(bits=4, scheme='sym', group=128, clip='absmax', scale_dtype='float32')
    """
    codebooks = {"fp4": CodebookGrid("fp4"), "nf4": CodebookGrid("nf4")}
    if name in codebooks:
        return codebooks[name]
    found = re.fullmatch(r"int([2-8])(?:/([1-9]\d*))?", name)
    if found is None:
        raise BadInput(
            f"{name!r} is not a grid. Known: int2 to int8 with one scale a row, int4/128 with one for 128 inputs, "
            "fp4, nf4"
        )
    return Grid(bits=int(found[1]), group=int(found[2]) if found[2] else "row")


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """A rounded weight matrix: all that a packer or `dequantize` needs."""

    codes: Tensor
    """(out, in) int16, within `grid.code_range` (a codebook: 0..15). With 16 bits: the weight itself."""
    scale: Float[Tensor, "rows groups"]
    """float32: (out, 1) by row, (out, in / group) by group, (1, 1) by tensor, (blocks, 1) for a codebook."""
    zero: Int[Tensor, "rows groups"]
    """int16, the code that stands for 0.0; shaped like `scale`. All 0 where the scheme has no zero point."""
    grid: Grid | CodebookGrid
    """The grid the codes belong to."""
    dtype: torch.dtype
    """The weight's own dtype, given back by `dequantize`."""
    group_index: Int[Tensor, " columns"] | None = None
    """int32, the group (column of `scale`) of every input; None: groups are stretches of neighbouring inputs."""


def group_parameters(
    weight: Float[Tensor, "rows columns"], grid: Grid
) -> tuple[Float[Tensor, "rows groups"], Float[Tensor, "rows groups"]]:
    """Step and zero point of every group, float32, as `quantize` would choose them for these weights.

    Raises:
        BadInput: what `quantize` raises, and a grid of 16 bits, which has neither.

    >>> group_parameters(torch.tensor([[0.7, -0.3, 0.06]]), Grid(bits=4))[0]
    tensor([[0.1000]])
    """
    _check_matrix(weight)
    require(grid.bits != 16, "a grid of 16 bits is off and has no step. Use 2 to 8 bits")
    scale, zero = _scale_and_zero(_grouped(weight.detach().float(), grid), grid)
    return scale.squeeze(-1), zero.squeeze(-1)


def quantize(weight: Float[Tensor, "rows columns"], grid: Grid | CodebookGrid) -> Quantized:
    """Round a weight matrix to a grid.

    Args:
        weight: (out, in), any floating dtype; the arithmetic is float32. No gradient flows.
        grid: a uniform grid or a codebook.
    Raises:
        BadInput: a group that does not divide the inputs, a NaN or infinite value, no matrix, an empty one.

    >>> quantize(torch.tensor([[0.7, -0.3, 0.06]]), Grid(bits=4)).codes
    tensor([[ 7, -3,  1]], dtype=torch.int16)
    """
    _check_matrix(weight)
    if isinstance(grid, CodebookGrid):
        return _quantize_codebook(weight, grid)
    if grid.bits == 16:
        ones = torch.ones(1, 1, device=weight.device)
        zero = torch.zeros(1, 1, dtype=torch.int16, device=weight.device)
        return Quantized(codes=weight.detach().clone(), scale=ones, zero=zero, grid=grid, dtype=weight.dtype)
    grouped = _grouped(weight.detach().float(), grid)
    scale, zero = _scale_and_zero(grouped, grid)
    low, high = grid.code_range
    codes = (grouped / scale).round_().add_(zero).clamp_(low, high)
    return Quantized(
        codes=codes.to(torch.int16).view(weight.shape),
        scale=scale.squeeze(-1),
        zero=zero.to(torch.int16).squeeze(-1),
        grid=grid,
        dtype=weight.dtype,
    )


def dequantize(quantized: Quantized) -> Float[Tensor, "rows columns"]:
    """The weights that the codes stand for, computed in float32, in the dtype of the weight before."""
    return _values(quantized).to(quantized.dtype)


def fake_quantize(weight: Float[Tensor, "rows columns"], grid: Grid | CodebookGrid) -> Float[Tensor, "rows columns"]:
    """The nearest weights on the grid: same shape and dtype, no gradient. Raises what `quantize` raises.

    For a straight-through pass write `weight + (fake_quantize(weight, grid) - weight).detach()`.
    """
    return dequantize(quantize(weight, grid))


def bin_centres_and_step(
    weight: Float[Tensor, "rows columns"], grid: Grid
) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "rows columns"]]:
    """The value every weight is rounded to, and the width of its bin: both float32 and shaped like `weight`.

    A weight that stays within centre +- step/2 keeps its code as long as the scale of its group stays: while
    its smallest and largest weights do not move and no other outgrows them. (The outermost bins reach half a
    step beyond the largest weight, so clamp to the group's range too.) At the cut edge of a range a weight
    may already lie outside its bin.

    Raises:
        BadInput: what `quantize` raises, or a grid without one step (16 bits, a codebook).
    """
    quantized = quantize(weight, grid)
    step = _steps(quantized)
    require(step is not None, f"{grid} has no step of its own. Use a uniform grid of 2 to 8 bits")
    assert step is not None
    return _values(quantized), step


def code_match(
    before: Float[Tensor, "rows columns"], after: Float[Tensor, "rows columns"], grid: Grid | CodebookGrid
) -> float:
    """Share of weights with equal codes, each matrix rounded with its own scales, in [0, 1].

    Codes, not values: a group whose largest weight moved may keep its codes and change every value a little.
    A high share does not prove that knowledge is back; measure it. With 16 bits: the share of equal weights.
    """
    _check_same_shape(before, after)
    equal = quantize(before, grid).codes == quantize(after, grid).codes
    return float(equal.double().mean())


def shift_in_steps(
    before: Float[Tensor, "rows columns"], after: Float[Tensor, "rows columns"], grid: Grid | CodebookGrid
) -> float | None:
    """Mean of |after - before| / step of `before`'s grid; None without one step (codebooks, 16 bits)."""
    _check_same_shape(before, after)
    step = _steps(quantize(before, grid))
    if step is None:
        return None
    moved = after.detach().float().sub(before.detach().float()).abs_().div_(step)
    return float(moved.double().mean())


def _check_matrix(weight: Tensor) -> None:
    if weight.ndim != 2 or weight.numel() == 0:
        raise BadInput(f"a weight of shape {tuple(weight.shape)} has no grid. Give a matrix (out, in) with entries")
    if not weight.is_floating_point() or weight.is_meta:
        where = "on the meta device" if weight.is_meta else f"of dtype {weight.dtype}"
        raise BadInput(f"a weight {where} cannot be rounded. Load the model's floating-point weights first")
    if not bool(torch.isfinite(weight).all()):
        row = int((~torch.isfinite(weight)).any(dim=1).nonzero()[0])
        raise BadInput(
            f"a weight of shape {tuple(weight.shape)} holds NaN or infinite values (first in row {row}). "
            "The model is damaged, or its training diverged: go back to an earlier checkpoint"
        )


def _check_same_shape(before: Tensor, after: Tensor) -> None:
    require(
        before.shape == after.shape,
        f"weights of shapes {tuple(before.shape)} and {tuple(after.shape)} cannot be compared. "
        "Give the same layer of two models of one architecture",
    )


def _grouped(weight: Tensor, grid: Grid) -> Tensor:
    """The matrix as (rows, groups, members), members sharing a scale."""
    rows, columns = weight.shape
    if grid.group == "tensor":
        return weight.reshape(1, 1, -1)
    size = columns if grid.group == "row" else int(grid.group)
    if columns % size:
        raise BadInput(
            f"a group of {size} does not divide the {columns} inputs of a weight of shape "
            f"({rows}, {columns}). Use a divisor of {columns}, or group 'row'"
        )
    return weight.reshape(rows, columns // size, size)


def _scale_and_zero(grouped: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Step and zero point of every group, float32, (rows, groups, 1)."""
    smallest, largest = grouped.aminmax(dim=-1, keepdim=True)
    smallest, largest = smallest.clamp(max=0), largest.clamp(min=0)
    absmax = torch.maximum(-smallest, largest)
    if grid.scheme in ("sym", "sym_clipped"):
        levels = 2 ** (grid.bits - 1) - (grid.scheme == "sym")
        scale, zero = absmax.clamp(min=_FLOOR) / levels, torch.zeros_like(absmax)
    else:
        is_zero = absmax == 0
        if grid.scheme == "sym_centred":
            smallest, largest = -absmax, absmax
        smallest, largest = smallest.masked_fill(is_zero, -1), largest.masked_fill(is_zero, 1)
        scale = (largest - smallest).clamp(min=_FLOOR) / (2**grid.bits - 1)
        centre = torch.full_like(scale, 2 ** (grid.bits - 1))
        zero = centre if grid.scheme == "sym_centred" else (-smallest / scale).round()
    if grid.clip == "mse":
        scale = _search_clip(grouped, scale, zero, grid)
    return _as_stored(scale, grid), zero


def _as_stored(scale: Tensor, grid: Grid) -> Tensor:
    """The steps as a file of the grid's dtype holds them, in float32."""
    stored = scale.to(getattr(torch, grid.scale_dtype)).float()
    if not bool(((stored > 0) & torch.isfinite(stored)).all()):
        worst = scale.max() if bool(torch.isinf(stored).any()) else scale.min()
        raise BadInput(
            f"a scale of {float(worst):.3g} is outside what {grid.scale_dtype} holds. Use --method.scale-dtype "
            "bfloat16 or float32, or leave this layer out"
        )
    return stored


def _search_clip(grouped: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """The step p * scale with the smallest error of each group; of equals the first, the widest range."""
    # A few rows at a time: the buffers of the 80 trials stay in the cache.
    at_once = max(1, _CLIP_CHUNK // (grouped.shape[1] * grouped.shape[2]))
    grouped_pieces, scales, zeros = (torch.split(values, at_once) for values in (grouped, scale, zero))
    pieces = zip(grouped_pieces, scales, zeros, strict=True)
    return torch.cat([_search_clip_piece(some, step, centre, grid) for some, step, centre in pieces])


def _search_clip_piece(grouped: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    low, high = grid.code_range
    best_error = torch.full_like(scale, torch.inf)
    best_scale = scale
    for trial in range(_CLIP_TRIALS):
        candidate = scale * (1 - trial / 100)
        error = (grouped / candidate).round_().add_(zero).clamp_(low, high).sub_(zero)
        error.mul_(candidate).sub_(grouped).abs_()
        # |e|^2.4 as 2^(2.4 log2 |e|), in a third of the time of pow; an error of 0 passes -inf and stays 0.
        total = error.log2_().mul_(_CLIP_POWER).exp2_().sum(dim=-1, keepdim=True)
        is_better = total < best_error
        best_error = torch.where(is_better, total, best_error)
        best_scale = torch.where(is_better, candidate, best_scale)
    return best_scale


def _quantize_codebook(weight: Tensor, grid: CodebookGrid) -> Quantized:
    blocks = _blocks(weight.detach().float(), grid.block)
    absmax = blocks.abs().amax(dim=1, keepdim=True)
    # Multiplied by the reciprocal, as the kernels do; where that would be infinite the block counts as zero.
    unit = blocks * torch.where(absmax > torch.finfo(torch.float32).tiny, 1 / absmax, 1.0)
    codes = _nearest_fp4(unit) if grid.name == "fp4" else torch.bucketize(unit, _midpoints(_NF4, unit))
    return Quantized(
        codes=codes.to(torch.int16).reshape(-1)[: weight.numel()].view(weight.shape),
        scale=absmax,
        zero=torch.full_like(absmax, _TABLES[grid.name].index(0.0), dtype=torch.int16),
        grid=grid,
        dtype=weight.dtype,
    )


def _blocks(flat_or_matrix: Tensor, block: int) -> Tensor:
    """(blocks, block), the last one filled up with zeros."""
    flat = flat_or_matrix.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % block)).view(-1, block)


def _nearest_fp4(unit: Tensor) -> Tensor:
    magnitudes = sorted(_FP4[:8])
    order = torch.tensor([_FP4.index(value) for value in magnitudes], device=unit.device)
    codes = order[torch.bucketize(unit.abs(), _midpoints(magnitudes, unit))]
    return codes + 8 * ((unit < 0) & (codes > 0))


def _midpoints(levels: tuple[float, ...] | list[float], like: Tensor) -> Tensor:
    ordered = torch.tensor(levels, dtype=torch.float64, device=like.device)
    return ((ordered[1:] + ordered[:-1]) / 2).to(like.dtype)


def _values(quantized: Quantized) -> Tensor:
    """The rounded weights in float32 (with 16 bits: the weight, in its own dtype)."""
    grid, codes = quantized.grid, quantized.codes
    if isinstance(grid, CodebookGrid):
        table = torch.tensor(_TABLES[grid.name], device=codes.device)
        values = _blocks(table[codes.int()], grid.block) * quantized.scale
        return values.reshape(-1)[: codes.numel()].view(codes.shape)
    if grid.bits == 16:
        return codes.clone()
    if quantized.group_index is not None:
        index = quantized.group_index.long()
        return (codes - quantized.zero[:, index]) * quantized.scale[:, index]
    grouped = _grouped(codes, grid) - quantized.zero.unsqueeze(-1)
    return (grouped * quantized.scale.unsqueeze(-1)).view(codes.shape)


def _steps(quantized: Quantized) -> Tensor | None:
    """The step of every weight, weight-shaped, or None where there is not one."""
    grid, codes = quantized.grid, quantized.codes
    if isinstance(grid, CodebookGrid) or grid.bits == 16:
        return None
    if quantized.group_index is not None:
        return quantized.scale[:, quantized.group_index.long()]
    grouped = _grouped(codes, grid)
    return quantized.scale.unsqueeze(-1).expand_as(grouped).reshape(codes.shape)
