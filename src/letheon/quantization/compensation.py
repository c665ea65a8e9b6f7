"""Round a weight matrix column by column while the columns that are left make up for what was lost.

Columns go in `inverse.order`, in blocks of b. Inside a block every error reaches the columns after it at once
(`kernels.columns`); the columns beyond it get theirs in one product when it is done:
    W[:, rest] <- W[:, rest] - E U[block, rest] + V P[block, rest] + (W0 - V) R[block, rest]
E: errors by U_ii. V: what a column counts as beyond its block, for P and R: its value when its turn came
("before"), the value it was rounded to ("quantized"), the former clamped to what its own grid can hold
("clipped") or to what the grid of the block's last column can ("clipped_by_last").

Groups of g inputs: with act_order "static" they are neighbours in the layer and their grids are those of the
unmodified weights; with "dynamic" they are neighbours in the order of rounding, which a file has to say
(`Quantized.group_index`); with "none" both orders are one. The latter two fit a group's grid when its turn comes,
on weights that lack the corrections of the block it begins in. A grid by row is always that of the unmodified row.

Source: GPTQ arXiv:2210.17323; GPTAQ arXiv:2504.02692 and ResComp arXiv:2604.07955 for P, R and V, as in their code.
Checked against: solvers that compute every column's correction anew by least squares, in float64.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from letheon.errors import require
from letheon.numerics.grids import Grid, Quantized, group_parameters
from letheon.quantization.factors import Inverse
from letheon.quantization.kernels.columns import Block, Kernel, RoundedBlock, round_block

ActOrder = Literal["none", "static", "dynamic"]
Carried = Literal["before", "quantized", "clipped", "clipped_by_last"]


def check_settings(grid: Grid, *, damping: float, block: int, **shares: float) -> None:
    """Refuse what no solver can work with. `shares`: numbers from 0 to 1, by name."""
    require(grid.group != "tensor", "group 'tensor' fits no solver that goes by column. Use 'row', or a number")
    for name, share in {"damping": damping, **shares}.items():
        require(0 <= share <= 1, f"{name} {share} is not a share. Use a number from 0 to 1")
    require(block >= 1, f"a block of {block} columns is not usable. Use 128, or any number from 1")


def round_compensated(
    weight: Float[Tensor, "rows inputs"],
    grid: Grid,
    inverse: Inverse,
    *,
    act_order: ActOrder,
    block: int,
    drift: Float[Tensor, "inputs inputs"] | None = None,
    residual: Float[Tensor, "inputs inputs"] | None = None,
    carried: Carried = "quantized",
    kernel: Kernel | None = None,
) -> Quantized:
    """Codes and scales of a layer, in the order of its inputs.

    Args:
        weight: (out, in); rows of several layers with one input may be stacked. float64 is solved in float64,
            everything else in float32.
        grid: a uniform grid of 2 to 8 bits, by row or by group.
        inverse: the factor of the inverse moments, and the order.
        act_order: which inputs make a group; "none" needs an inverse in the layer's own order.
        block: columns in a block.
        drift, residual: P and R, in `inverse.order`.
        carried: V.
        kernel: how a block is rounded; None for the fastest way that is there.
    Raises:
        BadInput: a group that does not divide the inputs, a NaN or infinite weight, statistics of other inputs.
    """
    inputs = weight.shape[1]
    require(
        len(inverse.order) == inputs, f"statistics of {len(inverse.order)} inputs do not fit a layer of {inputs} inputs"
    )
    exact = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    groups = _Groups(exact, grid, inverse.order, act_order)  # before the dead inputs' weights are gone
    exact = exact.masked_fill(inverse.dead, 0.0)[:, inverse.order]
    factor, drift, residual = (
        None if matrix is None else matrix.to(exact.dtype) for matrix in (inverse.upper, drift, residual)
    )
    assert factor is not None
    original = None if residual is None else exact.clone()
    codes = torch.empty_like(exact, dtype=torch.int16)
    for begin in range(0, inputs, block):
        here, rest = slice(begin, begin + block), slice(begin + block, None)
        groups.fit(exact, begin, begin + block)
        step, zero = groups.of_columns(here)
        work = Block(
            values=exact[:, here],
            step=step,
            zero=zero,
            code_range=grid.code_range,
            factor=factor[here, here],
            drift=None if drift is None else drift[here, here],
            residual=None if residual is None else residual[here, here],
            original=None if original is None else original[:, here],
        )
        found = round_block(work, kernel=kernel)
        codes[:, inverse.order[here]] = found.codes
        later = exact[:, rest]
        later.addmm_(found.errors, factor[here, rest], alpha=-1)
        if drift is not None or residual is not None:
            value = _carried(work, found, carried)
            if drift is not None:
                later.addmm_(value, drift[here, rest])
            if residual is not None:
                assert original is not None
                later.addmm_(original[:, here] - value, residual[here, rest])
    return Quantized(
        codes=codes,
        scale=groups.scale,
        zero=groups.zero.to(torch.int16),
        grid=grid,
        dtype=weight.dtype,
        group_index=groups.index_in_file(),
    )


def _carried(block: Block, found: RoundedBlock, carried: Carried) -> Tensor:
    """V."""
    if carried == "before":
        return found.before
    if carried == "quantized":
        return (found.codes - block.zero) * block.step
    step, zero = (
        (values[:, -1:] if carried == "clipped_by_last" else values).expand_as(found.before)
        for values in (block.step, block.zero)
    )
    low, high = ((code - zero) * step for code in block.code_range)
    return found.before.clamp(low, high)


class _Groups:
    """The grids of a layer's groups: all known at the start, or fitted when a group's turn comes."""

    def __init__(self, weight: Tensor, grid: Grid, order: Int64[Tensor, " inputs"], act_order: ActOrder) -> None:
        self._grid, self._order, self._act_order, self._dtype = grid, order, act_order, weight.dtype
        inputs = weight.shape[1]
        self._size = inputs if grid.group == "row" else int(grid.group)
        self._is_fitted_late = grid.group != "row" and act_order != "static"
        # What `quantize` refuses is refused here, before any work; a search for grids not used would take long.
        given = dataclasses.replace(grid, clip="absmax") if self._is_fitted_late else grid
        self.scale, self.zero = group_parameters(weight, given)
        position = torch.arange(inputs, device=weight.device)
        self._index = (position if self._is_fitted_late else order) // self._size

    def fit(self, weight: Tensor, begin: int, end: int) -> None:
        """Fit the groups that start in columns begin .. end of the weights by now, in the order of rounding."""
        if not self._is_fitted_late:
            return
        first = -(-begin // self._size)
        last = -(-min(end, weight.shape[1]) // self._size)
        if first < last:
            some = weight[:, first * self._size : last * self._size]
            self.scale[:, first:last], self.zero[:, first:last] = group_parameters(some, self._grid)

    def of_columns(self, here: slice) -> tuple[Tensor, Tensor]:
        """Step and zero point of every weight of some columns."""
        index = self._index[here]
        return self.scale[:, index].to(self._dtype), self.zero[:, index].to(self._dtype)

    def index_in_file(self) -> Tensor | None:
        """The group of every input, where groups are not stretches of neighbours."""
        if self._act_order != "dynamic" or self._grid.group == "row":
            return None
        found = torch.empty_like(self._index, dtype=torch.int32)
        found[self._order] = self._index.to(torch.int32)
        return found
