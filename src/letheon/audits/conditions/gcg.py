"""One string of words behind every question, found on half of what was to be forgotten; the other half is asked.

    s <- the likeliest answers of V over B strings that differ from s in one token
    the token: of the k with the steepest -d loss / d one-hot at its place       loss: mean -log p of V's answer tokens
Greedy coordinate gradient. The string is for everybody in V, so what it brings out about T it does not hold; the
control is asked with the string that is found for it on the same V. Only strings that can be typed are kept: T is asked
in words, with the best string so far. With a buffer the search goes on from the best strings that it has, without one
from the best of the last step, even if that is worse.

Source: Zou et al. 2023, arXiv:2307.15043 (20 tokens, 250 steps, B 512, k 256, no buffer); for unlearning Lucki et al.
2024, arXiv:2409.18025.  Checked against: central differences, all tokens one by one, a trigger that was planted, the
search without a shared beginning, the score of the typed words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from letheon.audits.attacker import Attacker, Solved, Target
from letheon.audits.rewording import Beside
from letheon.audits.string_losses import StringLosses
from letheon.audits.strings import Strings, Tokens
from letheon.data.encode import Encoder
from letheon.data.sampling import sample
from letheon.errors import NotMeasured, require


@dataclass(frozen=True, kw_only=True)
class Gcg:
    """Settings of the attacker."""

    tokens: int = 20
    """n, length of the string, >= 1."""
    steps: tuple[int, ...] = (100,)
    """Steps after which T is asked, each >= 0: a row of the matrix for each. 0: no string, the question as it is."""
    candidates: int = 64
    """B, strings looked at in a step, >= 1."""
    top_k: int = 64
    """k, tokens that may be put at a place, >= 1."""
    questions: int = 16
    """Questions of V that the string is for, of as many units as there are, >= 1."""
    buffer: int = 0
    """Best strings kept to go on from, >= 0; 0: none."""
    place: Literal["suffix", "prefix"] = "suffix"
    """Behind the question or before it."""
    cache: bool = True
    """Read once what the strings of a step have in common; the losses are the same."""
    seed: int = 0
    """Of the first string and of all draws."""

    along: ClassVar[str] = "steps"
    may_silence: ClassVar[bool] = True
    folds: ClassVar[int] = 2

    def __post_init__(self) -> None:
        usable = len(self.steps) > 0 and min(self.steps) >= 0 and len(set(self.steps)) == len(self.steps)
        require(usable, f"gcg needs different steps >= 0, got {list(self.steps)}")
        for name in ("tokens", "candidates", "top_k", "questions"):
            require(getattr(self, name) >= 1, f"gcg needs {name} >= 1, got {getattr(self, name)}")
        for name in ("buffer", "seed"):
            require(getattr(self, name) >= 0, f"gcg needs {name} >= 0, got {getattr(self, name)}")

    @property
    def label(self) -> str:
        """The row's name for readers."""
        return f"{self.tokens} words {self._where}, {'/'.join(map(str, sorted(self.steps)))} steps"

    @property
    def provenance(self) -> str:
        """One line for the report."""
        after = ", ".join(map(str, sorted(self.steps)))
        return (
            f"one string of {self.tokens} tokens {self._where}, searched by its gradient for {after} steps "
            f"({self.candidates} strings a step, of the {self.top_k} steepest tokens, buffer {self.buffer}) on "
            f"{self.questions} questions about one half of the people to be forgotten, asked about the other; both "
            "ways round; weights as they are"
        )

    @property
    def _where(self) -> str:
        return "behind every question" if self.place == "suffix" else "before every question"

    def walk(self, target: Target, attacker: Attacker, then: Callable[..., None]) -> None:
        """Search on what the attacker learns, and call `then(k, rewording=...)` with the best string after k steps.

        Raises:
            NotMeasured: no question that leaves room, no string that can be typed, or a loss that is NaN.
        """
        chosen = self.chosen(attacker, target.encoder)
        strings = Strings(target.encoder, chosen, self.place, self.tokens, seed=self.seed)
        search = Search(self, strings, StringLosses(target, strings.slots, shares=self.cache))
        for step in range(max(self.steps) + 1):
            if step > 0:
                search.step()
            if step in self.steps and step == 0:
                then(0)
            elif step in self.steps:
                then(step, rewording=Beside(strings.text(search.best), self.place))

    def chosen(self, attacker: Attacker, encoder: Encoder) -> list[tuple[str, str]]:
        """The questions of V that the string is for, in words: one of each unit first."""
        asked = [one for one in attacker.solved("learned") if self._fits(one, encoder)]
        if not asked:
            raise NotMeasured(
                f"no learned question leaves room for {self.tokens} tokens in a window of {encoder.max_length}"
            )
        names = [f"{self.seed}/{number}" for number in range(len(asked))]
        places = sample([one.unit for one in asked], names, self.questions)
        return [(asked[place].prompt, asked[place].answer) for place in places]

    def _fits(self, one: Solved, encoder: Encoder) -> bool:
        example = encoder.question(one.prompt, one.answer)
        # One more than the string: a space may be a token.
        return not example.cut and len(example.ids) + self.tokens < encoder.max_length


@dataclass
class Search:
    """The strings found so far."""

    settings: Gcg
    strings: Strings
    losses: StringLosses
    kept: list[tuple[float, Tokens]] = field(default_factory=list)
    """(loss, string), the best first: where the next step begins."""
    best_loss: float = float("inf")
    best: Tokens = ()

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.settings.seed)
        first = self.strings.first
        self._keep(float(self.losses.of(torch.tensor([first]))[0]), first)

    def step(self) -> None:
        """Look at B strings near the one that is kept, and keep the best."""
        current = torch.tensor(self.kept[0][1])
        _, slope = self.losses.gradient(current, self.strings.allowed)
        near = self._near(current, slope.cpu())
        if not len(near):
            return  # nothing that could be typed was drawn: the next draw is another
        found = self.losses.of(near, current)
        for place in found.argsort(stable=True).tolist():
            tokens = tuple(near[place].tolist())
            if self.strings.can_be_typed(tokens):
                self._keep(float(found[place]), tokens)
                return

    def _near(self, current: Tensor, slope: Tensor) -> Tensor:
        """At most B strings that differ in one token and can be typed, (strings, n)."""
        steepest = (-slope).topk(min(self.settings.top_k, slope.shape[1]), dim=1).indices
        wanted = 2 * self.settings.candidates  # half of them may fall to the filter
        places = torch.randint(len(current), (wanted,), generator=self.random)
        ranks = torch.randint(steepest.shape[1], (wanted,), generator=self.random)
        tokens = self.strings.allowed[steepest[places, ranks]]
        drawn = dict.fromkeys(zip(places.tolist(), tokens.tolist(), strict=True))
        strings = [
            [*current[:place].tolist(), token, *current[place + 1 :].tolist()]
            for place, token in drawn
            if token != int(current[place])
        ]
        if not strings:
            return current[:0].reshape(0, len(current))
        near = torch.tensor(strings)
        return near[self.strings.surviving(near)][: self.settings.candidates]

    def _keep(self, loss: float, tokens: Tokens) -> None:
        if loss < self.best_loss:
            self.best_loss, self.best = loss, tokens
        if self.settings.buffer == 0:
            self.kept = [(loss, tokens)]
        elif tokens not in (one for _, one in self.kept):
            self.kept = sorted([*self.kept, (loss, tokens)])[: self.settings.buffer]
