"""How much the forget loss depends on each weight, at the original and over the whole forget set.

    g = d L_f(w_o) / d w        L_f: the forget term's own loss, its mean over the set
One gradient of the mean, not a mean of norms of batches: noise of single batches cancels before a norm is taken. A gate
takes no part, since at the original it is open.

Gradients of all weights never stand at the same time where that would be much: some weights after others, in the order
of the model, each time with a pass of its own over the set. A small model takes one pass.

Source: Zhang et al. 2024, arXiv:2410.16454.
Checked against: one batch of everything, many of one record; all at once = one by one, bit by bit; the highest moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from letheon.data.batches import Batch, by_length
from letheon.data.encode import Example
from letheon.training.active import Active
from letheon.training.gradients import MeanGradient
from letheon.training.prepare import Opened
from letheon.unlearning.objective import TermLoss

AT_ONCE_BYTES = 2 * 1024**3
"""Gradients that stand at the same time; a single weight may be larger."""


def saliency(
    term: TermLoss,
    opened: Opened,
    moving: Mapping[str, nn.Parameter],
    examples: Sequence[Example],
    *,
    at_once_bytes: int = AT_ONCE_BYTES,
) -> Iterator[Tensor]:
    """The gradient, one tensor a moving parameter, in their order. Afterwards no parameter asks for one.

    A tensor is let go when the next group is made, so look at each and keep what is small.

    Args:
        examples: the forget set in the order that the term's caches know it by.
        at_once_bytes: how much stands at the same time.
    """
    batches = by_length(examples, pad=opened.encoder.pad, device=opened.device)
    return in_turn(term, opened.model, moving, batches, opened.autocast, at_once_bytes=at_once_bytes)


def in_turn(
    term: TermLoss,
    model: Any,
    moving: Mapping[str, nn.Parameter],
    batches: Sequence[Batch],
    autocast: Callable[[], AbstractContextManager[Any]],
    *,
    at_once_bytes: int = AT_ONCE_BYTES,
) -> Iterator[Tensor]:
    """The same of batches that are there."""
    model.requires_grad_(False)  # as it is loaded, all of it asks for a gradient
    for group in _groups(list(moving.values()), at_once_bytes):
        for parameter in group:
            parameter.requires_grad_(True)
        try:
            found = MeanGradient(replace(term, gate=None), "forget", group, autocast)(model, {"forget": batches})
        finally:
            for parameter in group:
                parameter.requires_grad_(False)
        while found.tensors:
            yield found.tensors.pop(0)


def _groups(parameters: Sequence[nn.Parameter], at_once_bytes: int) -> Iterator[list[nn.Parameter]]:
    """Neighbours whose gradients fit together; at least one each time."""
    group: list[nn.Parameter] = []
    held = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if group and held + size > at_once_bytes:
            yield group
            group, held = [], 0
        group.append(parameter)
        held += size
    if group:
        yield group


def active_units(
    scope: Any, term: TermLoss, opened: Opened, moving: Mapping[str, nn.Parameter], examples: Sequence[Example]
) -> dict[str, Active]:
    """Name -> the units of it that a scope lets move; nothing for a scope that does not choose them before the run."""
    if not hasattr(scope, "active") or getattr(scope, "is_refreshed", False):
        return {}
    found: dict[str, Active] = scope.active(opened.model, moving, saliency(term, opened, moving, examples))
    return found


def moving_weights(moving: Mapping[str, nn.Parameter], active: Mapping[str, Active]) -> int:
    """How many single weights may move."""
    return sum(
        active[name].cut(parameter.detach()).numel() if name in active else parameter.numel()
        for name, parameter in moving.items()
    )
