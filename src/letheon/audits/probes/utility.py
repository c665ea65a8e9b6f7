"""Is the model still useful? Retained facts in trained and other wordings, general knowledge, perplexity of texts.

    accuracy     exact answers, as in the knowledge probe
    perplexity   exp(mean over retained texts of the mean token loss)
A collapsed model has forgotten everything; only these columns tell it from one that has forgotten what it should.

Source: the utility of MUSE, arXiv:2407.06460, with exact match in place of ROUGE.  Checked against: greedy generation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from letheon.audits.asked import AskedSets
from letheon.audits.columns import Column, Scores
from letheon.audits.scorer import Scorer, exact_answers
from letheon.errors import NotMeasured

_SETS = {
    "retain_accuracy": "retain_questions",
    "retain_accuracy_held_out": "retain_held_out",
    "general_accuracy": "general_questions",
    "general_accuracy_held_out": "general_held_out",
}


@dataclass(frozen=True, kw_only=True)
class Utility:
    """No settings."""

    columns: ClassVar[dict[str, Column]] = {
        "retain_accuracy": Column("retained facts, trained wordings", "utility", better="high"),
        "retain_accuracy_held_out": Column("retained facts, other wordings", "utility", better="high"),
        "general_accuracy": Column("general knowledge", "utility", better="high"),
        "general_accuracy_held_out": Column("general knowledge, other wordings", "utility", better="high"),
        "retain_perplexity": Column("perplexity of retained texts", "utility", "exp_mean", top=None),
    }

    def score(self, column: str, sets: AskedSets, scorer: Scorer, *, role: str = "forget") -> Scores:
        """One column."""
        if column == "retain_perplexity":
            texts = sets["retain_texts"]
            if not len(texts):
                raise NotMeasured("the retain set holds no texts")
            return Scores(texts.items, texts.units, (-scorer.scores(texts).log_probs("mean")).tolist())
        asked = sets[_SETS[column]]
        if not len(asked):
            kind = _SETS[column].replace("_", " ").replace("held out", "paraphrases")
            raise NotMeasured(
                f"no {kind} were given" + (" (--general g.jsonl)" if column.startswith("general") else "")
            )
        return exact_answers(asked, scorer)
