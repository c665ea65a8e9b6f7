"""Membership by every familiarity that one pass over the texts gives, each as an AUC beside the others.

    loss, zlib, lower case, Min-K (20 %, 40 %), Min-K++ (20 %, 40 %)         formulas in `numerics.familiarity`
    AUC = P(a forget text is more familiar than a holdout text) + ties / 2
1 is memorised, 0.5 never seen; near 0 is no success but over-unlearned, and gives membership away as 1 does
(`auc_reading`). A model can hide from one score and not from another; the largest distance from the control counts.
The lower case needs a pass of its own. Rates at 1 % and 5 % false positives are `tpr_at_fpr` of the same scores: with
fewer than a hundred strangers they are too coarse for a cell. The difference to a reference needs two models, and a
probe sees one: `reference_familiarity`.

Source: Carlini et al. 2021, arXiv:2012.07805; Min-K: arXiv:2310.16789; Min-K++: arXiv:2404.02936.
Checked against: slow float64 loops, a uniform model (0.5 to the last digit), Min-K of all tokens = the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from letheon.audits.asked import Asked, AskedSets
from letheon.audits.columns import Column, Scores
from letheon.audits.scorer import Scorer
from letheon.errors import NotMeasured
from letheon.numerics.familiarity import lower_case_familiarity, min_k_plus, zlib_familiarity
from letheon.numerics.scores import min_k


def _column(name: str) -> Column:
    return Column(f"membership by texts, {name} (AUC)", "membership", "auc", "control", asked_of="texts")


@dataclass(frozen=True, kw_only=True)
class MembershipScores:
    """No settings."""

    columns: ClassVar[dict[str, Column]] = {
        "membership_loss": _column("loss"),
        "membership_zlib": _column("loss over zlib"),
        "membership_lower_case": _column("loss over that in lower case"),
        "membership_min_k_20": _column("Min-K 20 %"),
        "membership_min_k_40": _column("Min-K 40 %"),
        "membership_min_k_plus_20": _column("Min-K++ 20 %"),
        "membership_min_k_plus_40": _column("Min-K++ 40 %"),
    }
    asks: ClassVar[tuple[str, ...]] = ("lower_case", "moments")

    def score(self, column: str, sets: AskedSets, scorer: Scorer, *, role: str = "forget") -> Scores:
        """Familiarity of forget texts (member 1) and strangers' texts (member 0)."""
        members, others = sets[f"{role}_texts"], sets["holdout_texts"]
        if not len(members) or not len(others):
            raise NotMeasured(
                "needs a holdout set (--holdout) and a forget set with texts; "
                f"found {len(others)} and {len(members)} of them"
            )
        values = [
            value
            for asked, whose in ((members, role), (others, "holdout"))
            for value in self._familiarity(column, asked, sets[f"{whose}_lower_case"], scorer)
        ]
        return Scores(
            (*members.items, *others.items),
            (*members.units, *others.units),
            values,
            [1] * len(members) + [0] * len(others),
        )

    def _familiarity(self, column: str, asked: Asked, lower: Asked, scorer: Scorer) -> list[float]:
        name = column.removeprefix("membership_")
        if name.startswith("min_k"):
            return _lowest(asked, scorer, share=int(name[-2:]) / 100, plus="plus" in name)
        means = [float(value) for value in scorer.scores(asked).log_probs("mean")]
        if name == "zlib":
            return [zlib_familiarity(mean, text) for mean, text in zip(means, _texts(asked, scorer), strict=True)]
        if name == "lower_case":
            of_item = dict(zip(lower.items, scorer.scores(lower).log_probs("mean").tolist(), strict=True))
            if missing := [item for item in asked.items if item not in of_item]:
                raise NotMeasured(f"{len(missing)} of {len(asked)} texts were not asked in lower case")
            return [lower_case_familiarity(mean, of_item[item]) for mean, item in zip(means, asked.items, strict=True)]
        return means


def _lowest(asked: Asked, scorer: Scorer, *, share: float, plus: bool) -> list[float]:
    found = scorer.scores(asked, moments=plus)
    if not plus:
        return [min_k(values, share) for values in found.token_log_probs]
    return [
        min_k_plus(values, pair, share) for values, pair in zip(found.token_log_probs, found.moments or (), strict=True)
    ]


def _texts(asked: Asked, scorer: Scorer) -> Sequence[str]:
    """What was asked of each text: of one that was cut at the window, only the part that was."""
    decode = scorer.encoder.tokenizer.decode
    return [
        str(decode(example.ids[1:])) if example.cut else text
        for example, text in zip(asked.examples, asked.answers, strict=True)
    ]
