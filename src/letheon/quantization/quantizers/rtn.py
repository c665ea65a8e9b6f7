"""Round to nearest: every weight goes to the nearest value of its group's grid, and nothing makes up for it.

    Q(w) = s * (clamp(round(w / s) + z, lo, hi) - z)       s, z from the group's weights alone
No calibration text is needed, layers do not influence each other, and the same weights always give the same
codes: the baseline of every other quantizer, and the plainest test of whether rounding brings knowledge back.

Source: the usual baseline, as in GPTQ arXiv:2210.17323; grids as in `letheon.numerics.grids`.
Checked against: all codes of a group tried one by one, every setting against its grid, 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from letheon.numerics.grids import CodebookGrid, Grid, Quantized, quantize


@dataclass(frozen=True, kw_only=True)
class RTN:
    """Round to nearest, by row unless told otherwise."""

    bits: int = 4
    """2 to 8; 16 leaves the weights as they are."""
    group: int | Literal["row", "tensor"] = "row"
    """Weights that share a scale: 'row', 'tensor', or a number of neighbouring inputs dividing them all."""
    scheme: Literal["sym", "sym_clipped", "sym_centred", "asym"] = "sym"
    """Convention of step and codes: sym (restricted), sym_clipped, sym_centred (GPTQ files) or asym."""
    clip: Literal["absmax", "mse"] = "absmax"
    """absmax covers the largest weight; mse searches a smaller range, usually better at 4 bits and fewer."""
    scale_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """What the file stores scales as; they are rounded to it before any weight is."""
    levels: Literal["uniform", "fp4", "nf4"] = "uniform"
    """A uniform grid, or bitsandbytes' table of 16 values (64 weights a scale; the rest is then unused)."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        # Made here so that a bad setting is refused when it is typed, not at the first layer.
        _ = self.grid

    @property
    def grid(self) -> Grid | CodebookGrid:
        """The grid these settings describe."""
        if self.levels != "uniform":
            return CodebookGrid(self.levels)
        return Grid(bits=self.bits, group=self.group, scheme=self.scheme, clip=self.clip, scale_dtype=self.scale_dtype)

    def quantize_layer(self, weight: Float[Tensor, "rows columns"], statistics: object = None) -> Quantized:
        """One layer's weights, (out, in), as codes and scales. `statistics` is not used.

        Raises:
            BadInput: a group that does not divide the inputs, or a weight that is NaN or infinite.
        """
        return quantize(weight, self.grid)
