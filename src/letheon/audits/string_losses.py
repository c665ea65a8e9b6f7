"""How well strings bring out the answers to some questions, many strings at once; and which tokens would do better.

    loss(s) = mean over the answers' tokens of -log p(token | question with s, answer so far)        nats
    G[j, v] = d loss / d x[j, v]        x: (n, vocabulary) one-hot rows of s, so G = (d loss / d embedding_j) . E_v
Strings that differ from one they come from at place j alone share all that stands before it. Its keys and values are
computed once, and each string's rest is read behind them; logits are made where an answer is predicted, and nowhere
else. A model that remembers by other means (a state, for one) is read from its first token: the losses are the same.

Source: GCG, Zou et al. 2023, arXiv:2307.15043.
Checked against: central differences along one-hot directions in float64; with and without the shared beginning, on
every architecture; scores of the whole questions.
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
from letheon.audits.strings import Slot
from letheon.data.batches import batch_tokens_on, collate
from letheon.errors import NotMeasured
from letheon.training.losses import widened
from letheon.training.scoring import LOGITS_AT_ONCE, score_examples

_Shared = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StringLosses:
    """Losses of strings in some questions.

    Args:
        target: the model.
        slots: the questions.
        shares: whether what strings have in common is read once.
    """

    target: Target
    slots: Sequence[Slot]
    shares: bool = True

    @property
    def labels(self) -> int:
        """Tokens of all answers."""
        return sum(len(slot.after) - slot.rest for slot in self.slots)

    @torch.no_grad()
    def of(self, strings: Int[Tensor, "strings n"], near: Int[Tensor, " n"] | None = None) -> Float[Tensor, " strings"]:
        """Loss of each string, nats, float64.

        Args:
            strings: tokens.
            near: a string that all of them share their beginning with; None: nothing is shared.
        Raises:
            NotMeasured: a loss that is not finite.
        """
        shared = None if near is None or not self.shares else self._shared(near)
        found = self._whole(strings) if near is None or shared is None else self._behind(strings, near, shared)
        if not bool(torch.isfinite(found).all()):
            raise NotMeasured("the loss of a string is NaN or infinite")
        return found / self.labels

    def gradient(
        self, string: Int[Tensor, " n"], tokens: Int[Tensor, " tokens"]
    ) -> tuple[float, Float[Tensor, "n tokens"]]:
        """The loss, and its derivative by the one-hot entry of each of the tokens at each place.

        Raises:
            NotMeasured: a loss or a slope that is not finite.
        """
        device, embedding = self.target.device, self.target.model.get_input_embeddings()
        batch = collate([slot.filled(string.tolist()) for slot in self.slots], range(len(self.slots)), pad=self._pad)
        batch = batch.to(device)
        with torch.enable_grad():
            free = embedding(string.to(device)).detach().requires_grad_()
            rows = torch.arange(len(self.slots), device=device).unsqueeze(1)
            places = self._starts(device).unsqueeze(1) + torch.arange(len(string), device=device)
            inside = free.expand(len(rows), -1, -1)
            read = embedding(batch.ids).detach().index_put((rows.expand_as(places), places), inside)
            states = self._read(inputs_embeds=read, attention_mask=batch.attention_mask, use_cache=False)
            logits = self._logits(states[batch.label_row, batch.label_column])
            loss = torch.nn.functional.cross_entropy(logits, batch.label_ids, reduction="sum") / self.labels
            (slope,) = torch.autograd.grad(loss, free)
        found = slope_by_token(slope, embedding, tokens.to(device))
        if not (bool(torch.isfinite(loss)) and bool(torch.isfinite(found).all())):
            raise NotMeasured("the attack could not go on: its loss or its slope is not finite")
        return float(loss.detach()), found

    # --- inside

    @property
    def _pad(self) -> int:
        return self.target.encoder.pad

    def _starts(self, device: str) -> Int[Tensor, " questions"]:
        return torch.tensor([len(slot.before) for slot in self.slots], device=device)

    def _read(self, **given: Any) -> Tensor:
        """Hidden states where they can stand for logits, else logits; (batch, time, ...)."""
        body = self.target.body
        found: Tensor = body.body(**given)[0] if body.is_cut else self.target.model(**given).logits
        return found

    def _logits(self, states: Tensor) -> Tensor:
        body = self.target.body
        return body.apply_head(states) if body.is_cut else widened(states)

    def _whole(self, strings: Tensor) -> Tensor:
        """Every question read from its first token, with every string."""
        examples = [slot.filled(string) for slot in self.slots for string in strings.tolist()]
        scores = score_examples(self.target.body, examples, pad=self._pad, device=self.target.device)
        sums = torch.from_numpy(scores.log_probs("sum"))
        return -sums.reshape(len(self.slots), len(strings)).sum(0)

    def _behind(self, strings: Tensor, near: Tensor, shared: _Shared) -> Tensor:
        """The same, read behind what each string shares with the one it is near."""
        device, head = self.target.device, self.target.model.get_output_embeddings()
        at_once = len(strings) * self.labels if head is None else max(1, LOGITS_AT_ONCE // head.weight.shape[0])
        total = torch.zeros(len(strings), dtype=torch.float64)
        for batch in self._batches(strings, near):
            cache, mask = _taken(shared, batch, device)
            width = batch.ids.shape[1]
            states = self._read(
                input_ids=batch.ids.to(device),
                attention_mask=torch.cat([mask, mask.new_ones(len(mask), width)], 1),
                position_ids=batch.positions.to(device),
                past_key_values=cache,
                use_cache=True,
            )
            states, labels = states[batch.label_row, batch.label_column], batch.label_ids.to(device)
            pieces = zip(torch.split(states, at_once), torch.split(labels, at_once), strict=True)
            lost = [torch.nn.functional.cross_entropy(self._logits(s), ids, reduction="none") for s, ids in pieces]
            total.index_add_(0, batch.strings[batch.label_row], torch.cat(lost).double().cpu())
        return total

    def _shared(self, near: Tensor) -> _Shared | None:
        """Keys and values of each layer up to the end of the string, (questions, heads, time, size)."""
        rows = [[*slot.before, *near.tolist()] for slot in self.slots]
        width = max(map(len, rows))
        ids = torch.tensor([row + [self._pad] * (width - len(row)) for row in rows], device=self.target.device)
        cache = DynamicCache()  # of no configuration: a sliding layer would keep its last tokens alone
        self._read(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True)
        layers: list[Any] = list(cache.layers)
        if not all(isinstance(getattr(layer, "keys", None), Tensor) for layer in layers):
            return None
        return [(layer.keys, layer.values) for layer in layers]

    def _batches(self, strings: Tensor, near: Tensor) -> Iterator[_Rests]:
        """Every question with every string, by what is left to read, so that little is padded."""
        is_other = strings != near
        first = torch.where(is_other.any(1), is_other.int().argmax(1), strings.shape[1] - 1).tolist()
        examples = [[slot.filled(string) for string in strings.tolist()] for slot in self.slots]
        pairs = [
            (len(slot.before) + first[string], question, string)
            for question, slot in enumerate(self.slots)
            for string in range(len(strings))
        ]
        # By what is left to read: padding there goes through every layer, padding of the beginning through attention.
        pairs.sort(key=lambda pair: (len(examples[pair[1]][pair[2]].ids) - pair[0], pair))
        most = batch_tokens_on(self.target.device)
        begin, width = 0, 0
        for end, (start, question, string) in enumerate(pairs):
            longer = max(width, len(examples[question][string].ids) - 1 - start)
            if end > begin and (end - begin + 1) * longer > most:
                yield _rests(pairs[begin:end], examples, self._pad)
                begin, longer = end, len(examples[question][string].ids) - 1 - start
            width = longer
        yield _rests(pairs[begin:], examples, self._pad)


@dataclass(frozen=True)
class _Rests:
    """Rows of (question, string): what is read behind the shared beginning, and which tokens it predicts."""

    questions: Int[Tensor, " rows"]
    strings: Int[Tensor, " rows"]
    starts: Int[Tensor, " rows"]
    """Tokens that are shared."""
    ids: Int[Tensor, "rows width"]
    positions: Int[Tensor, "rows width"]
    """Where each token stands in its question; padding where the last one does, so that none is outside the window."""
    label_row: Int[Tensor, " labels"]
    label_column: Int[Tensor, " labels"]
    label_ids: Int[Tensor, " labels"]


def _rests(pairs: Sequence[tuple[int, int, int]], examples: Sequence[Sequence[Any]], pad: int) -> _Rests:
    rows = [examples[question][string] for _, question, string in pairs]
    width = max(len(example.ids) - 1 - start for example, (start, _, _) in zip(rows, pairs, strict=True))
    ids, label_row, label_column, label_ids = [], [], [], []
    for row, (example, (start, _, _)) in enumerate(zip(rows, pairs, strict=True)):
        read = example.ids[start:-1]
        ids.append([*read, *[pad] * (width - len(read))])
        answer = range(example.labelled_from, len(example.ids))
        label_row += [row] * len(answer)
        label_column += [place - 1 - start for place in answer]
        label_ids += example.ids[example.labelled_from :]
    starts, questions, strings = map(torch.tensor, zip(*pairs, strict=True))
    last = torch.tensor([len(example.ids) - 2 for example in rows])
    positions = (starts.unsqueeze(1) + torch.arange(width)).minimum(last.unsqueeze(1))
    labels = map(torch.tensor, (label_row, label_column, label_ids))
    return _Rests(questions, strings, starts, torch.tensor(ids), positions, *labels)


def _taken(shared: _Shared, batch: _Rests, device: str) -> tuple[DynamicCache, Int[Tensor, "rows longest"]]:
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
