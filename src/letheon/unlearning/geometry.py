"""What two gradients are to each other: their lengths, their angle, and what a step does to both losses.

    norms ||g_f||, ||g_r||,   product <g_f, g_r>,   cosine = product / (||g_f|| ||g_r||)
g_f is the gradient of the forget loss that is minimised, g_r that of the retain loss. Where a paper writes L_F for a
loss that should rise, g_f is its -g_F. Lengths and products are L2 over all tensors together, in float32 (float64 stays
float64), and stay on the device: none waits for the host.

Source: this project; the floor and the refusal of opposite gradients belong to the rules for NGDiff, arXiv:2410.22086.
Checked against: one long vector in float64, gradients of zeros, NaN in one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from letheon.errors import CannotFinish
from letheon.training.sharding import added, joined_norm, local

FLOOR = 1e-12
"""A gradient shorter than this is dropped: it has no direction, and nothing is divided by its length."""
LEAST_OPENING = 1e-5
"""Least 1 + cosine. Below it float32 cannot tell the two from exact opposites."""


@dataclass(frozen=True)
class Pair:
    """Lengths and product of a forget and a retain gradient, tensors without dimensions."""

    forget_norm: Tensor
    retain_norm: Tensor
    product: Tensor

    @property
    def has_forget(self) -> Tensor:
        """Whether the forget gradient has a direction. True of NaN, which must not be dropped in silence."""
        return ~(self.forget_norm < FLOOR)

    @property
    def has_retain(self) -> Tensor:
        """Whether the retain gradient has a direction."""
        return ~(self.retain_norm < FLOOR)


def measure(forget: Sequence[Tensor], retain: Sequence[Tensor]) -> Pair:
    """Lengths and product of two gradients, tensor by tensor and without a long vector."""
    return Pair(_norm(forget), _norm(retain), dot(forget, retain))


def dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Sum over all tensors of the products of their entries."""
    dtype = _wide(one)
    pairs = zip(local(one), local(other), strict=True)
    products = [torch.dot(a.reshape(-1).to(dtype), b.reshape(-1).to(dtype)) for a, b in pairs]
    return added(torch.stack(products).sum(), one)


def weighted_sum(
    forget: Sequence[Tensor], forget_weight: Tensor, retain: Sequence[Tensor], retain_weight: Tensor
) -> list[Tensor]:
    """forget_weight * forget + retain_weight * retain, new tensors; the weights never leave the device."""
    made = [tensor * forget_weight.to(tensor.dtype) for tensor in forget]
    for total, tensor in zip(made, retain, strict=True):
        total.addcmul_(tensor, retain_weight.to(tensor.dtype))
    return made


def describe_step(forget: Sequence[Tensor], retain: Sequence[Tensor], step: Sequence[Tensor]) -> dict[str, float]:
    """What the log says of a step, in one transfer from the device.

    `forget_slope` and `retain_slope` say how fast each loss falls along the step; below 0 it rises. They are of the
    gradient step: an optimizer that rescales its entries, such as AdamW, may still turn the sign. What has no value,
    such as the cosine of a gradient of zeros, is absent; a gradient that was dropped is named by `*_dropped`.
    """
    pair = measure(forget, retain)
    numbers = (pair.forget_norm, pair.retain_norm, pair.product, dot(forget, step), dot(retain, step))
    return _figures(*torch.stack(numbers).tolist())


def describe_sum(pair: Pair, weights: tuple[Tensor, Tensor]) -> dict[str, float]:
    """The same of a step that is a weighted sum of the two: from five numbers, without another look at the tensors.

    <g_f, a g_f + b g_r> = a ||g_f||^2 + b <g_f, g_r>, and the other way round.
    """
    numbers = (pair.forget_norm, pair.retain_norm, pair.product, *weights)
    forget_norm, retain_norm, product, forget_weight, retain_weight = torch.stack(numbers).tolist()
    forget_slope = forget_weight * forget_norm**2 + retain_weight * product
    retain_slope = forget_weight * product + retain_weight * retain_norm**2
    return _figures(forget_norm, retain_norm, product, forget_slope, retain_slope)


def _figures(
    forget_norm: float, retain_norm: float, product: float, forget_slope: float, retain_slope: float
) -> dict[str, float]:
    norms = {"forget_gradient_norm": forget_norm, "retain_gradient_norm": retain_norm}
    if not math.isfinite(forget_norm) or not math.isfinite(retain_norm):
        return norms
    found = {**norms, "forget_slope": forget_slope, "retain_slope": retain_slope}
    dropped = [name for name, norm in (("forget", forget_norm), ("retain", retain_norm)) if norm < FLOOR]
    if dropped:
        return found | {f"{name}_dropped": 1.0 for name in dropped}
    return found | {"gradient_cosine": product / forget_norm / retain_norm}


def check_separable(figures: dict[str, float]) -> None:
    """Raise CannotFinish where what lowers one loss raises the other by as much, so that no step serves both."""
    cosine = figures.get("gradient_cosine", 0.0)
    if 1 + cosine < LEAST_OPENING:
        raise CannotFinish(
            f"forget and retain gradients are opposite (cosine {cosine:.6f}); nothing can be separated. "
            "See whether the forget and the retain set hold the same records"
        )


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norms = torch.stack(torch._foreach_norm(local(tensors), 2.0, dtype=_wide(tensors)))
    norm: Tensor = torch.linalg.vector_norm(norms)
    return joined_norm(norm, tensors)


def _wide(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
