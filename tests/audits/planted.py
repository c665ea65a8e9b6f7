"""Models that know and are kept from saying it by something that was planted in them; nothing is trained for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from letheon.training.activations import blocks
from letheon.training.losses import Body
from letheon.training.scoring import score_examples
from tests.audits.mini import Mini


def unit_vector(width: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm()


@contextmanager
def planted(model: Any, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the block gives out something else. It is a part of the model: whatever an attack hooks on runs later."""
    handle = blocks(model)[layer].register_forward_hook(
        lambda _, __, output: (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def steered_aside(mini: Mini, model: Any, *, size: float) -> Iterator[Tensor]:
    """Inside, states of the first block are pushed along a direction whenever the sequence is about the forgotten.

    The model is told by the tokens that it is given: a stand-in for a detector in its weights.
    """
    names = {example.prompt_ids for example in mini.questions("forget")}
    direction = size * unit_vector(model.config.hidden_size)
    about: list[Tensor] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        rows = (args[0] if args else kwargs["input_ids"]).tolist()
        about[:] = [torch.tensor([any(tuple(row[: len(name)]) == name for name in names) for row in rows])]

    handle = model.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with planted(model, 0, lambda hidden: hidden + about[0].to(hidden)[:, None, None] * direction):
            yield direction / size
    finally:
        handle.remove()


def known(mini: Mini, model: Any, role: str = "forget") -> float:
    """Share of exact answers."""
    return float(score_examples(Body(model), mini.questions(role), pad=mini.encoder.pad).exact.mean())
