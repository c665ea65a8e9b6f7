"""Does the model still find wrong answers less likely than the right one?

    R = P(wrong) / P(right), P(a) = exp(mean log p(token of a)), over the wrong answers of a question:
    geometric    R_g = exp(mean log P(wrong)) / P(right)       arithmetic    R_a = mean P(wrong) / P(right)
    forget       mean min(R, 1 / R)          1: right and wrong are equally likely, as to one who never knew
    elsewhere    mean max(0, 1 - R)          1: wrong answers have no chance
R_g <= R_a (Jensen). Published tables call both "truth ratio"; here each has its name. For the forget set a high value
is forgetting, so it can be no required cell ("more than the control" would convict who knows less). A model that is
sure of a wrong answer has a low value as well: read it beside the accuracy.
Asked are wordings that were never trained on where a record has some (TOFU rephrases the answer instead), with the
end of text counted among the tokens.

Source: TOFU, arXiv:2401.06121 (R_a in its formula, R_g in its leaderboard).
Checked against: a uniform model (R = 1), Jensen's inequality, ratios by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from letheon.audits.asked import AskedSets
from letheon.audits.columns import Column, Scores
from letheon.audits.offered import by_question
from letheon.audits.scorer import Scorer
from letheon.errors import NotMeasured


def log_truth_ratio(right: float, wrong: Sequence[float], *, is_geometric: bool) -> float:
    """log R from log P of the right answer and of each wrong one, nats. In logarithms nothing overflows."""
    if is_geometric:
        return float(np.mean(wrong)) - right
    return float(np.logaddexp.reduce(wrong)) - math.log(len(wrong)) - right


def as_forgotten(log_ratio: float) -> float:
    """min(R, 1 / R), in [0, 1]."""
    return math.exp(-abs(log_ratio))


def as_known(log_ratio: float) -> float:
    """max(0, 1 - R), in [0, 1]."""
    return -math.expm1(min(0.0, log_ratio))


def _column(name: str, of: str) -> Column:
    about: Literal["forget", "utility"] = "forget" if of == "forgotten" else "utility"
    label = f"truth ratio of {of}, {name} mean of wrong answers"
    return Column(label, about, better="high", asked_of="wrong answers")


@dataclass(frozen=True, kw_only=True)
class TruthRatio:
    """No settings."""

    columns: ClassVar[dict[str, Column]] = {
        "forget_truth_ratio_geometric": _column("geometric", "forgotten"),
        "forget_truth_ratio_arithmetic": _column("arithmetic", "forgotten"),
        "retain_truth_ratio_geometric": _column("geometric", "retained facts"),
        "retain_truth_ratio_arithmetic": _column("arithmetic", "retained facts"),
        "general_truth_ratio_geometric": _column("geometric", "general knowledge"),
        "general_truth_ratio_arithmetic": _column("arithmetic", "general knowledge"),
    }
    asks: ClassVar[tuple[str, ...]] = ("answers",)

    def score(self, column: str, sets: AskedSets, scorer: Scorer, *, role: str = "forget") -> Scores:
        """One column: a number a question."""
        of = column.split("_")[0]
        asked = sets[f"{role if of == 'forget' else of}_answers"]
        if not len(asked):
            whose = role if of == "forget" else of
            raise NotMeasured(f"no question of the {whose} set has wrong answers ('wrong' or 'choices')")
        log_probs = scorer.scores(asked).log_probs("mean")
        questions = by_question(asked.items, asked.units)
        values = []
        for question in questions:
            right, *wrong = (float(log_probs[position]) for position in question.positions)
            ratio = log_truth_ratio(right, wrong, is_geometric=column.endswith("geometric"))
            values.append(as_forgotten(ratio) if of == "forget" else as_known(ratio))
        return Scores([one.item for one in questions], [one.unit for one in questions], values)
