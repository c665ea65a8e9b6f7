"""Read questions with many strings in them, of any lengths; what strings have in common is read once.

    question q with string s:   before_q + s + after_q
Strings that are the one they come from up to place j share all that stands before it. Its keys and values are computed
once, and each string's rest is read behind them. A model that remembers by other means (a state, for one) is read from
its first token: what it says is the same. Padding stands on the right of a rest, where no token looks, and on the left
of what it shares, where it is masked.

Source: GCG, Zou et al. 2023, arXiv:2307.15043.
Checked against: with and without the shared beginning, on every architecture; strings of different lengths one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from letheon.audits.attacker import Target
from letheon.audits.strings import Slot, Tokens
from letheon.data.batches import Batch, batch_tokens_on, collate
from letheon.data.encode import Example
from letheon.training.losses import widened

One = Sequence[int] | Int[Tensor, " n"]
Many = Sequence[Tokens] | Int[Tensor, "strings n"]
_Shared = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rests:
    """Rows of (question, string): what is read behind the shared beginning, and which tokens it predicts."""

    questions: Int[Tensor, " rows"]
    strings: Int[Tensor, " rows"]
    starts: Int[Tensor, " rows"]
    """Tokens that are shared."""
    lengths: Int[Tensor, " rows"]
    """Tokens of the whole question, its last one among them, which is predicted and not read."""
    ids: Int[Tensor, "rows width"]
    positions: Int[Tensor, "rows width"]
    """Where each token stands in its question; padding where the last one does, so that none is outside the window."""
    label_row: Int[Tensor, " labels"]
    label_column: Int[Tensor, " labels"]
    label_ids: Int[Tensor, " labels"]


@dataclass(frozen=True)
class Free:
    """The questions with one string whose embeddings are free."""

    batch: Batch
    embeddings: Float[Tensor, "n width"]
    """Of the string, the same in every question."""
    given: dict[str, Any]
    """What the model is called with."""


@dataclass(frozen=True)
class Reads:
    """Questions as they are read by one model.

    Args:
        target: the model.
        slots: the questions.
        shares: whether what strings have in common is read once.
    """

    target: Target
    slots: Sequence[Slot]
    shares: bool = True

    def rests(self, strings: Many, near: One | None) -> Iterator[tuple[Rests, dict[str, Any]]]:
        """Every question with every string, in batches, and what the model is to be called with for each.

        Args:
            strings: tokens, at least one each.
            near: a string that all of them share their beginning with; None: nothing is shared.
        """
        rows = [tuple(map(int, string)) for string in strings]
        base = () if near is None else tuple(map(int, near))
        shared = self._shared(base) if near is not None and self.shares else None
        first = [0 if shared is None else _common(row, base) for row in rows]
        for batch in self._batches(rows, first, reads_all=shared is None):
            yield batch, self._given(batch, shared)

    def states(self, **given: Any) -> Tensor:
        """Hidden states where they can stand for logits, else logits; (batch, time, ...)."""
        body = self.target.body
        found: Tensor = body.body(**given)[0] if body.is_cut else self.target.model(**given).logits
        return found

    def logits(self, states: Tensor) -> Tensor:
        """Of some states, float32."""
        body = self.target.body
        return body.apply_head(states) if body.is_cut else widened(states)

    def free(self, string: One) -> Free:
        """The questions with a string, ready to be read with a graph."""
        device, embedding = self.target.device, self.target.model.get_input_embeddings()
        ids = [int(token) for token in string]
        examples = [slot.filled(ids) for slot in self.slots]
        batch = collate(examples, range(len(examples)), pad=self.target.encoder.pad).to(device)
        own = embedding(torch.tensor(ids, dtype=torch.long, device=device)).detach().requires_grad_()
        starts = torch.tensor([len(slot.before) for slot in self.slots], device=device)
        places = starts.unsqueeze(1) + torch.arange(len(ids), device=device)
        rows = torch.arange(len(examples), device=device).unsqueeze(1).expand_as(places)
        read = embedding(batch.ids).detach().index_put((rows, places), own.expand(len(examples), -1, -1))
        given = {"inputs_embeds": read, "attention_mask": batch.attention_mask, "use_cache": False}
        return Free(batch, own, given)

    # --- inside

    def _given(self, batch: Rests, shared: _Shared | None) -> dict[str, Any]:
        device = self.target.device
        if shared is None:
            return {"input_ids": batch.ids.to(device), "use_cache": False}
        cache, mask = _taken(shared, batch, device)
        return {
            "input_ids": batch.ids.to(device),
            "attention_mask": torch.cat([mask, mask.new_ones(batch.ids.shape)], 1),
            "position_ids": batch.positions.to(device),
            "past_key_values": cache,
            "use_cache": True,
        }

    def _shared(self, near: Tokens) -> _Shared | None:
        """Keys and values of each layer up to the end of the string, (questions, heads, time, size)."""
        rows = [[*slot.before, *near] for slot in self.slots]
        width, pad = max(map(len, rows)), self.target.encoder.pad
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=self.target.device)
        cache = DynamicCache()  # of no configuration: a sliding layer would keep its last tokens alone
        self.states(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True)
        layers: list[Any] = list(cache.layers)
        if not all(isinstance(getattr(layer, "keys", None), Tensor) for layer in layers):
            return None
        return [(layer.keys, layer.values) for layer in layers]

    def _batches(self, strings: Sequence[Tokens], first: Sequence[int], *, reads_all: bool) -> Iterator[Rests]:
        """Every question with every string, by what is left to read, so that little is padded."""
        examples = [[slot.filled(string) for string in strings] for slot in self.slots]
        pairs = [
            (0 if reads_all else len(slot.before) + first[string], question, string)
            for question, slot in enumerate(self.slots)
            for string in range(len(strings))
        ]
        # By what is left to read: padding there goes through every layer, padding of the beginning through attention.
        pairs.sort(key=lambda pair: (len(examples[pair[1]][pair[2]].ids) - pair[0], pair))
        most, pad = batch_tokens_on(self.target.device), self.target.encoder.pad
        begin, width = 0, 0
        for end, (start, question, string) in enumerate(pairs):
            longer = max(width, len(examples[question][string].ids) - 1 - start)
            if end > begin and (end - begin + 1) * longer > most:
                yield _rests(pairs[begin:end], examples, pad)
                begin, longer = end, len(examples[question][string].ids) - 1 - start
            width = longer
        yield _rests(pairs[begin:], examples, pad)


def _common(string: Tokens, near: Tokens) -> int:
    """Tokens at the beginning that both have, but for the string's last, so that something is left to read."""
    most = min(len(string) - 1, len(near))
    return next((place for place in range(most) if string[place] != near[place]), max(most, 0))


