"""How often do answers drawn at random give the forgotten fact away, at several temperatures?

    c of n answers hold the answer's words        leak@1 = c / n        leak@k = 1 - C(n - c, k) / C(n, k), mean
at temperature 0.2, 0.8, 1.0, each with all tokens (top-p 1.0) and with the likeliest of mass 0.9. Greedy decoding sees
the first choice alone. The exact probability of the answer (`sequence_probability`) sees the model as it is, and one
spelling; this sees whatever a user's settings bring out, in any sentence, and nothing below about one in n.
Nothing found is not nothing there: see the upper bound. A control guesses as well, the more often the larger k is.

Source: leak@k, arXiv:2511.04934 (n = 200; by entailment, here the answer's words); Chen et al. 2021, arXiv:2107.03374.
Checked against: the exact probability within three sigma, greedy answers as the temperature goes to 0, scripts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from letheon.audits.asked import Asked, AskedSets
from letheon.audits.columns import Column, Scores
from letheon.audits.matching import accepted, gives_away
from letheon.audits.sampler import Sampling as Drawing
from letheon.audits.scorer import Scorer
from letheon.errors import NotMeasured, require
from letheon.numerics.leaks import sampled_leak

GRID = {
    f"t{temperature:g}_p{top_p:g}".replace(".", ""): (temperature, top_p)
    for temperature in (0.2, 0.8, 1.0)
    for top_p in (0.9, 1.0)
}
"""In a column's name -> (temperature, top-p): those of the paper."""
KS = (1, 16)
"""Numbers of answers of which one is enough."""


def _column(temperature: float, top_p: float, k: int) -> Column:
    answers = f"one of {k} answers" if k > 1 else "one answer"
    return Column(f"chance that {answers} drawn at temperature {temperature}, top-p {top_p} leaks", "forget")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the probe."""

    samples: int = 16
    """n, answers to each question in each setting, >= 16. The paper: 200."""
    seed: int = 0
    """Of the draws, >= 0."""

    columns: ClassVar[dict[str, Column]] = {
        f"forget_sampled_{name}_at_{k}": _column(*GRID[name], k) for name in GRID for k in KS
    }

    def __post_init__(self) -> None:
        require(self.samples >= max(KS), f"sampling needs samples >= {max(KS)}, got {self.samples}")
        require(self.seed >= 0, f"sampling needs a seed >= 0, got {self.seed}")

    def score(self, column: str, sets: AskedSets, scorer: Scorer, *, role: str = "forget") -> Scores:
        """leak@k of each question in its trained wordings."""
        asked = sets[f"{role}_questions"]
        if not len(asked):
            raise NotMeasured(f"the {role} set holds no questions")
        name, k = column.removeprefix("forget_sampled_").split("_at_")
        temperature, top_p = GRID[name]
        drawing = Drawing(self.samples, temperature, top_p, self.seed)
        leaks = []
        for at, texts in enumerate(scorer.samples(asked, drawing)):
            right = _accepted(asked, at)
            leaks.append(sampled_leak(sum(gives_away(text, right) for text in texts), self.samples, int(k)))
        return Scores(asked.items, asked.units, leaks)


def _accepted(asked: Asked, at: int) -> tuple[str, ...]:
    """What gives an item away: its answer, which other words or another name may have made another one."""
    if not asked.records:
        return (asked.answers[at],)
    return accepted(replace(asked.records[at], answer=asked.answers[at]))
