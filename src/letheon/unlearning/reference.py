"""What the original says, computed once per run: log-probabilities a sequence, hidden states a token.

NPO needs one number a forget item. A divergence needs whole distributions; kept as last hidden states (width numbers a
token instead of a vocabulary) and a copy of the head, so that no second model stays in memory. A held layer needs what
its block gave out at every token. Above a limit the states are kept in a file that the system pages in.

Source: this project.  Checked against: the original's own forward pass, item by item, in memory and on disk.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from letheon.data.batches import Batch, by_length
from letheon.data.encode import Example
from letheon.runs.folder import disk_errors
from letheon.training.activations import caught
from letheon.training.losses import Body, Reduction, capped, widened
from letheon.training.scoring import score_examples
from letheon.training.sharding import whole

IN_MEMORY_BYTES = 2 * 1024**3
"""Larger caches of hidden states go to a temporary file."""


@dataclass(frozen=True)
class LogProbCache:
    """log p_ref of every item, nats."""

    values: Float[Tensor, " items"]

    def __call__(self, batch: Batch) -> Float[Tensor, " batch"]:
        """The items of a batch."""
        return self.values[batch.items]


@dataclass(frozen=True)
class LogitCache:
    """Reference logits, from cached hidden states and a copy of the original's head."""

    hidden: Any
    """(labelled tokens of all items, width), float32: a tensor, or a memory-mapped file."""
    starts: np.ndarray[Any, np.dtype[np.int64]]
    """First row of each item; one more at the end."""
    weight: Float[Tensor, "vocabulary width"]
    bias: Float[Tensor, " vocabulary"] | None
    soft_cap: float | None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Float[Tensor, "labels vocabulary"]:
        """Logits of the original at the labelled tokens of a batch, in the batch's own order."""
        rows = np.concatenate([np.arange(self.starts[item], self.starts[item + 1]) for item in batch.items.tolist()])
        states = torch.as_tensor(np.asarray(self.hidden[rows])).to(self.weight.device)
        return capped(widened(nn.functional.linear(states, self.weight, self.bias)), self.soft_cap)


@dataclass(frozen=True)
class HiddenCache:
    """What one block of the original gave out, token by token."""

    hidden: Any
    """(tokens of all items, width), float32: an array, or a memory-mapped file."""
    starts: np.ndarray[Any, np.dtype[np.int64]]
    """First row of each item; one more at the end."""

    def __call__(self, batch: Batch) -> Float[Tensor, "batch time width"]:
        """The items of a batch, each behind the other's padding; zeros on it."""
        padded = np.zeros((batch.size, batch.ids.shape[1], self.hidden.shape[1]), dtype=np.float32)
        for row, item in enumerate(batch.items.tolist()):
            states = self.hidden[self.starts[item] : self.starts[item + 1]]
            padded[row, : len(states)] = states
        return torch.as_tensor(padded).to(batch.ids.device)


def first_rows(counts: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where each item's rows begin when so many rows of each stand behind one another; the end of the last as well."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _rows(shape: tuple[int, int], folder: Path | None, in_memory_bytes: int) -> Any:
    """An array of zeros, in memory or in a file."""
    is_large = shape[0] * shape[1] * 4 > in_memory_bytes
    return _on_disk(shape, folder) if is_large else np.zeros(shape, dtype=np.float32)


def _on_disk(shape: tuple[int, int], folder: Path | None) -> Any:
    """An array of zeros in a file that is gone with the process. Raises CannotFinish on a full disk."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".reference-") as file, disk_errors(Path(file.name)):
        # Taken from the disk now: a page that later finds no room would end the process without a word.
        os.posix_fallocate(file.fileno(), 0, shape[0] * shape[1] * 4)
        return np.memmap(file.name, dtype=np.float32, mode="r+", shape=shape)


def cache_log_probs(
    body: Body, examples: Sequence[Example], *, reduction: Reduction, pad: int, device: str
) -> LogProbCache:
    """One forward pass over the examples."""
    scores = score_examples(body, examples, pad=pad, device=device)
    return LogProbCache(torch.tensor(scores.log_probs(reduction), dtype=torch.float32, device=device))


@torch.no_grad()
def cache_logits(
    body: Body,
    examples: Sequence[Example],
    *,
    pad: int,
    device: str,
    folder: Path | None = None,
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> LogitCache:
    """One forward pass over the examples; `folder` is where a large cache is put."""
    body.require_cut()
    counts = [len(example.answer_ids) for example in examples]
    starts = first_rows(counts)
    hidden = _rows((int(starts[-1]), int(body.head.weight.shape[1])), folder, in_memory_bytes)
    for batch in by_length(examples, pad=pad, device=device):
        states = body.hidden(batch).float().cpu().numpy()
        offset = 0
        for item in batch.items.tolist():
            hidden[starts[item] : starts[item + 1]] = states[offset : offset + counts[item]]
            offset += counts[item]
    bias = getattr(body.head, "bias", None)
    return LogitCache(
        hidden=hidden,
        starts=starts,
        weight=whole(body.head.weight.detach()).float().clone(),
        bias=None if bias is None else whole(bias.detach()).float().clone(),
        soft_cap=body.soft_cap,
    )


@torch.no_grad()
def cache_hidden(
    body: Body,
    examples: Sequence[Example],
    *,
    layer: int,
    pad: int,
    device: str,
    folder: Path | None = None,
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> HiddenCache:
    """One forward pass over the examples; `folder` is where a large cache is put."""
    counts = [len(example.ids) for example in examples]
    starts = first_rows(counts)
    hidden = _rows((int(starts[-1]), width_of(body)), folder, in_memory_bytes)
    for batch in by_length(examples, pad=pad, device=device):
        with caught(body.model, [layer]) as found:
            body.logits(batch.without_labels())
        states = found[layer].float().cpu().numpy()
        for row, item in enumerate(batch.items.tolist()):
            hidden[starts[item] : starts[item + 1]] = states[row, : counts[item]]
    return HiddenCache(hidden, starts)


def width_of(body: Body) -> int:
    """Numbers in a hidden state between two blocks."""
    return int(body.model.config.get_text_config().hidden_size)
