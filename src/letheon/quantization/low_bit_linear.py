"""A model's rounded layers run on their codes: an eighth or a quarter of the memory, and faster for few tokens.

On a CPU every weight that is multiplied with is the one that the file stands for, so that outputs differ from those of
`load_low_bit` by the order of sums alone (in float32 about 1e-7 of a layer's output). There is no gradient.

Source: this project.  Checked against: float64 products with the dequantized weights; the logits of the dense model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from letheon.errors import BadInput, require
from letheon.numerics.grids import Quantized
from letheon.quantization.kernels.low_bit_matmul import FEW, Way, multiply
from letheon.quantization.kernels.packed_codes import PackedCodes, pack_codes, why_unpackable

_LARGE = 2**22
"""Weights from which a layer that is read from memory was faster on its codes: 2048 x 2048. A smaller one, in float32,
stays in a processor's cache from token to token."""
_HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs")


class LowBitLinear(nn.Module):
    """y = x W^T + b with W on its codes; in the place of a linear layer.

    Args:
        layer: the rounded weights (out, in), 4 or 8 bits.
        bias: (out,), or None.
        way: how it multiplies; None for the fastest that is there (see `low_bit_matmul`).
    Raises:
        BadInput: a layer that cannot be packed, with the reason.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, layer: Quantized, bias: Tensor | None = None, *, way: Way | None = None) -> None:
        super().__init__()
        packed = pack_codes(layer)
        for name in ("codes", "scale", "zero"):
            self.register_buffer(name, getattr(packed, name), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().clone(), persistent=False)
        self.bits, self.dtype, self.way = packed.bits, packed.dtype, way
        self.out_features, self.in_features = packed.shape

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Raises BadInput where a gradient is asked for, and what `multiply` refuses."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise BadInput("a layer on its codes gives no gradient. Use load_low_bit to train through the file")
        packed = PackedCodes(codes=self.codes, scale=self.scale, zero=self.zero, bits=self.bits, dtype=self.dtype)
        found = multiply(x.reshape(-1, x.shape[-1]), packed, way=self.way)
        bias = cast("Tensor | None", self.bias)
        found = found if bias is None else found + bias.to(found.dtype)
        return found.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"

    def _apply(self, fn: Any, recurse: bool = True) -> LowBitLinear:
        # model.bfloat16() must not round the steps: the codes would stand for other weights.
        scale = self.scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scale = scale.to(self.scale.device)
        return self


def is_faster(device: torch.device | str, layer: tuple[int, int], tokens: int) -> bool:
    """Whether a layer (out, in) was faster on its codes than as dense float32, for so many tokens at once.

    Measured on a CPU (benchmarks/packed_codes.py). False on a GPU: nothing was measured there.
    """
    return torch.device(device).type == "cpu" and layer[0] * layer[1] >= _LARGE and tokens <= FEW


def why_dense(module: nn.Module, layer: Quantized) -> str:
    """What keeps a module from running on the codes of its weight; empty where nothing does."""
    if not isinstance(module, nn.Linear):
        return f"it is a {type(module).__name__}, and its weight may be stored as (in, out)"
    if module.weight.shape != layer.codes.shape:
        return f"its weight is {tuple(module.weight.shape)} and its codes are {tuple(layer.codes.shape)}"
    return why_unpackable(layer)


def run_on_codes(
    model: nn.Module, layers: Iterable[tuple[str, Quantized]], *, way: Way | None = None, only_faster: bool = False
) -> dict[str, str]:
    """Put a `LowBitLinear` in the place of every linear layer that can be one, and let go of its dense weight.

    Args:
        model: in evaluation mode, with the dense weights of these layers. It asks for no gradient afterwards.
        layers: name of the weight ("model.layers.0.mlp.up_proj.weight") -> its codes.
        way: how they multiply; None for the fastest that is there.
        only_faster: leave layers dense that were not measured to be faster on their codes for one token at a time.
    Returns:
        Layer -> why it stays as it was.
    Raises:
        BadInput: a model in training mode, a name that is no part of it.
    """
    require(not model.training, "the model is in training mode, and layers on their codes learn nothing. Call eval()")
    left: dict[str, str] = {}
    for weight, layer in layers:
        name = weight.removesuffix(".weight")
        parent, _, own = name.rpartition(".")
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise BadInput(f"{name} is no part of the model. Give the codes of the file it was loaded from") from error
        reason = why_dense(module, layer)
        if not reason and only_faster:
            device = cast("nn.Linear", module).weight.device
            if not is_faster(device, cast("tuple[int, int]", tuple(layer.codes.shape)), 1):
                reason = f"on its codes it is not known to be faster on {device.type}"
        if reason:
            left[name] = reason
            continue
        linear = cast("nn.Linear", module)
        packed = LowBitLinear(layer, linear.bias, way=way).to(linear.weight.device)
        # What is done to inputs and outputs on their way (rounded activations, rotations) is done as before.
        for hooks in _HOOKS:
            setattr(packed, hooks, getattr(linear, hooks))
        setattr(model.get_submodule(parent), own, packed.eval())
    model.requires_grad_(False)
    return left