def _rests(pairs: Sequence[tuple[int, int, int]], examples: Sequence[Sequence[Example]], pad: int) -> Rests:
    rows = [examples[question][string] for _, question, string in pairs]
    width = max(len(example.ids) - 1 - start for example, (start, _, _) in zip(rows, pairs, strict=True))
    ids: list[list[int]] = []
    label_row: list[int] = []
    label_column: list[int] = []
    label_ids: list[int] = []
    for row, (example, (start, _, _)) in enumerate(zip(rows, pairs, strict=True)):
        read = example.ids[start:-1]
        ids.append([*read, *[pad] * (width - len(read))])
        answer = range(example.labelled_from, len(example.ids))
        label_row += [row] * len(answer)
        label_column += [place - 1 - start for place in answer]
        label_ids += example.ids[example.labelled_from :]
    starts, questions, strings = map(torch.tensor, zip(*pairs, strict=True))
    lengths = torch.tensor([len(example.ids) for example in rows])
    positions = (starts.unsqueeze(1) + torch.arange(width)).minimum((lengths - 2).unsqueeze(1))
    labels = map(torch.tensor, (label_row, label_column, label_ids))
    return Rests(questions, strings, starts, lengths, torch.tensor(ids), positions, *labels)


def _taken(shared: _Shared, batch: Rests, device: str) -> tuple[DynamicCache, Int[Tensor, "rows longest"]]:
    """Each row's own beginning, padded on the left, and a mask that leaves the padding out."""
    longest = int(batch.starts.max())
    places = torch.arange(longest) - (longest - batch.starts).unsqueeze(1)
    mask = (places >= 0).long().to(device)
    places, rows = places.clamp(min=0).to(device), batch.questions.unsqueeze(1).to(device)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(shared):
        # Indices on both sides of a slice put the slice last but one: (rows, longest, heads, size).
        cache.update(keys[rows, :, places].transpose(1, 2), values[rows, :, places].transpose(1, 2), layer)
    return cache, mask


def slope_by_token(
    slope: Float[Tensor, "n width"], embedding: Any, tokens: Int[Tensor, " tokens"], *, at_once: int = 8192
) -> Float[Tensor, "n tokens"]:
    """By the chain rule from the slope by embeddings: as the module gives them, whatever it does to its table."""
    return torch.cat([slope @ embedding(some).detach().T.to(slope) for some in torch.split(tokens, at_once)], 1)
