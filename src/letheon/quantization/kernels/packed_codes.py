"""The codes of a rounded layer as the kernels that multiply with them have them: two 4-bit codes to a byte.

Of a row, g inputs to a group, h = g / 2; byte k of a group holds two codes that lie h apart, so that both halves are
read in the order in which the inputs lie:
    4 bits    byte[k] = code[k] | code[k + h] << 4        0 <= k < h
    8 bits    byte[k] = code[k]
    w = step * (code - zero)  in float32, then rounded to the dtype of the layer, as `dequantize` gives it
This is for memory, and never written to a file: 4 bits and groups of 128 take 0.54 bytes a weight, float32 4.

Source: this project.  Checked against: `numerics.grids.dequantize`, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from letheon.errors import require
from letheon.numerics.grids import CodebookGrid, Quantized
from letheon.quantization.packing import unsigned

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the weights of a layer may be rounded to."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedCodes:
    """A layer (out, in) on its codes."""

    codes: UInt8[Tensor, "rows bytes"]
    scale: Float[Tensor, "rows groups"]
    """The step of every group, float32."""
    zero: UInt8[Tensor, "rows groups"]
    """The code that stands for 0."""
    bits: int
    """4 or 8."""
    dtype: torch.dtype
    """What the weights are rounded to, after float32."""

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        rows, width = self.codes.shape
        return rows, width * 8 // self.bits

    @property
    def group(self) -> int:
        """Inputs that share a step."""
        return self.shape[1] // self.scale.shape[1]


def why_unpackable(layer: Quantized) -> str:
    """What keeps a layer from being packed, to be put after its name; empty where nothing does."""
    if isinstance(layer.grid, CodebookGrid):
        return f"its codes stand for the table {layer.grid.name}, not for steps"
    if layer.grid.bits not in (4, 8):
        return f"its codes are of {layer.grid.bits} bits, and 4 or 8 are packed"
    if layer.group_index is not None:
        return "its groups are of inputs that do not lie side by side"
    if layer.dtype not in DTYPES:
        return f"its weights are {layer.dtype}"
    size = layer.codes.shape[1] if layer.grid.group == "tensor" else layer.codes.shape[1] // layer.scale.shape[1]
    return f"its groups of {size} inputs cannot be halved" if layer.grid.bits == 4 and size % 2 else ""


def pack_codes(layer: Quantized) -> PackedCodes:
    """A rounded layer, packed on the CPU. Raises BadInput with the reason that `why_unpackable` gives."""
    reason = why_unpackable(layer)
    require(not reason, f"the layer cannot run on its codes: {reason}. Run it on the weights they stand for")
    assert not isinstance(layer.grid, CodebookGrid)
    parts = unsigned(layer)
    codes = parts.codes.to(torch.uint8)
    if layer.grid.bits == 4:
        rows, groups = parts.scale.shape
        low, high = codes.view(rows, groups, 2, -1).unbind(2)
        codes = (low | (high << 4)).view(rows, -1)
    return PackedCodes(
        codes=codes.contiguous(),
        scale=parts.scale.float().contiguous(),
        zero=parts.zero.to(torch.uint8).contiguous(),
        bits=layer.grid.bits,
        dtype=layer.dtype,
    )


def values(packed: PackedCodes, rows: slice = slice(None)) -> Float[Tensor, "some inputs"]:
    """The weights of some rows in float32: those that `dequantize` gives, to the bit."""
    scale, zero = packed.scale[rows], packed.zero[rows]
    codes = packed.codes[rows].view(*scale.shape, -1)
    if packed.bits == 4:
        codes = torch.cat([codes & 15, codes >> 4], dim=2)
    exact = codes.float().sub_(zero.float().unsqueeze(-1)).mul_(scale.unsqueeze(-1))
    return exact.to(packed.dtype).float().view(len(scale), -1)
