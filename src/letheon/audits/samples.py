"""Some prompts with what the models said to them, in words: items.jsonl, for people. It may be purged.

Many of the file as it is and of one rounded model; a few under every other condition under which the protocol lets the
model generate at all, so that no audit takes longer for them. Answers that a reader gives in the model's place are not
the model's words and are not kept.

Source: this project.  Checked against: at most as many of each set as are wanted, spread over it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from letheon.audits.asked import AskedSets
from letheon.audits.scorer import Scorer

CONDITIONS = ("as_is", "int4_row")
"""Conditions of which many answers are kept, whatever the protocol generates."""
SETS = ("forget_held_out", "forget_questions", "retain_questions")
MOST = 60
"""Of each set, under these conditions."""
MOST_A_CELL = 12
"""Of each set, under any other."""


def most_at(condition: str, generated: Mapping[str, Collection[str]], *, parts: int = 0) -> int:
    """How many answers of each set are kept under a condition; 0: none.

    Args:
        condition: a row of the matrix.
        generated: column -> conditions under which the protocol makes it by generation.
        parts: how many the forget set is cut into, each asked by itself; 0: it is not cut.
    """
    if condition in CONDITIONS:
        return MOST
    is_made = any(condition in conditions for conditions in generated.values())
    return max(1, MOST_A_CELL // max(1, parts)) if is_made else 0


def said(
    sets: AskedSets,
    scorer: Scorer,
    *,
    role: str,
    condition: str,
    hashed: Callable[[str], str],
    most: int = MOST,
    among: Collection[str] = (),
) -> list[dict[str, Any]]:
    """One line an item: its id, who was asked under which condition, the prompt, the true answer and the given one.

    Args:
        sets: what may be asked.
        scorer: who is asked.
        role: "subject" or "original".
        condition: the row of the matrix.
        hashed: item -> its id.
        most: of each set, at equal distances.
        among: ids that were asked before, which are asked again where the set has any of them.
    Raises:
        NotMeasured: a prompt that leaves no room for an answer.
    """
    lines: list[dict[str, Any]] = []
    for name in SETS:
        asked = sets[name]
        ids = {item: hashed(asked.items[item]) for item in range(len(asked))} if among else {}
        known = [item for item in range(len(asked)) if ids.get(item) in among]
        chosen = _spread(_spread(known or range(len(asked)), MOST), most)
        for item, given in zip(chosen, scorer.answers(asked, chosen), strict=True):
            lines.append(
                {
                    "id": hashed(asked.items[item]),
                    "role": role,
                    "set": name,
                    "condition": condition,
                    "unit": asked.units[item],
                    "prompt": asked.prompts[item],
                    "answer": asked.answers[item],
                    "given": given,
                }
            )
    return lines


def _spread(items: Sequence[int], most: int) -> Sequence[int]:
    """At most so many, at equal distances."""
    return items[:: -(-len(items) // most) or 1]
