"""One stream of hidden states on its way through one block whose layers change under it, none of it computed twice.

Layers are solved in the order in which they run, each on what it hears of those before it. So the stream stops in front
of each, and when it goes on, what lies behind it is done with:
    attention = output(what output has heard)        MLP = down(what down has heard)
with these last layers as they have become. All stops together cost one pass through the block, where starting again
for each would cost two and a half. What is kept between two stops lies on the CPU: for each token the output of
attention and, at the last stop, what `down` hears.

Source: this project.  Checked against: passes from the block's beginning, to the bit, in every architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from letheon.lowbit.architectures import BlockLayout
from letheon.quantization.streams import Batch, Routed, heard_as_called, routed, standing_in, through


class Passage:
    """A stream through a block that stands on `device`.

    To be asked in the order in which the layers run: `heard` of a layer means that everything before it has been
    solved, and `behind` that the whole block has.
    """

    def __init__(self, model: Any, block: BlockLayout, batches: Sequence[Batch], *, device: str) -> None:
        self._model, self._block, self._batches, self._device = model, block, batches, device
        self._parts = {block.output: block.attention}
        if block.down is not None:
            self._parts[block.down] = block.mlp
        self._heard: dict[str, list[Tensor]] = {}
        """Last layer of a part -> what it hears, batch by batch; on the CPU."""
        self._made: dict[str, list[Tensor]] = {}
        """The same -> what comes out of the part."""

    def heard(self, name: str) -> Iterator[Float[Tensor, "tokens inputs"]]:
        """What a linear hears, batch by batch, on the device. To be taken to its end before anything else is asked."""
        for place, batch in enumerate(self._batches):
            with self._done(place):
                (inputs, *_) = heard_as_called(self._model, self._block, batch, name, device=self._device)
            if name in self._parts:
                self._heard.setdefault(name, []).append(inputs.cpu())
            yield inputs.reshape(-1, inputs.shape[-1])

    def routed(self) -> list[Routed]:
        """What reaches the experts, batch by batch."""
        found: list[Routed] = []
        for place, batch in enumerate(self._batches):
            with self._done(place):
                found.append(routed(self._model, self._block, batch, device=self._device))
        return found

    def behind(self) -> list[Batch]:
        """The stream behind the block. Raises BadInput: NaN or infinity come out."""
        found: list[Batch] = []
        for place, batch in enumerate(self._batches):
            with self._done(place):
                found.append(through(self._model, self._block, batch, device=self._device))
        return found

    @contextmanager
    def _done(self, place: int) -> Iterator[None]:
        """Inside, parts whose last layer has been heard are not run: they give what they have made of a batch."""
        made: dict[str, Any] = {
            self._parts[last]: self._output(last, place) for last in self._heard if self._is_whole(last)
        }
        if self._block.attention in made:  # which gives back its weights as well
            made[self._block.attention] = made[self._block.attention], None
        with standing_in(self._model, {part: partial(_give, out) for part, out in made.items()}):
            yield

    def _is_whole(self, last: str) -> bool:
        """Not while its batches are just being heard."""
        return len(self._heard[last]) == len(self._batches)

    @torch.no_grad()
    def _output(self, last: str, place: int) -> Tensor:
        """On the device; made once and kept."""
        made = self._made.setdefault(last, [])
        if place == len(made):
            # What it has heard was rotated and rounded before it: its hooks must not do that again.
            inputs = self._heard[last][place].to(self._device)
            made.append(self._model.get_submodule(last).forward(inputs).cpu())
            self._heard[last][place] = torch.empty(0)
        return made[place].to(self._device)


def _give(made: Any, *_: Any, **__: Any) -> Any:
    return made
