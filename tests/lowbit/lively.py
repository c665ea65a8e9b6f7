"""Models with nothing neutral in them: norms and biases are drawn, and float64 stays float64 on its way.

A fresh norm has gain 1 and a fresh bias is 0, which hides whoever forgets them. transformers' RMS norms compute in
float32 whatever they are given, which hides errors below 1e-7.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.architectures.models import make_model

IDS = torch.arange(2, 18).reshape(2, 8)


def lively(name: str, seed: int = 0) -> Any:
    """A float64 model in evaluation mode."""
    model = make_model(name, seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return exact(model)


def exact(model: Any) -> Any:
    """The model with RMS norms, and Gemma's scale of the embedding, in the precision of its weights."""
    for module in model.modules():
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale.fill_(module.scalar_embed_scale)
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _rms_norm(module)
    return model


def _rms_norm(module: nn.Module) -> Any:
    epsilon: Any = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    shift = type(module).__name__.startswith("Gemma")

    def forward(hidden: Tensor) -> Tensor:
        weight: Any = module.weight
        return (weight + shift) * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + epsilon)

    return forward


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        said: Tensor = model(input_ids=ids).logits
    return said
