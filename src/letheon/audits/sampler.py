"""Answers drawn at random from a model: many to a prompt, the same ones whatever is asked beside it.

    p           = softmax(logits / temperature), cut to the smallest set of likeliest tokens whose mass is >= top_p
    token       = the first in the order of the vocabulary whose cumulated p is above u * (mass of that set)
    u           uniform in [0, 1), one a token, from a generator seeded by (seed, prompt): stream i belongs to answer i
So neither the batch, nor the order, nor how many are drawn changes an answer; two models asked the same are drawn from
by the same numbers. A prompt is read once. Answers that have begun alike go on as one row of the cache until they part,
so that n answers of a model that is sure cost about as much as one.
Prompts of one length share a batch: nothing is padded.

Source: top-p: Holtzman et al. 2020, arXiv:1904.09751.  Checked against: transformers' own top-p and temperature, a
whole forward pass a token without a cache on every architecture, exact sequence probabilities within three sigma,
greedy decoding as the temperature goes to 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from letheon.errors import NotMeasured, require

ROWS = 512
"""Answers under way at once, at most (of one prompt: all of them)."""
_ENTRIES = 2**24
"""Probabilities held at once in float64 (128 MB)."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    samples: int
    """Answers to each prompt, >= 1."""
    temperature: float = 1.0
    """> 0; 1: the model's own distribution."""
    top_p: float = 1.0
    """In (0, 1]; 1: all tokens."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.samples >= 1, f"sampling needs samples >= 1, got {self.samples}")
        require(self.temperature > 0, f"sampling needs a temperature > 0, got {self.temperature}")
        require(0 < self.top_p <= 1, f"sampling needs 0 < top_p <= 1, got {self.top_p}")


def probabilities(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """(rows, tokens) what is drawn from, float64; 0 outside the smallest set of mass >= top_p. Not normed again.

    Args:
        logits: (rows, tokens).
        temperature: > 0.
        top_p: in (0, 1].
    """
    found = torch.softmax(logits.double() / temperature, dim=-1)
    if top_p == 1:
        return found
    ordered, places = found.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return found.masked_fill(torch.zeros_like(found, dtype=torch.bool).scatter(-1, places, before >= top_p), 0.0)


def drawn(weights: Tensor, uniforms: Tensor) -> Tensor:
    """(rows, draws) tokens by inverting the cumulated weights.

    Args:
        weights: (rows, tokens) >= 0, float64; they need not add up to 1.
        uniforms: (rows, draws) in [0, 1), float64.
    """
    cumulated = weights.cumsum(-1)
    total = cumulated[:, -1:]
    found = torch.searchsorted(cumulated, uniforms * total, right=True)
    # A product that rounding has lifted to the whole belongs to the last token that has any weight.
    last = (cumulated < total).sum(-1, keepdim=True)
    return torch.minimum(found, last)


def uniforms_of(prompt: Sequence[int], sampling: Sampling, tokens: int) -> Tensor:
    """(samples, tokens) float64 in [0, 1), a function of seed, prompt and `tokens`; fewer are the first of more."""
    digest = hashlib.sha256(f"{sampling.seed}/{list(prompt)}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(sampling.samples, tokens, generator=generator, dtype=torch.float64)


@torch.no_grad()
def sampled_ids(
    model: Any,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    sampling: Sampling,
    *,
    ends: Collection[int],
    device: str,
) -> list[list[tuple[int, ...]]]:
    """For each prompt its answers in tokens, in the order of their streams, with the end where there is one.

    Args:
        model: a causal language model that keeps a cache.
        prompts: tokens, each at least one.
        lengths: most tokens of each prompt's answers, >= 0. The window must have room for them.
        sampling: how they are drawn.
        ends: tokens that end an answer.
        device: of the model.
    Raises:
        NotMeasured: logits that are NaN or plus infinity.
    """
    found: list[list[tuple[int, ...]]] = [[()] * sampling.samples for _ in prompts]
    for chosen in _alike(prompts, lengths, max(1, ROWS // sampling.samples)):
        streams = [uniforms_of(prompts[item], sampling, lengths[item]) for item in chosen]
        made = _walk(model, [prompts[item] for item in chosen], streams, sampling, frozenset(ends), device)
        for item, answers in zip(chosen, made, strict=True):
            found[item] = answers
    return found


@dataclass
class _Row:
    """Answers to one prompt that are alike so far."""

    prompt: int
    streams: list[int]
    ids: tuple[int, ...] = ()


def _walk(
    model: Any,
    prompts: Sequence[Sequence[int]],
    streams: Sequence[Tensor],
    sampling: Sampling,
    ends: frozenset[int],
    device: str,
) -> list[list[tuple[int, ...]]]:
    """All answers to prompts of one length."""
    found: list[list[tuple[int, ...]]] = [[()] * len(one) for one in streams]
    rows = [_Row(prompt, list(range(len(one)))) for prompt, one in enumerate(streams)]
    ids, cache = torch.tensor([list(prompt) for prompt in prompts], device=device), None
    while rows:
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        chosen = _choose(output.logits[:, -1], rows, streams, sampling)
        parents: list[int] = []
        going: list[_Row] = []
        for at, (row, tokens) in enumerate(zip(rows, chosen, strict=True)):
            for token, which in _parted(row.streams, tokens):
                longer = _Row(row.prompt, which, (*row.ids, token))
                if token in ends or len(longer.ids) == streams[row.prompt].shape[1]:
                    for stream in which:
                        found[row.prompt][stream] = longer.ids
                else:
                    parents.append(at)
                    going.append(longer)
        rows = going
        cache.reorder_cache(torch.tensor(parents, dtype=torch.long, device=device))
        ids = torch.tensor([[row.ids[-1]] for row in rows], dtype=torch.long, device=device)
    return found


def _choose(logits: Tensor, rows: Sequence[_Row], streams: Sequence[Tensor], sampling: Sampling) -> Iterator[list[int]]:
    """For each row the next token of each of its answers."""
    if not bool((logits < float("inf")).all()):
        raise NotMeasured("the model's logits are NaN or infinite")
    most = max(len(row.streams) for row in rows)
    uniforms = torch.zeros(len(rows), most, dtype=torch.float64)
    for at, row in enumerate(rows):
        uniforms[at, : len(row.streams)] = streams[row.prompt][row.streams, len(row.ids)]
    part = max(1, _ENTRIES // logits.shape[1])
    for start in range(0, len(rows), part):
        weights = probabilities(logits[start : start + part], sampling.temperature, sampling.top_p)
        tokens = drawn(weights, uniforms[start : start + part].to(weights.device)).tolist()
        for row, own in zip(rows[start : start + part], tokens, strict=True):
            yield own[: len(row.streams)]


def _parted(streams: Sequence[int], tokens: Sequence[int]) -> list[tuple[int, list[int]]]:
    """(token, the answers that go on with it), in the order of the tokens."""
    by_token: dict[int, list[int]] = {}
    for stream, token in zip(streams, tokens, strict=True):
        by_token.setdefault(token, []).append(stream)
    return sorted(by_token.items())


def _alike(prompts: Sequence[Sequence[int]], lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Positions in batches of prompts of one length; those of whom nothing is wanted are left out."""
    batch: list[int] = []
    for item in sorted((at for at, length in enumerate(lengths) if length), key=lambda at: len(prompts[at])):
        if batch and (len(batch) == most or len(prompts[item]) != len(prompts[batch[0]])):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
