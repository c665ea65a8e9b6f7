"""From a model and a batch to what loss terms are made of: logits at labelled positions, and log-probabilities.

A loss is a function (model, batch) -> (sum, count). The count is known before any forward pass, so that a loop can add
up the counts of a whole logical batch and divide once: eight batches of one are then one batch of eight.

The head runs on labelled positions only; for an answer of three tokens behind a long prompt that is most of its cost.

Source: this project.  Checked against: the model's own logits, a slow sum over tokens, padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from letheon.data.batches import Batch
from letheon.errors import BadInput

Reduction = Literal["mean", "sum"]
Loss = Callable[[Any, Batch], tuple[Tensor, int]]
"""(model, batch) -> (sum over the batch, how many things the sum is over)."""


def _directly(way: Callable[..., Tensor], *given: Any) -> Tensor:
    return way(*given)


class Body:
    """A causal model cut into the body (tokens -> last hidden states) and the head (hidden states -> logits).

    The cut is checked on a few tokens when it is made: where head(body(x)) is not what the model itself computes
    (another scale, an unknown soft-cap), `is_cut` is False and the whole model is run instead.

    Every way into the model goes `through` one place, where weights that several processes share are put together.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.body: Any = getattr(model, model.base_model_prefix, None)
        self.head: Any = model.get_output_embeddings()
        self.through: Callable[..., Tensor] = _directly
        self.soft_cap: float | None = getattr(model.config, "final_logit_softcapping", None)
        self.is_cut = self.body is not None and self.head is not None and self._agrees()

    def hidden(self, batch: Batch, *, is_masked: bool = True) -> Float[Tensor, "labels width"]:
        """Last hidden states at the positions that predict a labelled token.

        Args:
            is_masked: whether the model is told what is padding. It stands on the right, where no labelled token of a
                causal model looks, so the states are the same without; fused attention then takes a sixth less time.
        """
        self.require_cut()
        return self.through(self._hidden, batch, is_masked)

    def _hidden(self, batch: Batch, is_masked: bool) -> Tensor:
        mask = batch.attention_mask if is_masked else None
        states: Tensor = self.body(input_ids=batch.ids, attention_mask=mask, use_cache=False)[0]
        return states[batch.label_row, batch.label_column]

    def require_cut(self) -> None:
        """Raise BadInput where hidden states cannot stand for logits."""
        if not self.is_cut:
            raise BadInput(
                f"{type(self.model).__name__}: its logits are not its head applied to its last hidden states, "
                "so they cannot be cached. Choose a retain term without reference logits, such as gdr"
            )

    def logits(self, batch: Batch, *, is_masked: bool = True) -> Float[Tensor, "labels vocabulary"]:
        """Logits that predict the labelled tokens, float32. `is_masked`: as for `hidden`."""
        return self.through(self._logits, batch, is_masked)

    def _logits(self, batch: Batch, is_masked: bool) -> Tensor:
        if self.is_cut:
            return self._head_on(self._hidden(batch, is_masked))
        mask = batch.attention_mask if is_masked else None
        logits = self.model(input_ids=batch.ids, attention_mask=mask, use_cache=False).logits
        return widened(logits[batch.label_row, batch.label_column])

    def apply_head(self, hidden: Float[Tensor, "labels width"]) -> Float[Tensor, "labels vocabulary"]:
        """Hidden states to logits, float32, with the model's soft-cap where it has one."""
        return self.through(self._head_on, hidden)

    def _head_on(self, hidden: Tensor) -> Tensor:
        return capped(widened(self.head(hidden)), self.soft_cap)

    @torch.no_grad()
    def _agrees(self) -> bool:
        device = next(self.model.parameters()).device
        ids = torch.arange(4, device=device).unsqueeze(0) % self.model.config.vocab_size
        was_training = self.model.training
        self.model.eval()
        try:
            whole = self.model(input_ids=ids, use_cache=False).logits.float()
            parts = capped(self.head(self.body(input_ids=ids, use_cache=False)[0]).float(), self.soft_cap)
        finally:
            self.model.train(was_training)
        return whole.shape == parts.shape and torch.allclose(whole, parts, rtol=1e-3, atol=1e-4)


def widened(values: Tensor) -> Tensor:
    """At least float32: half precisions become float32, float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(logits / cap), or the logits where there is no cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


@dataclass(frozen=True)
class Outputs:
    """What one forward pass gives to the loss terms of one batch."""

    batch: Batch
    logits: Float[Tensor, "labels vocabulary"]
    """None (0, vocabulary) where no term asked for them."""
    hidden: Float[Tensor, "batch time width"] | None = None
    """What one block of the decoder gave out, where a term asked for it; anything at all on padding."""
    other: Outputs | None = None
    """Of the same items with the other answer, where a term asked for it."""

    def token_log_probs(self) -> Float[Tensor, " labels"]:
        """Log-probability of each labelled token, nats."""
        return -torch.nn.functional.cross_entropy(self.logits, self.batch.label_ids, reduction="none")

    def log_probs(self, reduction: Reduction) -> Float[Tensor, " batch"]:
        """Log-probability of each sequence's labelled tokens, nats: their sum, or their mean."""
        return reduce_tokens(self.token_log_probs(), self.batch, reduction)


def reduce_tokens(values: Float[Tensor, " labels"], batch: Batch, reduction: Reduction) -> Float[Tensor, " batch"]:
    """One number a sequence from one number a labelled token."""
    sums = torch.zeros(batch.size, dtype=values.dtype, device=values.device).index_add(0, batch.label_row, values)
    return sums / batch.label_counts if reduction == "mean" else sums


@dataclass(frozen=True)
class TokenLoss:
    """Cross-entropy of the labelled tokens: ordinary fine-tuning. Counts tokens."""

    body: Body

    def __call__(self, model: Any, batch: Batch) -> tuple[Tensor, int]:
        """(sum of -log p over labelled tokens, number of them)."""
        total = -Outputs(batch, self.body.logits(batch)).token_log_probs().sum()
        return (total * 0.0 if batch.is_filler else total), self.count(batch)

    def count(self, batch: Batch) -> int:
        """The count without a forward pass."""
        return 0 if batch.is_filler else len(batch.label_ids)
