"""A linear layer that keeps its 4-bit codes and multiplies with them: an eighth of the memory, faster for few tokens.

    y = x W^T + b,  W = scale (code - zero), by torch's int4 kernel for CPUs, in bfloat16
What one token pays for is reading the weights, and of these there are an eighth. Against the dense float32 layer, one
core with AVX-512, times in ms (`benchmarks/low_bit_linear.py`):
    4096 x 4096    1 token: 3.5 -> 1.1    8: 9.9 -> 3.5    64: 33 -> 26    512: 197 -> 207
so a long prompt is no faster, and a little slower. torch's kernel takes float32 as well, exactly, and is then 8 to 80
times slower than the dense layer: it is not used.

Inputs, scales and outputs are rounded to bfloat16: outputs are off by about 0.2 % of their length. That is fit for
running a model and not for measuring one, so audits ask dense weights.

Source: torch 2.13, `_weight_int4pack_mm_for_cpu`.
Checked against: x dequantize(codes)^T in float64; every group size; files of three formats; what does not fit, named.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from letheon.numerics.grids import Quantized

_GROUPS = (256, 128, 64, 32)
"""Inputs to a scale that the kernel knows."""
_OUTPUTS = 16
"""Of which the number of outputs has to be a multiple."""


class PackedLinear(nn.Module):
    """y = x Q(W)^T + b from codes."""

    def __init__(self, layer: Quantized, bias: Tensor | None) -> None:
        """`layer`: one for which `why_not` says nothing."""
        super().__init__()
        rows, columns = layer.codes.shape
        self.out_features, self.in_features = rows, columns
        self.group = _group(columns, layer.scale.shape[1])
        each = columns // self.group // layer.scale.shape[1]  # the kernel's groups in one of the file's
        scale = layer.scale.float().repeat_interleave(each, dim=1)
        zero = layer.zero.float().repeat_interleave(each, dim=1)
        # The kernel's own zero is 8: scale (code - zero) = scale (code - 8) + scale (8 - zero).
        pairs = torch.stack([scale, scale * (8 - zero)], dim=-1).transpose(0, 1)
        codes = layer.codes.to(torch.int32)
        self.register_buffer("codes", torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1))
        self.register_buffer("pairs", pairs.contiguous().to(torch.bfloat16))
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Float[Tensor, "*tokens inputs"]) -> Float[Tensor, "*tokens outputs"]:
        """In the dtype of x, with digits of bfloat16."""
        flat = x.reshape(-1, self.in_features).to(torch.bfloat16)
        found: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.codes, self.group, self.pairs)
        y = found.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Shape and group."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bits=4, group={self.group}"


def why_not(module: nn.Module, layer: Quantized) -> str:
    """Why a layer stays as dense weights; nothing where it need not."""
    rows, columns = layer.codes.shape
    bits = getattr(layer.grid, "bits", 0)
    if not isinstance(module, nn.Linear):
        return f"it is a {type(module).__name__}, whose weight is stored as (in, out)"
    if bits != 4:
        return f"its codes are of {bits or 'a table and not of 4'} bits"
    if layer.group_index is not None:
        return "its groups are of inputs that do not lie side by side"
    if rows % _OUTPUTS:
        return f"its {rows} outputs are no multiple of {_OUTPUTS}"
    if not _group(columns, layer.scale.shape[1]):
        return f"its groups of {columns // layer.scale.shape[1]} inputs are no multiple of {_GROUPS[-1]}"
    return ""


@torch.no_grad()
def pack_linears(model: Any, layers: Iterable[tuple[str, Quantized]]) -> dict[str, str]:
    """Put a `PackedLinear` in the place of every layer that can be one, and let go of its dense weight.

    Args:
        model: on the CPU, with the dense weights of these layers.
        layers: name of the weight -> codes and scales.
    Returns:
        Layer -> why it stays as it was.
    """
    left: dict[str, str] = {}
    for weight, layer in layers:
        name = weight.removesuffix(".weight")
        parent, _, own = name.rpartition(".")
        module = model.get_submodule(name)
        if reason := why_not(module, layer):
            left[name] = reason
            continue
        packed = PackedLinear(layer, module.bias)
        for hook in module._forward_pre_hooks.values():  # activations that are rounded on their way
            packed.register_forward_pre_hook(hook)
        setattr(model.get_submodule(parent), own, packed)
    return left


def _group(columns: int, groups: int) -> int:
    """The largest group of the kernel that divides the file's; 0 where there is none."""
    size = columns // groups
    return next((group for group in _GROUPS if size % group == 0), 0)
