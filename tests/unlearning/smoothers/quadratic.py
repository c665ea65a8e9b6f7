"""A loss whose every derivative is known: 1/2 (x - a)^T A (x - a), with x in two tensors and shares by micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from letheon.data.batches import Batch, collate
from letheon.data.encode import Example
from letheon.training.gradients import MeanGradient


def share(size: int) -> Batch:
    """A micro-batch that counts for `size` in the mean; what stands in it is not looked at."""
    return collate([Example((1, 1), 1)] * size, range(size), pad=0)


@dataclass(frozen=True)
class Quadratic:
    """As a counted loss of two parameters, of 2 and of 3 entries."""

    parameters: tuple[Tensor, Tensor]
    matrix: Tensor
    centre: Tensor

    def __call__(self, model: Any, batch: Any) -> tuple[Tensor, int]:
        away = torch.cat([parameter.flatten() for parameter in self.parameters]) - self.centre
        return batch.size * 0.5 * away @ self.matrix @ away, batch.size

    def count(self, batch: Any) -> int:
        return int(batch.size)

    @property
    def place(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters])

    def slope(self, place: Tensor) -> Tensor:
        return self.matrix @ (place - self.centre)


def quadratic(seed: int = 0) -> tuple[Quadratic, MeanGradient, dict[str, list[Batch]]]:
    """The loss, its gradient, and a logical batch of two micro-batches."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    parameters = (
        torch.randn(2, generator=generator, dtype=torch.float64).requires_grad_(True),
        torch.randn(3, 1, generator=generator, dtype=torch.float64).requires_grad_(True),
    )
    loss = Quadratic(parameters, half @ half.T, torch.randn(5, generator=generator, dtype=torch.float64))
    return loss, MeanGradient(loss, "forget", parameters), {"forget": [share(1), share(3)]}


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
