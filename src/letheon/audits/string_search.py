"""A search for a string: look at some near the one that is kept, keep the best, go on.

    K <- the best strings so far;  s <- the best of K;  C <- strings near s that can be typed, with their losses
    K <- the best of C, among K                     (stays: s is left only for a better one, or where K holds none)
    K <- K without s, and all of C; the best of it  (leaves: each string is gone on from once)
What is asked in the end is the best of all that was seen and can be typed, whatever is in K.

Source: GCG, Zou et al. 2023, arXiv:2307.15043; leaving, Thompson and Sklar 2024, arXiv:2407.17447.
Checked against: the best loss never rises; a step of one token with every token allowed = a look at every string.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from letheon.audits.string_losses import Losses
from letheon.audits.strings import Strings, Tokens


@runtime_checkable
class Manner(Protocol):
    """How a search goes on."""

    @property
    def buffer(self) -> int: ...

    @property
    def seed(self) -> int: ...

    def near(self, search: Search, current: Tokens) -> Sequence[Tokens]:
        """Strings to look at next, all of which can be typed into the first question; none where none was drawn."""
        ...


@dataclass
class Search:
    """The strings found so far."""

    settings: Manner
    strings: Strings
    losses: Losses
    leaves: bool = False
    """Whether a string is gone on from once."""
    first: Tokens = ()
    """The string to begin with; empty: that of `strings`."""
    kept: list[tuple[float, Tokens]] = field(default_factory=list)
    """(loss, string), the best first: where the next step begins."""
    best_loss: float = float("inf")
    best: Tokens = ()

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.settings.seed)
        first = self.first or self.strings.first
        self._keep(float(self.losses.of([first])[0]), first)

    def step(self) -> None:
        """Look at strings near the one that is kept, and keep the best."""
        current = self.kept[0][1]
        near = self.settings.near(self, current)
        if not near:
            return  # nothing that could be typed was drawn: the next draw is another
        found = self.losses.of(near, current)
        if self.leaves:
            self.kept = self.kept[1:]
            for loss, tokens in zip(found.tolist(), near, strict=True):
                self._keep(loss, tokens)
            return
        for place in found.argsort(stable=True).tolist():
            if self.strings.can_be_typed(near[place]):
                self._keep(float(found[place]), near[place])
                return

    def draw(self, below: int, count: int) -> Int[Tensor, " count"]:
        """Numbers from 0 to `below` - 1."""
        return torch.randint(below, (count,), generator=self.random)

    def _keep(self, loss: float, tokens: Tokens) -> None:
        # A string that is left is looked at in the first question alone before, so what is asked is looked at here.
        if loss < self.best_loss and (not self.leaves or self.strings.can_be_typed(tokens)):
            self.best_loss, self.best = loss, tokens
        if self.settings.buffer == 0:
            self.kept = [(loss, tokens)]
        elif tokens not in (one for _, one in self.kept):
            self.kept = sorted([*self.kept, (loss, tokens)])[: self.settings.buffer]


def steepest(slope: Float[Tensor, "n allowed"], count: int) -> Int[Tensor, "n count"]:
    """For each place the columns of the tokens that lower the loss most, by its slope."""
    return (-slope).topk(min(count, slope.shape[1]), dim=1).indices


def swapped_by_slope(search: Search, current: Tokens, top_k: int, count: int) -> list[Tokens]:
    """At most `count` strings with one token in place of another, drawn from the k steepest of drawn places."""
    allowed = search.strings.allowed
    _, slope = search.losses.gradient(current, allowed)
    columns = steepest(slope.cpu(), top_k)
    places, ranks = search.draw(len(current), count), search.draw(columns.shape[1], count)
    return swapped(current, places.tolist(), allowed[columns[places, ranks]].tolist())


def swapped(current: Tokens, places: Sequence[int], tokens: Sequence[int]) -> list[Tokens]:
    """The string with one token in place of another, for each draw; every string once, and none that is the same."""
    drawn = dict.fromkeys(zip(places, tokens, strict=True))
    return [(*current[:at], token, *current[at + 1 :]) for at, token in drawn if token != current[at]]


def inserted(current: Tokens, places: Sequence[int], tokens: Sequence[int]) -> list[Tokens]:
    """The string with one token more, before the one at each place or behind the last; every string once."""
    longer = [(*current[:at], token, *current[at:]) for at, token in zip(places, tokens, strict=True)]
    return list(dict.fromkeys(longer))


def without(current: Tokens, places: Sequence[int]) -> list[Tokens]:
    """The string without one of its tokens; every string once."""
    return list(dict.fromkeys((*current[:at], *current[at + 1 :]) for at in places))


def typed(strings: Strings, near: Sequence[Tokens], most: int) -> list[Tokens]:
    """The first of the strings that can be typed into the first question."""
    if not near:
        return []
    fits = strings.surviving(near).tolist()
    return [tokens for tokens, is_typed in zip(near, fits, strict=True) if is_typed][:most]
