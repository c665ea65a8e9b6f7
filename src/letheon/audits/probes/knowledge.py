"""Does the model still answer? Exact answers, probability and ROUGE-L recall, trained and held-out wordings apart.

    accuracy     every answer token and the end of text are the arg-max (equals the exact match of the greedy answer)
    probability  exp(mean log p(answer token)), the length-normalised probability, in (0, 1]
    rouge        ROUGE-L recall of the greedy answer against the true one, no stemmer
A held-out wording measures the fact; a trained one may only measure the string.

Source: TOFU arXiv:2401.06121 (probability, ROUGE recall).  Checked against: greedy generation, a uniform model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from letheon.audits.asked import AskedSets
from letheon.audits.columns import Column, Scores
from letheon.audits.scorer import Scorer, exact_answers
from letheon.numerics.scores import rouge_l


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """No settings."""

    columns: ClassVar[dict[str, Column]] = {
        "forget_accuracy": Column("forgotten facts, trained wordings", "forget"),
        "forget_accuracy_held_out": Column("forgotten facts, other wordings", "forget"),
        "forget_probability": Column("probability of forgotten answers", "forget"),
        "forget_rouge": Column("ROUGE-L recall of forgotten answers, other wordings", "forget"),
    }

    def score(self, column: str, sets: AskedSets, scorer: Scorer, *, role: str = "forget") -> Scores:
        """One column. `role` is the set to ask: the control may ask another one."""
        if column == "forget_accuracy":
            return exact_answers(sets[f"{role}_questions"], scorer)
        if column == "forget_accuracy_held_out":
            return exact_answers(sets[f"{role}_held_out"], scorer)
        if column == "forget_probability":
            asked = sets[f"{role}_questions"]
            return Scores(asked.items, asked.units, np.exp(scorer.scores(asked).log_probs("mean")).tolist())
        asked = sets[f"{role}_held_out"] if len(sets[f"{role}_held_out"]) else sets[f"{role}_questions"]
        recalls = [
            rouge_l(answer, given).recall for answer, given in zip(asked.answers, scorer.answers(asked), strict=True)
        ]
        return Scores(asked.items, asked.units, recalls)
