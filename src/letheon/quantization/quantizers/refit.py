"""Refit: first the weights that give the original outputs on the drifted inputs, then GPTQ on those.

With X the inputs in the partly quantized model, X + dX those of the untouched one, H and C the moments of X X^T and
dX X^T, and H + d I in the place of H as in GPTQ:
    W* = W + alpha * W C H^-1               alpha = 1: argmin over W* of || W* X - W (X + dX) ||^2
    Q  = GPTQ(W*)
alpha = 1 and exact moments make this the best that rounding column by column can do, which GPTAQ approaches one
column at a time; drift is measured on little text, and alpha shrinks what is believed of it. The grids are those of
W*. Without drift this is GPTQ, bit by bit.

Source: this project; known from Qronos (arXiv:2505.11695), whose first step it resembles.
Checked against: least squares on the tokens themselves, in float64; GPTQ where nothing has drifted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from letheon.numerics.grids import Grid, Quantized, quantize
from letheon.quantization.compensation import check_settings, round_compensated
from letheon.quantization.factors import factorize, refitted
from letheon.quantization.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class Refit:
    """Refit, with a quarter of the drift believed."""

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
    alpha: float = 0.25
    """Share of the drift that is made up for, 0 to 1. 0 is GPTQ; 1 fits the calibration text best, and other text
    less well where there is little of it."""

    needs: ClassVar[tuple[str, ...]] = ("gram", "drift")

    def __post_init__(self) -> None:
        # Here, so that a bad setting is refused when it is typed, not at the first layer.
        check_settings(self.grid, damping=self.damping, block=self.block, alpha=self.alpha)

    @property
    def grid(self) -> Grid:
        """The grid these settings describe."""
        return Grid(bits=self.bits, group=self.group, scheme=self.scheme, clip=self.clip, scale_dtype=self.scale_dtype)

    def quantize_layer(self, weight: Float[Tensor, "rows inputs"], statistics: Statistics) -> Quantized:
        """One layer's weights, (out, in), as codes and scales. No drift in the statistics: GPTQ.

        Raises:
            BadInput: a group that does not divide the inputs, a weight or moments that are NaN or infinite, statistics
                of another layer.
            NotPositiveDefinite: moments that no damping makes usable.
        """
        if self.bits == 16:
            return quantize(weight, self.grid)
        inverse = factorize(statistics.gram, damping=self.damping, is_sorted=self.act_order != "none")
        target = refitted(weight, statistics.drift, inverse, self.alpha)
        found = round_compensated(target, self.grid, inverse, act_order=self.act_order, block=self.block)
        return replace(found, dtype=weight.dtype)
