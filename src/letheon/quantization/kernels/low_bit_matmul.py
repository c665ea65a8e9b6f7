"""Tokens times a layer on its codes, by the way that is fastest: the weights themselves are never all in memory.

    compiled   weights are made in registers, four tokens at a time    CPU with numba; float32 inside
    tiles      weights of some rows are made, multiplied, forgotten    everywhere; torch's own product, x's dtype
    triton     weights are made in registers                           GPU; float16 or bfloat16, sums in float32
In the first two every weight is that of `dequantize`, so that only the order of a sum is another than with a dense
layer. Which is faster was measured on a CPU (benchmarks/packed_codes.py): "compiled" up to `FEW` tokens at once. On a
GPU nothing was measured, and "triton" is taken where it is asked for by name.

Source: this project.  Checked against: float64 products with the dequantized weights.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from letheon.errors import require
from letheon.quantization.kernels.low_bit_compiled import fill_compiled, is_there, multiply_compiled
from letheon.quantization.kernels.packed_codes import PackedCodes, values

Way = Literal["compiled", "tiles", "triton"]
WAYS: tuple[Way, ...] = ("compiled", "tiles", "triton")

FEW = 8
"""Tokens up to which "compiled" was the faster way, at 1024 x 1024 and at 4096 x 4096."""
_TILE = 2**19
"""Weights made at once: 2 MB of float32."""


def way_for(device: torch.device | str, tokens: int) -> Way:
    """The way that `multiply` goes unless told otherwise."""
    is_few = torch.device(device).type == "cpu" and tokens <= FEW
    return "compiled" if is_few and is_there() else "tiles"


def multiply(
    x: Float[Tensor, "tokens inputs"], packed: PackedCodes, *, way: Way | None = None
) -> Float[Tensor, "tokens outputs"]:
    """x W^T in the dtype of x, without a gradient.

    Args:
        x: floating, on the device of the codes. "compiled" reads it as float32.
        packed: the layer.
        way: None for the fastest that is there.
    Raises:
        BadInput: inputs of another number, a way that the device or the dtype does not have, triton not installed.
        MissingExtra: "compiled" was asked for by name and numba is not installed.
    """
    device, outputs = packed.codes.device, packed.shape[0]
    require(x.shape[1] == packed.shape[1], f"{x.shape[1]} inputs do not fit a layer of {packed.shape[1]}")
    chosen = way or way_for(device, len(x))
    if chosen == "compiled":
        require(device.type == "cpu", f"the way 'compiled' is for the CPU, and the layer is on {device}. Use 'tiles'")
        return multiply_compiled(x.float(), packed).to(x.dtype)
    if chosen == "triton":
        require(
            find_spec("triton") is not None,
            "the way 'triton' needs the package triton, which is not installed. It comes with PyTorch's builds for "
            "GPUs; or pip install triton",
        )
        from letheon.quantization.kernels.low_bit_triton import multiply_in_triton

        return multiply_in_triton(x, packed)
    require(chosen == "tiles", f"{chosen!r} is no way to multiply with codes. Use {', '.join(WAYS)}")
    turned, found = x.detach().T, x.new_empty(outputs, len(x))
    at_once = max(1, _TILE // packed.shape[1])
    is_compiled = device.type == "cpu" and is_there()
    buffer = torch.empty(min(at_once, outputs), packed.shape[1]) if is_compiled else None
    for begin in range(0, outputs, at_once):
        rows = slice(begin, min(begin + at_once, outputs))
        if buffer is None:
            weights = values(packed, rows)
        else:
            weights = buffer[: rows.stop - begin]
            fill_compiled(packed, rows, weights)
        torch.mm(weights.to(x.dtype), turned, out=found[rows])
    return found.T
