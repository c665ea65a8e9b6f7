"""GPTQ: round one input's weights after another, and let those that are left make up for every error.

With H the moments of the layer's inputs and H + d I, d = damping * mean diag H, in its place:
    minimise tr((Q - W) H (Q - W)^T) = the mean squared change of the outputs
When column i is fixed at q, the others that are left answer with the least-squares correction
    w_k <- w_k - (w_i - q_i) / [H^-1]_ii * [H^-1]_ik                 H over the columns i, i+1, ...
A grid alone decides about a column (round to nearest of what it has become). Layers that read one input may be
stacked by rows. Codes stay in the order of the inputs, whatever the order of work.

Source: Frantar et al. 2022, arXiv:2210.17323.
Checked against: least squares on the tokens themselves, anew for every column, in float64; round to nearest where
the inputs do not correlate; blocks of every size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from letheon.numerics.grids import Grid, Quantized, quantize
from letheon.quantization.compensation import check_settings, round_compensated
from letheon.quantization.factors import factorize
from letheon.quantization.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class GPTQ:
    """GPTQ, by row and in the order of falling power unless told otherwise."""

    bits: int = 4
    """2 to 8; 16 leaves the weights as they are."""
    group: int | Literal["row"] = "row"
    """Weights that share a scale: a row, or a number of inputs that divides them all, such as 128."""
    scheme: Literal["sym", "sym_clipped", "sym_centred", "asym"] = "sym"
    """Convention of step and codes: sym (restricted), sym_clipped, sym_centred (GPTQ files) or asym."""
    clip: Literal["absmax", "mse"] = "absmax"
    """absmax covers the largest weight; mse searches a smaller range, usually better at 4 bits and fewer."""
    scale_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """What the file stores scales as; they are rounded to it before any weight is."""
    damping: float = 0.01
    """Share of the mean input power added to every input, 0 to 1. More trusts the calibration text less."""
    act_order: Literal["none", "static", "dynamic"] = "static"
    """Inputs by falling power (static, dynamic) or as they stand (none). static: groups are neighbours, as every file
    has them; dynamic: neighbours by power, with an index in the file. dynamic and none fit a group in its turn."""
    block: int = 128
    """Columns corrected at once: time, not result. (Smaller groups that are fitted in their turn, with act_order none
    or dynamic, miss the corrections of the block they begin in: block = group mends that.)"""

    needs: ClassVar[tuple[str, ...]] = ("gram",)

    def __post_init__(self) -> None:
        # Here, so that a bad setting is refused when it is typed, not at the first layer.
        check_settings(self.grid, damping=self.damping, block=self.block)

    @property
    def grid(self) -> Grid:
        """The grid these settings describe."""
        return Grid(bits=self.bits, group=self.group, scheme=self.scheme, clip=self.clip, scale_dtype=self.scale_dtype)

    def quantize_layer(self, weight: Float[Tensor, "rows inputs"], statistics: Statistics) -> Quantized:
        """One layer's weights, (out, in), as codes and scales.

        Raises:
            BadInput: a group that does not divide the inputs, a weight or moments that are NaN or infinite, statistics
                of another layer.
            NotPositiveDefinite: moments that no damping makes usable.
        """
        if self.bits == 16:
            return quantize(weight, self.grid)
        inverse = factorize(statistics.gram, damping=self.damping, is_sorted=self.act_order != "none")
        return round_compensated(weight, self.grid, inverse, act_order=self.act_order, block=self.block)
