"""Some prompts with what the models said to them, in words: items.jsonl, for people. It may be purged.

Source: this project.  Checked against: at most as many of each set as are wanted, spread over it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from letheon.audits.asked import AskedSets
from letheon.audits.scorer import Scorer

CONDITIONS = ("as_is", "int4_row")
"""Conditions whose answers are kept."""
SETS = ("forget_held_out", "forget_questions", "retain_questions")
MOST = 60
"""Of each set."""


def said(
    sets: AskedSets, scorer: Scorer, *, role: str, condition: str, hashed: Callable[[str], str], most: int = MOST
) -> list[dict[str, Any]]:
    """One line an item: its id, who was asked under which condition, the prompt, the true answer and the given one.

    Raises:
        NotMeasured: a prompt that leaves no room for an answer.
    """
    lines: list[dict[str, Any]] = []
    for name in SETS:
        asked = sets[name]
        chosen = range(0, len(asked), -(-len(asked) // most) or 1)
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
