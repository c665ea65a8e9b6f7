"""Does the model continue the forgotten texts word by word?

    ROUGE-L F of the greedy continuation of a text's first `prompt_tokens` tokens against its true rest
The floor is not 0: what is common to all texts of the kind can be guessed. Only the distance to the control counts.

Source: VerbMem of MUSE, arXiv:2407.06460 (greedy, no stemmer).  Checked against: equal and empty continuations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from letheon.audits.asked import AskedSets
from letheon.audits.columns import Column, Scores
from letheon.audits.scorer import Scorer
from letheon.errors import NotMeasured, require
from letheon.numerics.scores import rouge_l


@dataclass(frozen=True, kw_only=True)
class Verbatim:
    """Settings of the probe."""

    prompt_tokens: int = 12
    """Tokens of the text that are shown (half the text where it is shorter than twice that)."""
    longest: int = 128
    """Most tokens that are compared."""

    columns: ClassVar[dict[str, Column]] = {
        "verbatim": Column("forgotten texts continued verbatim (ROUGE-L F)", "forget", asked_of="texts")
    }

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "longest"):
            require(getattr(self, name) >= 1, f"verbatim needs {name} of 1 or more, got {getattr(self, name)}")

    def score(self, column: str, sets: AskedSets, scorer: Scorer, *, role: str = "forget") -> Scores:
        """ROUGE-L F a text."""
        asked = sets[f"{role}_texts"]
        if not len(asked):
            raise NotMeasured(f"the {role} set holds no texts")
        prompts, rests = [], []
        for example in asked.examples:
            shown = 1 + min(self.prompt_tokens, (len(example.ids) - 2) // 2)
            prompts.append(example.ids[:shown])
            rests.append([token for token in example.ids[shown : shown + self.longest] if token != scorer.encoder.eos])
        given = scorer.continuations(prompts, [len(rest) for rest in rests], items=asked.items)
        truth = [scorer.encoder.tokenizer.decode(rest, skip_special_tokens=True).strip() for rest in rests]
        values = [rouge_l(true, text).f for true, text in zip(truth, given, strict=True)]
        return Scores(asked.items, asked.units, values)
