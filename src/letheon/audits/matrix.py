"""From scores to cells: a value with its interval, the distance to the control with its bounds, what was regained.

    d = score(model) - score(control under the same condition)          bounds one-sided, each at level / m
    retained = d / (original - control)        regained = (this condition - as is) / (original - as is)
Neither ratio is clipped; both are absent where the denominator is within two standard errors of 0.
All intervals resample units, not items.

What cannot see must not acquit. A control that knows, a template that no answer fits, facts that nobody learned: a
model that still knows everything would pass. So a required cell is "clear" only where the original (under conditions
that may silence a model that knows, such as other wordings: the original under the same) is certainly more than the
margin above the control, in that very column and under that very condition, and otherwise "blind". Certainly
means at the protocol's level: each cell must see by itself, so a blind one is passed over with at most that probability
however many cells there are, and the level is not shared (an intersection-union test). Likewise a utility that the
original has not certainly more of than its margin cannot fall below it.

Source: this project.  Checked against: recomputation from a saved audit, scripted scores with known bounds, a control
that is the original, an original that knows nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from letheon.audits.columns import Column, Scores
from letheon.audits.protocol import Protocol, RequiredCells
from letheon.errors import NotMeasured
from letheon.numerics.intervals import (
    bounds_of_auc,
    bounds_of_auc_difference,
    bounds_of_mean,
    bounds_of_mean_difference,
)

Answer = Scores | NotMeasured
Table = Mapping[str, Mapping[str, Answer]]
"""condition -> column -> scores, or why there are none."""
SHOWN_LEVEL = 0.025
"""Each end of the interval that is printed: 95 % two-sided."""


@dataclass(frozen=True)
class Sources:
    """The three tables a matrix is made of. `control` may answer other items than the subject (see `is_paired`)."""

    subject: Table
    control: Table
    original: Table
    is_paired: bool
    """The control was asked the same items: a retrained reference or look-alike questions."""

    def original_at(self, condition: str) -> str:
        """Under which condition the original shows what can be seen: in other words the same ones, else as it is."""
        return condition if condition in self.original else "as_is"


def required_cells(
    protocol: Protocol, columns: Mapping[str, Column], not_applicable: Mapping[tuple[str, str], str]
) -> int:
    """m: how many cells the verdict rests on, those that can only convict among them."""
    return sum(1 for cell in (*protocol.cells, *protocol.convicts) if cell not in not_applicable and cell[1] in columns)


def make_cells(
    sources: Sources,
    columns: Mapping[str, Column],
    protocol: Protocol,
    not_applicable: Mapping[tuple[str, str], str],
    *,
    seed: int,
    resamples: int,
) -> list[dict[str, Any]]:
    """One cell for each condition and column, in order."""
    level = protocol.level / max(1, required_cells(protocol, columns, not_applicable))
    convicts = set(protocol.convicts)
    cells: list[dict[str, Any]] = []
    for condition in sources.subject:
        for name, column in columns.items():
            cell: dict[str, Any] = {"condition": condition, "column": name}
            rule = protocol.cells.get((condition, name))
            if (condition, name) in not_applicable:
                cell.update(status="not applicable", reason=not_applicable[condition, name], required=False)
            else:
                cell.update(_cell(sources, condition, name, column, rule, level=level, seed=seed, resamples=resamples))
            if (condition, name) in convicts and cell["status"] != "not applicable":
                cell["convicts"] = True
                if "d_lower" not in cell:  # a value without its control shows nothing
                    cell["status"] = "not measured"
                elif cell["d_lower"] > 0:
                    cell["judgement"] = "knowledge found"
            elif "judgement" in cell and protocol.acquit == "each":
                cell["within"] = list(
                    _bounds(sources, condition, name, column, level=protocol.level, seed=seed, resamples=resamples)
                )
                cell["judgement"] = judge(cell)
            if cell.get("judgement") == "clear" and not can_see(
                sources, condition, name, column, cell["margin"], level=protocol.level, seed=seed, resamples=resamples
            ):
                cell["judgement"] = "blind"
            cells.append(cell)
    return cells


def can_see(
    sources: Sources,
    condition: str,
    name: str,
    column: Column,
    margin: float,
    *,
    level: float,
    seed: int,
    resamples: int,
) -> bool:
    """Whether the original is certainly more than the margin above the control under this condition.

    The original as it is, unless it was asked under this very condition as well: a question in words that keep
    everybody from answering shows nothing.
    """
    try:
        original = _found(sources.original, sources.original_at(condition), name)
        control = _found(sources.control, condition, name)
        lower, _ = difference_bounds(
            original, control, column, is_paired=sources.is_paired, level=level, seed=seed, resamples=resamples
        )
    except NotMeasured:
        return False
    return lower > margin


def _bounds(
    sources: Sources, condition: str, name: str, column: Column, *, level: float, seed: int, resamples: int
) -> tuple[float, float]:
    """Of d, at another level than the one by which a cell convicts."""
    scores, control = _found(sources.subject, condition, name), _found(sources.control, condition, name)
    return difference_bounds(
        scores, control, column, is_paired=sources.is_paired, level=level, seed=seed, resamples=resamples
    )


def _cell(
    sources: Sources,
    condition: str,
    name: str,
    column: Column,
    rule: RequiredCells | None,
    *,
    level: float,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    cell: dict[str, Any] = {"required": rule is not None}
    try:
        scores = _found(sources.subject, condition, name)
        cell.update(_value(scores, column, seed=seed, resamples=resamples))
    except NotMeasured as reason:
        return {**cell, "status": "not measured", "reason": str(reason)}
    cell["status"] = "measured"
    original = sources.original.get("as_is", {}).get(name)
    cell["original"] = original.aggregate(column.aggregate) if isinstance(original, Scores) else None
    if rule is not None:
        cell.update(margin=rule.margin, side=rule.side)
    if column.about == "utility":
        return cell
    try:
        control = _found(sources.control, condition, name)
        cell["control"] = 0.5 if control is HALF else control.aggregate(column.aggregate)
        cell["d"] = cell["value"] - cell["control"]
        cell["d_lower"], cell["d_upper"] = difference_bounds(
            scores, control, column, is_paired=sources.is_paired, level=level, seed=seed, resamples=resamples
        )
    except NotMeasured as reason:
        if rule is not None:
            return {**cell, "status": "not measured", "reason": f"control: {reason}"}
        return {**cell, "reason": f"control: {reason}"}
    cell["retained"] = _ratio(cell["d"], original, control, column)
    as_is = sources.subject.get("as_is", {}).get(name)
    if condition != "as_is" and isinstance(as_is, Scores):
        gained = cell["value"] - as_is.aggregate(column.aggregate)
        cell["regained"] = _ratio(gained, original, as_is, column)
    if rule is not None:
        cell["judgement"] = judge(cell)
    return cell


HALF = Scores((), (), ())
"""Stands for a control whose AUC is 0.5 by construction: strangers against strangers."""


def _found(table: Table, condition: str, name: str) -> Scores:
    answer = table.get(condition, {}).get(name)
    if answer is None:
        raise NotMeasured("was not asked")
    if isinstance(answer, NotMeasured):
        raise answer
    return answer


def _value(scores: Scores, column: Column, *, seed: int, resamples: int) -> dict[str, Any]:
    """Value, 95 % interval, and how many it rests on."""
    if column.aggregate == "auc":
        lower, upper = bounds_of_auc(
            scores.values, _codes(scores), scores.member or (), level=SHOWN_LEVEL, seed=seed, resamples=resamples
        )
    else:
        is_rate = column.aggregate == "mean"
        lower, upper = bounds_of_mean(
            scores.values, _codes(scores), level=SHOWN_LEVEL, seed=seed, resamples=resamples, is_rate=is_rate
        )
        if column.aggregate == "exp_mean":
            lower, upper = float(np.exp(lower)), float(np.exp(upper))
    return {
        "n_items": len(scores.values),
        "n_units": scores.n_units,
        "value": scores.aggregate(column.aggregate),
        "lower": lower,
        "upper": upper,
    }


def difference_bounds(
    subject: Scores, control: Scores, column: Column, *, is_paired: bool, level: float, seed: int, resamples: int
) -> tuple[float, float]:
    """One-sided bounds of subject - control, each at `level`."""
    if control is HALF:
        members = subject.member or ()
        return bounds_of_auc_difference(
            subject.values, _codes(subject), members, 0.5, paired=False, level=level, seed=seed, resamples=resamples
        )
    # One numbering for both sides, so that equal people are drawn alike. Sides about different people are not pairs.
    known: dict[str, int] = {}
    units_a, units_b = _codes(subject, known), _codes(control, known)
    paired = is_paired and _by_side(subject) == _by_side(control)
    if column.aggregate == "auc":
        return bounds_of_auc_difference(
            subject.values, units_a, subject.member or (), control.values, units_b, control.member or (),
            paired=paired, level=level, seed=seed, resamples=resamples,
        )  # fmt: skip
    return bounds_of_mean_difference(
        subject.values, units_a, control.values, units_b,
        paired=paired, level=level, seed=seed, resamples=resamples, is_rate=column.aggregate == "mean",
    )  # fmt: skip


def _by_side(scores: Scores) -> set[tuple[int, str]]:
    """The units of members and of strangers."""
    return set(zip(scores.member or [1] * len(scores.units), scores.units, strict=True))


def judge(cell: Mapping[str, Any]) -> str:
    """What a required, measured cell says.

    knowledge found   the lower bound of d is above 0
    over-forgotten    (either side) the upper bound of d is below 0: forgotten items stand out as too unfamiliar
    clear             d is within the margin with certainty (or "blind", where nothing could have been seen), by the
                      bounds "within" where the protocol acquits each cell by itself
    open              neither
    """
    is_two_sided = cell["side"] == "either"
    if cell["d_lower"] > 0:
        return "knowledge found"
    if is_two_sided and cell["d_upper"] < 0:
        return "over-forgotten"
    lower, upper = cell.get("within", (cell["d_lower"], cell["d_upper"]))
    is_below = upper < cell["margin"]
    is_above = not is_two_sided or lower > -cell["margin"]
    return "clear" if is_below and is_above else "open"


def utility_rows(
    subject: Table, original: Table, columns: Mapping[str, Column], protocol: Protocol, *, seed: int, resamples: int
) -> list[dict[str, Any]]:
    """How far each utility fell below the original's, with a 95 % interval: as is, and of the folder that ships."""
    rows: list[dict[str, Any]] = []
    for condition in (name for name in ("as_is", "shipped") if name in subject):
        for name, column in columns.items():
            margin = protocol.margin_of_utility(name)
            if margin is None:
                continue
            row: dict[str, Any] = {"column": name, "condition": condition, "margin": margin}
            try:
                before, after = _found(original, "as_is", name), _found(subject, condition, name)
                row["original"], row["subject"] = before.aggregate(column.aggregate), after.aggregate(column.aggregate)
                row["fall"] = row["original"] - row["subject"]
                row["lower"], row["upper"] = difference_bounds(
                    before, after, column, is_paired=True, level=SHOWN_LEVEL, seed=seed, resamples=resamples
                )
                row["judgement"] = "lost" if row["fall"] > margin else "kept"
                if row["judgement"] == "kept":
                    _require_utility(before, column, margin, seed=seed, resamples=resamples)
            except NotMeasured as reason:
                row.update(judgement="not measured", reason=str(reason))
            rows.append(row)
    return rows


