"""Layers with a low-rank change beside their weight: found, joined to one weight, and put back as plain layers.

    y = x W^T + s (x A^T) B^T + b = x (W + s B A)^T + b        A: (rank, in), B: (out, rank), s = alpha / rank
W stays as it is while A and B move. Layers are told by what they hold (`base_layer`, `lora_A`, `lora_B`), so nothing
of the package that made them is imported here.

Source: LoRA, Hu et al. 2021, arXiv:2106.09685.
Checked against: joined = side by side in float64, GPT-2's turned weights, weights bit by bit before they are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from letheon.models import as_matrix

NAME = "default"
"""What peft calls an adapter that was given no name."""


def low_rank_layers(model: nn.Module) -> dict[str, Any]:
    """Name -> each layer that has a low-rank change beside it; the name is that of the layer it stands around."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "base_layer") and NAME in getattr(module, "lora_A", ())
    }


def factors(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """A, (rank, in), and B, (out, rank)."""
    return layer.lora_A[NAME].weight, layer.lora_B[NAME].weight


def change_of(layer: Any) -> Float[Tensor, "rows columns"]:
    """s B A, in the shape of the layer's weight, with its graph."""
    down, up = factors(layer)
    return as_matrix(layer.base_layer, layer.scaling[NAME] * (up @ down))


@torch.no_grad()
def join_low_rank(model: nn.Module) -> Changes:
    """Put the plain layers back in their places, with W + s B A in them where W can hold it.

    A weight in a half precision stays what it was, since it would lose most of the sum: what is to be added to it is
    returned, and formed in float32 when it is asked for.
    """
    left: dict[str, Callable[[], Tensor]] = {}
    for name, layer in low_rank_layers(model).items():
        plain = layer.base_layer
        if torch.finfo(plain.weight.dtype).bits >= 32:
            plain.weight.data = plain.weight.data + change_of(layer)
        else:
            left[f"{name}.weight"] = partial(change_of, layer)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, plain)
    return Changes(left)


@dataclass(frozen=True)
class Changes:
    """What is to be added to some weights."""

    left: Mapping[str, Callable[[], Tensor]]

    @torch.no_grad()
    def exact(self, name: str, tensor: Tensor) -> Tensor:
        """A weight with its change, float32; any other tensor as it is."""
        if name not in self.left:
            return tensor
        change = self.left[name]()
        return change.to(tensor.device) + tensor.to(change.dtype)
