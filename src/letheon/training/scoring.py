"""One forward pass a text: everything that follows from log-probabilities and arg-max alone.

Exact match by teacher forcing (every labelled token, the end of text among them, is the arg-max) equals exact match of
the greedy answer, and costs one forward instead of a generation.

Source: this project.  Checked against: greedy generation, a slow sum, batch size and padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from letheon.data.batches import by_length
from letheon.data.encode import Example
from letheon.training.losses import Body, Outputs, Reduction

BATCH_TOKENS = 4096
"""Padded tokens of one forward pass; on two CPU cores larger batches are not faster."""


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


@torch.no_grad()
def score_examples(
    body: Body, examples: Sequence[Example], *, pad: int, device: str = "cpu", batch_tokens: int = BATCH_TOKENS
) -> ExampleScores:
    """Score examples in batches of like length; the result is in the order of `examples`."""
    token_log_probs: list[Any] = [None] * len(examples)
    exact = np.zeros(len(examples), dtype=np.bool_)
    for batch in by_length(examples, pad=pad, device=device, batch_tokens=batch_tokens):
        outputs = Outputs(batch, body.logits(batch))
        is_wrong = (outputs.logits.argmax(-1) != batch.label_ids).float()
        wrong = torch.zeros(batch.size, device=is_wrong.device).index_add(0, batch.label_row, is_wrong)
        values = np.split(outputs.token_log_probs().double().cpu().numpy(), np.cumsum(batch.label_counts.cpu().numpy())[:-1])
        for row, item in enumerate(batch.items.tolist()):
            token_log_probs[item] = values[row]
        exact[batch.items.cpu().numpy()] = (wrong == 0).cpu().numpy()
    return ExampleScores(token_log_probs, exact)
