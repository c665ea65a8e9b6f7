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
from dataclasses import dataclass
from typing import ClassVar, Literal

from letheon.audits.attacker import Attacker, Target
from letheon.audits.rewording import Beside
from letheon.audits.string_losses import StringLosses
from letheon.audits.string_search import Search, swapped_by_slope, typed
from letheon.audits.strings import Strings, Tokens, learned_questions
from letheon.data.encode import Encoder
from letheon.errors import require


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
    only_convicts: ClassVar[bool] = True
    """Behind a string that was found for one model another one that knows may be silent: no cell of it can acquit."""
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
        return learned_questions(attacker, encoder, room=self.tokens, count=self.questions, seed=self.seed)

    def near(self, search: Search, current: Tokens) -> list[Tokens]:
        """At most B strings that differ in one token and can be typed."""
        wanted = 2 * self.candidates  # half of them may fall to the filter
        return typed(search.strings, swapped_by_slope(search, current, self.top_k, wanted), self.candidates)
