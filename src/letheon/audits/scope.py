"""What of the request was not asked, or not as it stands: sentences for warnings and for the verdict's scope.

Source: this project.  Checked against: texts and prompts longer than the window, texts of unequal lengths, nineteen
and twenty units, one answer for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from statistics import median

from letheon.audits.asked import AskedSets
from letheon.data.encode import Example
from letheon.data.records import DataFile

UNEQUAL = 0.2
"""Share by which median lengths may differ before it is told."""
FEW = 20
"""Units to be forgotten below which it is told how little they show."""
GUESSED = 0.25
"""Share of the questions that one answer is right for, from which it is told."""
_LEVEL = 0.025
_CUT = {
    "forget_texts": ("texts to be forgotten", "first"),
    "forget_questions": ("questions to be forgotten", "last"),
    "forget_held_out": ("other wordings of them", "last"),
}
"""Set -> what it holds, and which part of it is kept."""
_NEEDED = {"retain": "--retain FILE", "holdout": "--holdout FILE", "general": "--general FILE"}
"""Roles without which a cell or utility that the protocol requires cannot be measured."""


def cut_caveats(sets: AskedSets) -> list[str]:
    """What was longer than the context window, and is judged by a part of it."""
    found = []
    for name, (what, kept) in _CUT.items():
        cut = [example for example in sets[name].examples if example.cut]
        if cut:
            window = max(len(example.ids) for example in cut)
            found.append(f"of {len(cut)} long {what} only the {kept} {window} tokens were asked")
    return found


def length_warning(sets: AskedSets) -> str:
    """Where texts to be forgotten and strangers' texts are not alike in length; empty where they are."""
    mine, theirs = (_median_length(sets[f"{role}_texts"].examples) for role in ("forget", "holdout"))
    if not mine or not theirs or abs(mine - theirs) <= UNEQUAL * max(mine, theirs):
        return ""
    return (
        f"half of the forget set's texts have at most {mine:g} tokens, and half of the holdout set's at most "
        f"{theirs:g}: membership may measure their length. Give holdout texts of the same kind and length"
    )


def few_warning(forget: DataFile) -> str:
    """How wide an interval over so few units is at best: exact, where none of them is known. Empty from `FEW` on."""
    count = len(forget.units)
    if count >= FEW:
        return ""
    return (
        f"{forget.role} set: {count} units, fewer than {FEW}, and intervals are over units: with none of them known, "
        f"the 95 % interval still reaches {1 - _LEVEL ** (1 / count):.2f}. Give more units, or read no small number"
    )


def guess_warning(forget: DataFile) -> str:
    """Where one answer is right for many questions. It is not named: a record keeps no raw text."""
    answers = Counter(record.answer.strip().casefold() for record in forget.questions)
    if not answers or len(forget.questions) < 2:
        return ""
    share = answers.most_common(1)[0][1] / answers.total()
    if share < GUESSED:
        return ""
    return (
        f"{forget.role} set: one answer is right for {share:.0%} of the questions, so that whoever always gives it "
        "scores as much and knows nobody. The control may give it too; ask about facts with more different answers"
    )


def open_warning(roles: Collection[str]) -> str:
    """Which sets are missing for a verdict of DELETED; empty when none is."""
    missing = [option for role, option in _NEEDED.items() if role not in roles]
    if not missing:
        return ""
    return f"without {' and '.join(missing)} not all that is required can be measured, so the verdict cannot be DELETED"


def _median_length(examples: Sequence[Example]) -> float:
    """Tokens, those that did not fit included; 0 without any text."""
    return float(median(len(example.ids) + example.cut for example in examples)) if examples else 0.0
