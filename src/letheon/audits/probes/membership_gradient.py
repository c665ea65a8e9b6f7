"""Membership by the size of the gradient: a text that was learned pulls at the weights no more.

    familiarity = - mean over the weights' tensors of || d L / d tensor ||_2, L the mean token loss of the text
    AUC = P(a forget text is more familiar than a holdout text) + ties / 2: 1 is memorised
A backward pass a text, which is why it is a probe of its own: naming it is asking for it. A packed file has no weights
to take a gradient of, and is not measured.

Source: OpenUnlearning, arXiv:2506.12618.  Checked against: finite differences, a model that has learned its texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from letheon.audits.asked import AskedSets
from letheon.audits.columns import Column, Scores
from letheon.audits.scorer import Scorer
from letheon.errors import NotMeasured


@dataclass(frozen=True, kw_only=True)
class MembershipGradient:
    """No settings."""

    columns: ClassVar[dict[str, Column]] = {
        "membership_gradient": Column(
            "membership by texts, size of the gradient (AUC)", "membership", "auc", "control", asked_of="texts"
        )
    }

    def score(self, column: str, sets: AskedSets, scorer: Scorer, *, role: str = "forget") -> Scores:
        """Familiarity of forget texts (member 1) and strangers' texts (member 0)."""
        members, others = sets[f"{role}_texts"], sets["holdout_texts"]
        if not len(members) or not len(others):
            raise NotMeasured(
                "needs a holdout set (--holdout) and a forget set with texts; "
                f"found {len(others)} and {len(members)} of them"
            )
        norms = [*scorer.gradient_norms(members), *scorer.gradient_norms(others)]
        return Scores(
            (*members.items, *others.items),
            (*members.units, *others.units),
            [-float(norm) for norm in norms],
            [1] * len(members) + [0] * len(others),
        )
