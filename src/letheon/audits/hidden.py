"""The hidden states of a model's blocks: read where an answer begins, and changed while the model is asked.

    h_l   output of block l, 0 to depth - 1, (batch, time, width)
    read  of a question at the prompt's last token; of a text the mean over its tokens but the last
Everything is done by hooks, which are taken out afterwards, whatever happens inside.

Source: this project.  Checked against: the model's own list of hidden states; a state that is not changed leaves the
model as it is to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from letheon.audits.attacker import Target
from letheon.data.batches import Batch, by_length
from letheon.data.encode import Example
from letheon.errors import BadInput, NotMeasured
from letheon.training.activations import blocks, caught

Change = Callable[[Tensor], Tensor]
"""(batch, time, width) -> the same shape."""


def depth_of(model: Any) -> int:
    """Number of blocks. Raises NotMeasured where they cannot be told from the model's other parts."""
    try:
        return len(blocks(model))
    except BadInput as error:
        raise NotMeasured(str(error)) from error


def one_layer(model: Any, layer: int | None, *, default: int) -> int:
    """The block that was asked for. Raises NotMeasured where the model has none of that number."""
    depth = depth_of(model)
    if layer is not None and layer >= depth:
        raise NotMeasured(f"layer {layer} was asked for, and the model's layers are 0 to {depth - 1}")
    return default if layer is None else layer


@contextmanager
def changed(model: Any, changes: Mapping[int, Change]) -> Iterator[None]:
    """Inside, block l gives out changes[l](h_l) in place of h_l."""
    found = blocks(model)

    def hook(change: Change) -> Callable[..., Any]:
        def run(module: Any, given: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (change(output[0]), *output[1:])
            return change(output)

        return run

    handles = [found[layer].register_forward_hook(hook(change)) for layer, change in changes.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Without:
    """h -> h - (h . u) u."""

    along: Float[Tensor, " width"]

    def __call__(self, hidden: Tensor) -> Tensor:
        """Of any shape (..., width); the same dtype."""
        along = self.along.to(hidden)
        return hidden - (hidden @ along).unsqueeze(-1) * along


@torch.no_grad()
def read_states(
    target: Target, examples: Sequence[Example], layers: Sequence[int]
) -> dict[int, Float[Tensor, "examples width"]]:
    """Layer -> what the block gives out for each example, in their order.

    Raises:
        NotMeasured: a state that is not finite.
    """
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    batches = by_length(examples, pad=target.encoder.pad, device=target.device)
    for batch in batches:
        with caught(target.model, layers) as hidden:
            target.model(input_ids=batch.ids, attention_mask=batch.attention_mask, use_cache=False)
        shares = _read_at(batch)
        for layer in layers:
            found[layer].append(torch.einsum("bt,btw->bw", shares.to(hidden[layer]), hidden[layer]))
    order = torch.cat([batch.items for batch in batches]).argsort()
    states = {layer: torch.cat(rows)[order] for layer, rows in found.items()}
    for layer, rows in states.items():
        if not bool(torch.isfinite(rows).all()):
            raise NotMeasured(f"what layer {layer} gives out is not finite")
    return states


def _read_at(batch: Batch) -> Float[Tensor, "batch time"]:
    """What each state counts for: of a question the one that predicts the first label, of a text all that predict."""
    predicts = torch.zeros_like(batch.ids, dtype=torch.float32)
    predicts[batch.label_row, batch.label_column] = 1.0
    is_text = predicts[:, :1] == 1.0
    first = predicts * (predicts.cumsum(1) == 1.0)
    shares = torch.where(is_text, predicts, first)
    return shares / shares.sum(1, keepdim=True)
