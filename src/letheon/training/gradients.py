"""From losses to gradients: tensors aligned with what may move.

A `Gradient` takes the model and the parts of one logical batch (each part a list of micro-batches) and returns one
tensor of each that moves, and figures for the log. It is made by `.backward()` and taken out of `.grad`, because hooks
and sharding need that. Counts are added up over the whole logical batch first; the division happens once.

Source: this project.  Checked against: one batch of 8 = 8 micro-batches of 1, finite differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from letheon.data.batches import Batch
from letheon.training.active import Active, Movers
from letheon.training.sharding import ALONE, Processes, joined_norm, local
from letheon.training.straight_through import at_rest

Parts = Mapping[str, Sequence[Batch]]
"""A logical batch: for each data set its micro-batches."""


@dataclass(frozen=True)
class Gradients:
    """One tensor of what moves (its shape and dtype, see `Movers`), and figures for the log."""

    tensors: list[Tensor]
    figures: dict[str, float]
    units: Mapping[str, Active] | None = None
    """Name -> the units that this step moves, and nothing else; None: whatever may move."""


@runtime_checkable
class Gradient(Protocol):
    """(model, logical batch) -> Gradients."""

    def __call__(self, model: Any, parts: Parts) -> Gradients: ...


@runtime_checkable
class CurvedGradient(Gradient, Protocol):
    """A gradient that can also multiply a direction with its loss's Hessian."""

    def times_hessian(self, model: Any, parts: Parts, direction: Sequence[Tensor]) -> list[Tensor]: ...


@runtime_checkable
class CountedLoss(Protocol):
    """A loss whose count is known before the forward pass."""

    def __call__(self, model: Any, batch: Batch) -> tuple[Tensor, int]: ...

    def count(self, batch: Batch) -> int: ...


@dataclass(frozen=True)
class MeanGradient:
    """The gradient of (sum over the logical batch) / (count over the logical batch) of one loss on one part."""

    loss: CountedLoss
    part: str
    parameters: Sequence[Tensor]
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    figure: str = ""
    """What its loss is called in the log; by default after the part, such as "forget_loss"."""
    processes: Processes = ALONE
    """Who has the rest of the logical batch. Counts and values are those of the whole."""

    def __call__(self, model: Any, parts: Parts) -> Gradients:
        """Backward once a micro-batch, divide once."""
        batches = parts[self.part]
        [total] = self.processes.totals([sum(self.loss.count(batch) for batch in batches)])
        value = 0.0
        with at_rest(model):
            for batch in batches:
                with self.autocast():
                    loss_sum, _ = self.loss(model, batch)
                mean_share = loss_sum / total
                if mean_share.requires_grad:  # not where all weights asked about lie behind the layer a term looks at
                    mean_share.backward()  # type: ignore[no-untyped-call]
                value += float(mean_share.detach())
        [value] = self.processes.totals([value])
        return Gradients(take(self.parameters), {self.figure or f"{self.part}_loss": value})

    def times_hessian(self, model: Any, parts: Parts, direction: Sequence[Tensor]) -> list[Tensor]:
        """The mean loss's Hessian times a direction: backward through the backward pass, once a micro-batch.

        Fused attention has no second derivative, so PyTorch's own arithmetic is used for it here.
        """
        batches = parts[self.part]
        total = sum(self.loss.count(batch) for batch in batches)
        whole: Sequence[Tensor] = self.parameters
        if isinstance(self.parameters, Movers):
            whole, direction = self.parameters.parameters, self.parameters.widen(direction)
        for batch in batches:
            with self.autocast(), sdpa_kernel(SDPBackend.MATH):
                loss_sum, _ = self.loss(model, batch)
                found: Sequence[Tensor | None] = torch.autograd.grad(
                    loss_sum / total, whole, create_graph=True, allow_unused=True
                )
                terms = [
                    (one * along).sum()
                    for one, along in zip(found, direction, strict=True)
                    if one is not None and one.requires_grad
                ]
                if terms:  # a loss that is linear in the weights has no curvature
                    torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
        return take(self.parameters)


@dataclass(frozen=True)
class MeanLoss:
    """The value that a `MeanGradient` of the same loss has the gradient of, by forward passes alone."""

    loss: CountedLoss
    part: str
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    processes: Processes = ALONE

    @torch.no_grad()
    def __call__(self, model: Any, parts: Parts) -> Tensor:
        """Sum over the logical batch divided by its count, a tensor without dimensions on the model's device."""
        batches = parts[self.part]
        [total] = self.processes.totals([sum(self.loss.count(batch) for batch in batches)])
        with self.autocast(), at_rest(model):
            shares = [self.loss(model, batch)[0] / total for batch in batches]
        value = torch.stack(shares).sum()
        return value if self.processes.count == 1 else value.new_tensor(self.processes.totals([float(value)])[0])


def take(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Move the gradients out of `.grad`; a parameter that had no part in the loss gets zeros."""
    if isinstance(parameters, Movers):
        return parameters.take()
    taken: list[Tensor] = []
    for parameter in parameters:
        taken.append(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
        parameter.grad = None
    return taken


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Global L2 norm over all tensors, float32, a 0-d tensor."""
    wide = torch.promote_types(tensors[0].dtype, torch.float32)  # of half precisions, a norm has too few digits
    norms = torch.stack(torch._foreach_norm(local(tensors), 2.0, dtype=wide)).float()
    norm: Tensor = torch.linalg.vector_norm(norms)
    return joined_norm(norm, tensors)


def clip(tensors: Sequence[Tensor], norm: Tensor, limit: float | None) -> None:
    """Scale all tensors in place so that their global norm is at most `limit`; untouched below it."""
    if limit is not None and float(norm) > limit:
        torch._foreach_mul_(list(tensors), limit / float(norm))
