"""How well strings bring out the answers to some questions, many strings at once; and which tokens would do better.

    loss(s) = mean over the answers' tokens of -log p(token | question with s, answer so far)        nats
    loss(s) = sum |h(q with s) - h_0(q)|^2 / sum |h_0(q)|^2       h: a block's states at the tokens behind the string
    G[j, v] = d loss / d x[j, v]        x: (n, vocabulary) one-hot rows of s, so G = (d loss / d embedding_j) . E_v
h_0 are the states of another model that reads the question without a string. Logits are made where an answer is
predicted, and nowhere else.

Source: GCG, Zou et al. 2023, arXiv:2307.15043; states, Thompson and Sklar 2024, arXiv:2407.17447.
Checked against: central differences along one-hot directions in float64; with and without the shared beginning, on
every architecture; scores of the whole questions; no distance between a model and itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from letheon.audits.attacker import Target
from letheon.audits.string_reads import Free, Many, One, Reads, Rests, slope_by_token
from letheon.audits.strings import Slot
from letheon.errors import NotMeasured
from letheon.training.activations import caught
from letheon.training.scoring import LOGITS_AT_ONCE


@runtime_checkable
class Losses(Protocol):
    """What a search makes small."""

    def of(self, strings: Many, near: One | None = None) -> Float[Tensor, " strings"]: ...

    def gradient(self, string: One, tokens: Int[Tensor, " tokens"]) -> tuple[float, Float[Tensor, "n tokens"]]: ...


@dataclass(frozen=True)
class StringLosses:
    """Losses of the answers to some questions.

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
    def of(self, strings: Many, near: One | None = None) -> Float[Tensor, " strings"]:
        """Loss of each string, nats, float64.

        Args:
            strings: tokens.
            near: a string that all of them share their beginning with; None: nothing is shared.
        Raises:
            NotMeasured: a loss that is not finite.
        """
        reads, device = Reads(self.target, self.slots, self.shares), self.target.device
        head = self.target.model.get_output_embeddings()
        at_once = len(strings) * self.labels if head is None else max(1, LOGITS_AT_ONCE // head.weight.shape[0])
        total = torch.zeros(len(strings), dtype=torch.float64)
        for batch, given in reads.rests(strings, near):
            states = reads.states(**given)[batch.label_row, batch.label_column]
            pieces = zip(torch.split(states, at_once), torch.split(batch.label_ids.to(device), at_once), strict=True)
            lost = [torch.nn.functional.cross_entropy(reads.logits(s), ids, reduction="none") for s, ids in pieces]
            total.index_add_(0, batch.strings[batch.label_row], torch.cat(lost).double().cpu())
        return finite(total / self.labels)

    def gradient(self, string: One, tokens: Int[Tensor, " tokens"]) -> tuple[float, Float[Tensor, "n tokens"]]:
        """The loss, and its derivative by the one-hot entry of each of the tokens at each place.

        Raises:
            NotMeasured: a loss or a slope that is not finite.
        """
        reads = Reads(self.target, self.slots)

        def loss(free: Free) -> Tensor:
            batch = free.batch
            logits = reads.logits(reads.states(**free.given)[batch.label_row, batch.label_column])
            return torch.nn.functional.cross_entropy(logits, batch.label_ids, reduction="sum") / self.labels

        return slopes(reads, string, tokens, loss)


@dataclass(frozen=True)
class StateLosses:
    """Distances of a block's states from those of another model that is asked without a string.

    Args:
        target: the model.
        slots: the questions.
        wanted: for each question the other model's states (k, width) at the last k of the tokens that are read; k is at
            most the tokens behind the string.
        layer: of the block, counted from 0.
        shares: whether what strings have in common is read once.
    """

    target: Target
    slots: Sequence[Slot]
    wanted: Sequence[Float[Tensor, "_ width"]]
    layer: int
    shares: bool = True

    @property
    def scale(self) -> float:
        """Sum of |h_0|^2."""
        return float(sum(states.double().square().sum() for states in self.wanted))

    @torch.no_grad()
    def of(self, strings: Many, near: One | None = None) -> Float[Tensor, " strings"]:
        """Relative squared distance of each string, float64; as `StringLosses.of`."""
        reads = Reads(self.target, self.slots, self.shares)
        total = torch.zeros(len(strings), dtype=torch.float64)
        for batch, given in reads.rests(strings, near):
            with caught(self.target.model, [self.layer]) as hidden:
                reads.states(**given)
            rows, lost = self._lost(hidden[self.layer], batch)
            total.index_add_(0, batch.strings[rows], lost.double().cpu())
        return finite(total / self.scale)

    def gradient(self, string: One, tokens: Int[Tensor, " tokens"]) -> tuple[float, Float[Tensor, "n tokens"]]:
        """As `StringLosses.gradient`."""
        reads = Reads(self.target, self.slots)

        def loss(free: Free) -> Tensor:
            with caught(self.target.model, [self.layer]) as hidden:
                reads.states(**free.given)
            lengths = free.batch.attention_mask.sum(1).cpu()
            none, every = torch.zeros_like(lengths), torch.arange(len(lengths))
            _, lost = self._lost_at(hidden[self.layer], every, none, lengths)
            return lost.sum() / self.scale

        return slopes(reads, string, tokens, loss)

    def _lost(self, states: Tensor, batch: Rests) -> tuple[Int[Tensor, " some"], Float[Tensor, " some"]]:
        return self._lost_at(states, batch.questions, batch.starts, batch.lengths)

    def _lost_at(
        self, states: Float[Tensor, "rows time width"], questions: Tensor, starts: Tensor, lengths: Tensor
    ) -> tuple[Int[Tensor, " some"], Float[Tensor, " some"]]:
        """(row, |h - h_0|^2) of every token that is compared."""
        rows, columns, wanted = [], [], []
        for row, (question, start, length) in enumerate(
            zip(questions.tolist(), starts.tolist(), lengths.tolist(), strict=True)
        ):
            there = self.wanted[question]
            end = length - 1 - start  # the last token is predicted, and not read
            rows.append(torch.full((len(there),), row))
            columns.append(torch.arange(end - len(there), end))
            wanted.append(there)
        of, at = torch.cat(rows), torch.cat(columns)
        apart = states[of.to(states.device), at.to(states.device)] - torch.cat(wanted).to(states)
        return of, apart.square().sum(-1)


@dataclass(frozen=True)
class WeightedLosses:
    """A sum of losses, each with its weight."""

    parts: Sequence[tuple[float, Losses]]

    def of(self, strings: Many, near: One | None = None) -> Float[Tensor, " strings"]:
        """Loss of each string."""
        total = torch.zeros(len(strings), dtype=torch.float64)
        for weight, losses in self.parts:
            total += weight * losses.of(strings, near)
        return total

    def gradient(self, string: One, tokens: Int[Tensor, " tokens"]) -> tuple[float, Float[Tensor, "n tokens"]]:
        """Loss and slope."""
        found = [(weight, *losses.gradient(string, tokens)) for weight, losses in self.parts]
        slope = torch.stack([weight * slope.cpu().double() for weight, _, slope in found]).sum(0)
        return sum(weight * loss for weight, loss, _ in found), slope


def slopes(
    reads: Reads, string: One, tokens: Int[Tensor, " tokens"], loss_of: Callable[[Free], Tensor]
) -> tuple[float, Float[Tensor, "n tokens"]]:
    """A loss, and its slope by one-hot entries through the embeddings of the string.

    Raises:
        NotMeasured: a loss or a slope that is not finite.
    """
    with torch.enable_grad():
        free = reads.free(string)
        loss = loss_of(free)
        (slope,) = torch.autograd.grad(loss, free.embeddings)
    found = slope_by_token(slope, reads.target.model.get_input_embeddings(), tokens.to(reads.target.device))
    if not (bool(torch.isfinite(loss)) and bool(torch.isfinite(found).all())):
        raise NotMeasured("the attack could not go on: its loss or its slope is not finite")
    return float(loss.detach()), found


def finite(losses: Float[Tensor, " strings"]) -> Float[Tensor, " strings"]:
    """The losses. Raises NotMeasured for one that is not finite."""
    if not bool(torch.isfinite(losses).all()):
        raise NotMeasured("the loss of a string is NaN or infinite")
    return losses