def _require_utility(original: Scores, column: Column, margin: float, *, seed: int, resamples: int) -> None:
    """Raise NotMeasured unless the original has certainly more than could be lost unnoticed."""
    lower, _ = bounds_of_mean(
        original.values, _codes(original), level=SHOWN_LEVEL, seed=seed, resamples=resamples, is_rate=True
    )
    if lower <= margin:
        raise NotMeasured(
            f"the original's own {original.aggregate(column.aggregate):.2f} is not certainly above the margin of "
            f"{margin:.2f}, so a loss could not be seen. Give data that the original answers, or another --template"
        )


def _ratio(part: float, original: Answer | None, base: Scores, column: Column) -> float | None:
    """part / (original - base); None where the denominator is within two standard errors of 0."""
    if not isinstance(original, Scores):
        return None
    whole = original.aggregate(column.aggregate) - (0.5 if base is HALF else base.aggregate(column.aggregate))
    # As if both were independent, which makes it larger.
    error = float(np.hypot(_standard_error(original, column), 0.0 if base is HALF else _standard_error(base, column)))
    return None if abs(whole) <= 2 * error or whole == 0 else part / whole


def _standard_error(scores: Scores, column: Column) -> float:
    """Of a column's number, by units. Of an AUC: sqrt(A (1 - A) / the smaller number of units), its largest value."""
    if column.aggregate == "auc":
        value = scores.aggregate("auc")
        sides = [
            len({unit for unit, side in zip(scores.units, scores.member or (), strict=True) if side == which})
            for which in (0, 1)
        ]
        return float(np.sqrt(value * (1 - value) / min(sides)))
    sums: dict[str, list[float]] = {}
    for unit, value in zip(scores.units, scores.values, strict=True):
        sums.setdefault(unit, []).append(value)
    means = [float(np.mean(values)) for values in sums.values()]
    return float(np.std(means, ddof=1) / np.sqrt(len(means))) if len(means) > 1 else float("inf")


def _codes(scores: Scores, known: dict[str, int] | None = None) -> list[int]:
    """Units as codes, in order of appearance: a file with hashed names gives the same. `known` is filled and used."""
    known = {} if known is None else known
    return [known.setdefault(unit, len(known)) for unit in scores.units]
