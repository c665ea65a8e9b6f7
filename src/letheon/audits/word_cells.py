"""Numbers of what a model said in words: the answer stands in it, how much of it is recalled, leaks in many samples.

    accuracy          share of greedy answers that give the answer away          rouge_l_recall   mean, greedy
    leak@k            mean of 1 - C(n - c, k) / C(n, k), c of n samples that give it away
Each with bounds over units, and for the forgotten the bounds of its difference from the control.

Source: leak@k, arXiv:2511.04934; TOFU arXiv:2401.06121 (ROUGE-L recall).
Checked against: scripted answers whose every number is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from letheon.audits.answers import Answers
from letheon.audits.asked_in_words import Item, Plan
from letheon.audits.control import Control
from letheon.audits.matching import gives_away
from letheon.errors import NotMeasured
from letheon.numerics.intervals import bounds_of_mean, bounds_of_mean_difference
from letheon.numerics.leaks import sampled_leak
from letheon.numerics.scores import rouge_l


@dataclass(frozen=True)
class Cell:
    """One number; `reason` says why there is none."""

    column: str
    role: str
    temperature: float
    items: int
    units: int
    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    control: float | None = None
    difference_lower: float | None = None
    """Bounds of value - control."""
    difference_upper: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Values:
    """One value an item, by role."""

    of: dict[str, list[tuple[str, float]]] = field(default_factory=dict)

    def add(self, item: Item, value: float) -> None:
        self.of.setdefault(item.role, []).append((item.unit, value))


def greedy_cells(items: Sequence[Item], answers: Answers, control: Control, plan: Plan) -> list[Cell]:
    """Accuracy and ROUGE-L recall of one answer at temperature 0, by role."""
    right, recalled = _Values(), _Values()
    for item in items:
        (text,) = answers.to(item.prompt, n=1, temperature=0.0)
        right.add(item, float(gives_away(text, item.accepted)))
        with suppress(NotMeasured):  # an answer in another script: ROUGE-L has no words of it
            recalled.add(item, rouge_l(item.answer, text).recall)
    unread = [role for role in right.of if role not in recalled.of]
    return [
        *_cells("accuracy", right, control, plan, temperature=0.0),
        *_cells("rouge_l_recall", recalled, control, plan, temperature=0.0),
        *(
            Cell("rouge_l_recall", role, 0.0, 0, 0, reason="the answers hold none of its letters a-z")
            for role in unread
        ),
    ]


def sampled_cells(items: Sequence[Item], answers: Answers, control: Control, plan: Plan) -> list[Cell]:
    """leak@k at each temperature."""
    cells: list[Cell] = []
    for temperature in plan.temperatures if plan.samples else ():
        hits = []
        for item in items:
            texts = answers.to(item.prompt, n=plan.samples, temperature=temperature)
            hits.append((item, sum(gives_away(text, item.accepted) for text in texts)))
        for k in plan.leaks:
            values = _Values()
            for item, count in hits:
                values.add(item, sampled_leak(count, plan.samples, k))
            cells += _cells(f"leak@{k}", values, control, plan, temperature=temperature)
    return cells


def _cells(column: str, values: _Values, control: Control, plan: Plan, *, temperature: float) -> list[Cell]:
    return [
        _cell(column, role, values, control, plan, temperature)
        for role in ("forget", "retain", "general", "holdout", "lookalike")
        if role in values.of
    ]


def _cell(column: str, role: str, values: _Values, control: Control, plan: Plan, temperature: float) -> Cell:
    units, numbers = zip(*values.of[role], strict=True)
    cell = Cell(column, role, temperature, len(numbers), len(set(units)), sum(numbers) / len(numbers))
    try:
        lower, upper = bounds_of_mean(numbers, units, **_bounds(plan))
        cell = replace(cell, lower=lower, upper=upper)
        if role != "forget":
            return cell
        if control.kind not in values.of:
            return replace(cell, reason=f"no control: {control.sentence}")
        others, theirs = zip(*values.of[control.kind], strict=True)
        least, most = bounds_of_mean_difference(
            numbers, units, theirs, others, paired=set(units) == set(others), **_bounds(plan)
        )
    except NotMeasured as reason:
        return replace(cell, reason=f"no bounds: {reason}")
    return replace(cell, control=sum(theirs) / len(theirs), difference_lower=least, difference_upper=most)


def _bounds(plan: Plan) -> dict[str, Any]:
    return {"level": plan.level, "seed": plan.seed, "resamples": plan.resamples}
