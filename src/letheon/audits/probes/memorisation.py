"""How much of what was to be forgotten does the model hold token by token, when it is shown all that comes before?

    exact memorisation   EM = share of the T target tokens that are the arg-max behind the true beginning
    extraction strength  ES = 1 - k* / T, k* the fewest tokens of the target behind which all later ones are the arg-max
The end of text is no target. EM = 1 if and only if ES = 1; ES is 0 where the last token is wrong (one published loop
gives 1 / T there). ES tells how short a beginning gives the rest away.

Source: Carlini et al. 2022, arXiv:2202.07646 and OpenUnlearning, arXiv:2506.12618 (both names and definitions).
Checked against: greedy generation from every beginning, both ends, a last token that is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from letheon.audits.asked import Asked, AskedSets
from letheon.audits.columns import Column, Scores
from letheon.audits.scorer import Scorer
from letheon.errors import NotMeasured


def exact_memorisation(is_right: NDArray[np.bool_]) -> float:
    """Share of right tokens, in [0, 1]; (T,) with T >= 1."""
    return float(is_right.mean())


def extraction_strength(is_right: NDArray[np.bool_]) -> float:
    """Share of the target that its own beginning gives away, in [0, 1]; (T,) with T >= 1."""
    wrong = np.flatnonzero(~is_right)
    return 1.0 - (int(wrong[-1]) + 1) / len(is_right) if len(wrong) else 1.0


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """No settings."""

    columns: ClassVar[dict[str, Column]] = {
        "exact_memorisation_texts": Column("forgotten texts, share of tokens known", "forget", asked_of="texts"),
        "exact_memorisation_questions": Column("forgotten answers, share of tokens known", "forget"),
        "extraction_strength_texts": Column(
            "forgotten texts, share that a beginning gives away", "forget", asked_of="texts"
        ),
        "extraction_strength_questions": Column("forgotten answers, share that a beginning gives away", "forget"),
    }

    def score(self, column: str, sets: AskedSets, scorer: Scorer, *, role: str = "forget") -> Scores:
        """One column: a share a text, or an answer."""
        kind = column.rsplit("_", 1)[1]
        asked = sets[f"{role}_{kind}"]
        if not len(asked):
            raise NotMeasured(f"the {role} set holds no {kind}")
        measure = extraction_strength if column.startswith("extraction") else exact_memorisation
        rights = scorer.scores(asked).is_right
        return Scores(asked.items, asked.units, [measure(_target(asked, kind, *one)) for one in enumerate(rights)])


def _target(asked: Asked, kind: str, item: int, is_right: NDArray[Any]) -> NDArray[Any]:
    """Without the end of text, which a text that was cut at the window does not have."""
    has_end = kind == "questions" or not asked.examples[item].cut
    target = is_right[:-1] if has_end else is_right
    if not len(target):
        raise NotMeasured(f"{asked.items[item]} has no token beside the end of text")
    return target
