"""One forward pass a text: everything that follows from log-probabilities and arg-max alone.

Exact match by teacher forcing (every labelled token, the end of text among them, is the arg-max) equals exact match of
the greedy answer, and costs one forward instead of a generation.

Source: this project.  Checked against: greedy generation, a slow sum, batch size and padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from letheon.data.batches import Batch, by_length
from letheon.data.encode import Example
from letheon.training.losses import Body, Reduction

LOGITS_AT_ONCE = 2**25
"""Logits held at once (128 MB)."""


@dataclass(frozen=True)
class ExampleScores:
    """What one pass over N examples found."""

    token_log_probs: list[NDArray[np.float64]]
    """For each example, log p of each labelled token, nats."""
    exact: NDArray[np.bool_]
    """(N,) whether every labelled token is the arg-max."""

    def log_probs(self, reduction: Reduction) -> NDArray[np.float64]:
        """(N,) sum or mean over an example's labelled tokens, nats."""
        reduce = np.mean if reduction == "mean" else np.sum
        return np.array([reduce(values) for values in self.token_log_probs], dtype=np.float64)


def score_examples(
    body: Body, examples: Sequence[Example], *, pad: int, device: str = "cpu", batch_tokens: int | None = None
) -> ExampleScores:
    """Score examples in batches of like length; the result is in the order of `examples`."""
    return score_batches(body, by_length(examples, pad=pad, device=device, batch_tokens=batch_tokens))


@torch.no_grad()
def score_batches(body: Body, batches: Sequence[Batch]) -> ExampleScores:
    """The same of batches that are there; the result is in the order of their items."""
    count = sum(batch.size for batch in batches)
    token_log_probs: list[Any] = [None] * count
    exact = np.zeros(count, dtype=np.bool_)
    for batch in batches:
        log_probs, is_right = _score_labels(body, _without_last(batch))
        ends = np.cumsum(batch.label_counts.cpu().numpy())[:-1]
        items = batch.items.tolist()
        for item, values, right in zip(items, np.split(log_probs, ends), np.split(is_right, ends), strict=True):
            token_log_probs[item] = values
            exact[item] = right.all()
    return ExampleScores(token_log_probs, exact)


def _without_last(batch: Batch) -> Batch:
    """The last token of the longest sequence is predicted, and predicts nothing."""
    return replace(batch, ids=batch.ids[:, :-1], attention_mask=batch.attention_mask[:, :-1])


def _score_labels(body: Body, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(labels,) log-probability of each labelled token, and whether it is the arg-max."""
    if body.is_cut:
        hidden = body.hidden(batch, is_masked=False)
        # Logits of a large vocabulary are made for a few labels at a time.
        at_once = max(1, LOGITS_AT_ONCE // body.head.weight.shape[0])
        pieces = [slice(start, start + at_once) for start in range(0, len(hidden), at_once)]
        scored = [_score_logits(body.apply_head(hidden[piece]), batch.label_ids[piece]) for piece in pieces]
    else:
        scored = [_score_logits(body.logits(batch, is_masked=False), batch.label_ids)]
    log_probs, is_right = zip(*scored, strict=True)
    return np.concatenate(log_probs), np.concatenate(is_right)


def _score_logits(
    logits: Float[Tensor, "labels vocabulary"], labels: Int[Tensor, " labels"]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    log_probs = -torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return log_probs.double().cpu().numpy(), (logits.argmax(-1) == labels).cpu().numpy()
