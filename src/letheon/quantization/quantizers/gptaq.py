"""GPTAQ: GPTQ that also makes up for what earlier layers, rounded already, have done to this one's inputs.

With X the inputs in the partly quantized model, X + dX those of the untouched one, C = dX X^T / N:
    minimise || Q X - W (X + dX) ||^2
When column i is fixed, the columns left take over its error, as in GPTQ, and its own part of the drift, w_i dX_i:
    w_k <- w_k - e U_ik + w_i P_ik          P = alpha * striu(C U^T) U,  row i = alpha * C[i, >i] H[>i, >i]^-1
alpha = 1 is the paper's formula; its code, and every published figure, has 0.25: drift is measured on little text,
and passing on all of it fits that text. Without drift this is GPTQ, bit by bit.

Source: Li et al. 2025, arXiv:2504.02692; alpha and `outer` as in the authors' code.
Checked against: its definition, row by row with every trailing inverse solved anew, in float64; GPTQ where nothing
has drifted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from letheon.numerics.grids import Grid, Quantized, quantize
from letheon.quantization.compensation import check_settings, round_compensated
from letheon.quantization.factors import factorize, passed_on
from letheon.quantization.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class GPTAQ:
    """GPTAQ, with a quarter of the drift passed on."""

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
    """Columns corrected at once: time, and with `outer` quantized or groups fitted in their turn the result too."""
    alpha: float = 0.25
    """Share of the drift that is passed on, 0 to 1. 0 is GPTQ; 1 the paper's formula, which over-fits little text."""
    outer: Literal["quantized", "pre"] = "quantized"
    """What a column counts as beyond its block: quantized, as in the published code, or pre, its value before, as
    within the block. pre makes the result independent of the block's size."""

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
        return round_compensated(
            weight,
            self.grid,
            inverse,
            act_order=self.act_order,
            block=self.block,
            drift=passed_on(statistics.drift, inverse, self.alpha),
            carried="before" if self.outer == "pre" else "quantized",
        )
