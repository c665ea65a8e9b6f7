"""ResComp: GPTAQ that aims at the output of the original weights, not at that of the corrected ones.

By the time column i is reached its weights w_i have taken over errors of others. Its part of the mismatch with the
original output is then w_i dX_i, as in GPTAQ, and (w0_i - w_i) (X_i + dX_i), w0 the original weights:
    w_k <- w_k - e U_ik + w_i P_ik + (w0_i - w_i) R_ik
    P = alpha * striu(C U^T) U      R = alpha2 * striu(S U^T) U      S = C + H, without damping
Without drift the last term takes back a part of what GPTQ has just optimised: the layer's own error grows a little,
and what is gained, if it is, shows only at the model's output. Its nearest relative is FOEM, which pulls at w itself.

Source: arXiv:2604.07955; alpha, alpha2 and the two modes as in the authors' code.
Checked against: its definition, row by row with every trailing inverse solved anew, in float64; GPTAQ with
alpha2 = 0, GPTQ with both 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from letheon.numerics.grids import Grid, Quantized, quantize
from letheon.quantization.compensation import Carried, check_settings, round_compensated
from letheon.quantization.factors import factorize, passed_on
from letheon.quantization.statistics import Statistics


@dataclass(frozen=True, kw_only=True)
class ResComp:
    """ResComp on GPTAQ, with a quarter of either mismatch passed on."""

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
    """Columns corrected at once: time, and by what `mode` and groups fitted in their turn see, the result too."""
    alpha: float = 0.25
    """Share of the drift that is passed on, 0 to 1; 0 is ResComp on plain GPTQ."""
    alpha2: float = 0.25
    """Share of the distance from the original weights that is passed on, 0 to 1; 0 is GPTAQ."""
    mode: Literal["auto", "org", "allw"] = "auto"
    """What a column counts as beyond its block: org, its rounded value; allw, its value before, clamped to what its
    grid holds. auto is org at 2 bits and allw above, as in the published code."""
    parity: bool = False
    """Clamp, in mode allw, to the grid of the block's last column, as the published code does. True only to compare
    with it: with groups smaller than a block these are other columns' bounds."""

    needs: ClassVar[tuple[str, ...]] = ("gram", "drift")

    def __post_init__(self) -> None:
        # Here, so that a bad setting is refused when it is typed, not at the first layer.
        check_settings(self.grid, damping=self.damping, block=self.block, alpha=self.alpha, alpha2=self.alpha2)

    @property
    def grid(self) -> Grid:
        """The grid these settings describe."""
        return Grid(bits=self.bits, group=self.group, scheme=self.scheme, clip=self.clip, scale_dtype=self.scale_dtype)

    def quantize_layer(self, weight: Float[Tensor, "rows inputs"], statistics: Statistics) -> Quantized:
        """One layer's weights, (out, in), as codes and scales. No drift in the statistics: on plain GPTQ.

        Raises:
            BadInput: a group that does not divide the inputs, a weight or moments that are NaN or infinite, statistics
                of another layer.
            NotPositiveDefinite: moments that no damping makes usable.
        """
        if self.bits == 16:
            return quantize(weight, self.grid)
        gram, drift = statistics.gram, statistics.drift
        inverse = factorize(gram, damping=self.damping, is_sorted=self.act_order != "none")
        return round_compensated(
            weight,
            self.grid,
            inverse,
            act_order=self.act_order,
            block=self.block,
            drift=passed_on(drift, inverse, self.alpha),
            residual=passed_on(gram if drift is None else drift + gram, inverse, self.alpha2),
            carried=self._carried,
        )

    @property
    def _carried(self) -> Carried:
        if self.mode == "org" or (self.mode == "auto" and self.bits == 2):
            return "quantized"
        return "clipped_by_last" if self.parity else "clipped"
