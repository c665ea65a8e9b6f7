"""One forward pass a text: everything that follows from log-probabilities and arg-max alone.

    log p(y_t), y_t = arg-max?                                        at each labelled position
    mu_t = sum_v p(v) log p(v),  sigma_t^2 = sum_v p(v) (log p(v) - mu_t)^2      only when asked for: it costs
    (p log p = 0 where p = 0)

Exact match by teacher forcing (every labelled token, the end of text among them, is the arg-max) equals exact match of
the greedy answer, and costs one forward instead of a generation.

Source: this project; mu and sigma: Min-K%++, arXiv:2404.02936.  Checked against: greedy generation, a slow sum, a slow
float64 loop over the vocabulary, finite differences, batch size and padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from letheon.data.batches import Batch, by_length, collate
from letheon.data.encode import Example
from letheon.errors import NotMeasured
from letheon.training.losses import Body, Reduction

LOGITS_AT_ONCE = 2**25
"""Logits held at once (128 MB)."""
_COPIES = 4
"""Of the logits, that moments hold at once."""


@dataclass(frozen=True)
class ExampleScores:
    """What one pass over N examples found. T labelled tokens an example."""

    token_log_probs: list[NDArray[np.float64]]
    """For each example, (T,) log p of each labelled token, nats."""
    is_right: list[NDArray[np.bool_]]
    """For each example, (T,) whether the labelled token is the arg-max."""
    moments: list[NDArray[np.float64]] | None = None
    """For each example, (2, T) mean and standard deviation of log p(v) under p, nats; None where nobody asked."""
    leads: list[NDArray[np.float32]] = field(default_factory=list)
    """For each example, (T,) by how much the largest logit leads the second largest, nats."""

    @cached_property
    def exact(self) -> NDArray[np.bool_]:
        """(N,) whether every labelled token is the arg-max."""
        return np.array([right.all() for right in self.is_right], dtype=np.bool_)

    def smallest_leads(self) -> NDArray[np.float32]:
        """(N,) the smallest lead on the way of the greedy answer: up to the first token that it does not share."""
        return np.array(
            [lead[: _through_first_wrong(right)].min() for lead, right in zip(self.leads, self.is_right, strict=True)],
            dtype=np.float32,
        )

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
def score_batches(body: Body, batches: Sequence[Batch], *, moments: bool = False) -> ExampleScores:
    """The same of batches that are there; the result is in the order of their items.

    Args:
        body: the model.
        batches: from `by_length`.
        moments: whether mean and deviation of log p under p are made as well.
    """
    count = sum(batch.size for batch in batches)
    token_log_probs: list[Any] = [None] * count
    is_right: list[Any] = [None] * count
    kept_moments: list[Any] = [None] * count
    leads: list[Any] = [None] * count
    for batch in batches:
        found = _score_labels(body, _without_last(batch), moments)
        ends = np.cumsum(batch.label_counts.cpu().numpy())[:-1]
        flat = [np.split(part, ends) for part in (found.log_probs, found.is_right, found.leads)]
        pairs = np.split(found.moments, ends, axis=1)
        for item, values, right, lead, pair in zip(batch.items.tolist(), *flat, pairs, strict=True):
            token_log_probs[item], is_right[item], leads[item], kept_moments[item] = values, right, lead, pair
    return ExampleScores(token_log_probs, is_right, kept_moments if moments else None, leads)


@torch.no_grad()
def first_log_probs(body: Body, batches: Sequence[Batch], tokens: Sequence[int]) -> NDArray[np.float64]:
    """(N, len(tokens)) log p of some tokens in the place of each example's first labelled one, nats.

    Letters of a multiple choice are compared so: one pass for all of them.
    """
    found = np.empty((sum(batch.size for batch in batches), len(tokens)))
    for batch in batches:
        starts = torch.cumsum(batch.label_counts, 0) - batch.label_counts
        labels = {name: getattr(batch, name)[starts] for name in ("label_row", "label_column", "label_ids")}
        logits = body.logits(_without_last(replace(batch, **labels)), is_masked=False)
        chosen = torch.log_softmax(logits, 1)[:, list(tokens)]
        found[batch.items.cpu().numpy()] = chosen.double().cpu().numpy()
    return found


def gradient_norms(
    body: Body, examples: Sequence[Example], *, pad: int, device: str = "cpu", order: float = 2.0
) -> NDArray[np.float64]:
    """(N,) mean over the model's parameters of the norm of d(mean token loss) / d(parameter), one backward an example.

    Args:
        body: the model; its parameters are left as they were, and no `.grad` is made.
        examples: what is asked.
        pad: token for padding; alone in its batch, an example has none.
        device: where the model is.
        order: of the norm of each parameter's gradient, >= 1.
    Raises:
        NotMeasured: no parameter takes a gradient (a packed file).
    """
    parameters = [parameter for parameter in body.model.parameters() if parameter.is_floating_point()]
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        norms = [
            _gradient_norm(body, collate([example], [0], pad=pad).to(device), parameters, order) for example in examples
        ]
    finally:
        for parameter, needed in zip(parameters, before, strict=True):
            parameter.requires_grad_(needed)
    return np.array(norms, dtype=np.float64)


@torch.enable_grad()
def _gradient_norm(body: Body, batch: Batch, parameters: Sequence[Tensor], order: float) -> float:
    logits = body.logits(_without_last(batch), is_masked=False)
    loss = torch.nn.functional.cross_entropy(logits, batch.label_ids)
    if not loss.requires_grad:
        raise NotMeasured("no weight of this model takes a gradient (its file is packed)")
    gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, parameters, allow_unused=True)
    found = [torch.linalg.vector_norm(each.float(), order) for each in gradients if each is not None]
    return float(torch.stack(found).mean())


def _without_last(batch: Batch) -> Batch:
    """The last token of the longest sequence is predicted, and predicts nothing."""
    return replace(batch, ids=batch.ids[:, :-1], attention_mask=batch.attention_mask[:, :-1])


@dataclass(frozen=True)
class _Labels:
    """Of all labels of a batch, one after another."""

    log_probs: NDArray[np.float64]
    is_right: NDArray[np.bool_]
    moments: NDArray[np.float64]
    """(2, labels), or (2, 0) where nobody asked."""
    leads: NDArray[np.float32]


def _score_labels(body: Body, batch: Batch, moments: bool) -> _Labels:
    """Logits of a large vocabulary are made for a few labels at a time."""
    given = body.hidden(batch, is_masked=False) if body.is_cut else body.logits(batch, is_masked=False)
    vocabulary = int(body.head.weight.shape[0] if body.is_cut else given.shape[1])
    at_once = max(1, LOGITS_AT_ONCE // vocabulary // (_COPIES if moments else 1))
    scored = [
        _score_logits(body.apply_head(some) if body.is_cut else some, labels, moments)
        for some, labels in zip(torch.split(given, at_once), torch.split(batch.label_ids, at_once), strict=True)
    ]
    return _Labels(
        np.concatenate([one.log_probs for one in scored]),
        np.concatenate([one.is_right for one in scored]),
        np.concatenate([one.moments for one in scored], axis=1),
        np.concatenate([one.leads for one in scored]),
    )


def _score_logits(
    logits: Float[Tensor, "labels vocabulary"], labels: Int[Tensor, " labels"], moments: bool = False
) -> _Labels:
    log_probs = -torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    largest = logits.argmax(-1)
    pairs = _moments(logits) if moments else torch.empty(2, 0, dtype=torch.float64)
    found = (log_probs.double(), largest == labels, pairs, _leads(logits, largest))
    return _Labels(*(part.cpu().numpy() for part in found))


def _leads(logits: Float[Tensor, "labels vocabulary"], largest: Int[Tensor, " labels"]) -> Float[Tensor, " labels"]:
    """By how much the largest logit leads the second. The logits are changed for a moment: a copy may be large."""
    place = largest.unsqueeze(-1)
    first = logits.gather(1, place)
    second = logits.scatter_(1, place, -torch.inf).amax(-1)
    logits.scatter_(1, place, first)
    return (first.squeeze(-1) - second).float()


def _through_first_wrong(right: NDArray[np.bool_]) -> int:
    """How many tokens until the first wrong one, itself included."""
    return len(right) if right.all() else int(right.argmin()) + 1


def _moments(logits: Float[Tensor, "labels vocabulary"]) -> Float[Tensor, "2 labels"]:
    """Mean and standard deviation of log p(v) under p, float64.

    From x = logits - largest, which is log p but for a constant: the mean is that of x less log sum exp x. The second
    moment is taken about the mean: as E[x^2] - mean^2 the two would cancel in float32.
    """
    x = logits - logits.amax(-1, keepdim=True)
    weight = x.exp()
    x.masked_fill_(weight == 0, 0.0)
    total = weight.sum(-1)
    mean = (weight * x).sum(-1) / total
    variance = x.sub_(mean.unsqueeze(-1)).square_().mul_(weight).sum(-1) / total
    return torch.stack([mean.double() - total.double().log(), variance.double().sqrt()])
