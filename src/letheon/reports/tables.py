"""The matrix as rows for the page.

Shade of a cell, 0 to 1, from the same numbers as the verdict:
    about the forget set    d above the control, or (where either side counts) the size of d
    utility                 fall from the original; of a perplexity, log10 of its growth
so a table without colour is that of a model that never knew and lost nothing.

Source: this project.  Checked against: every value and interval of a made-up audit, found again in the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from letheon.reports.groups import in_groups
from letheon.reports.wording import (
    DASH,
    JUDGEMENTS,
    NEARLY_BACK,
    PLAIN,
    Judged,
    codes_in_words,
    heading,
    interval,
    is_number,
    label_of_column,
    label_of_condition,
    name_of,
    number,
)

Audit = Mapping[str, Any]
Cell = Mapping[str, Any]
ABOUT = (
    (
        "forget",
        "Is it gone?",
        "Knowledge of the forget set and its membership in the training data. More colour: further from the control.",
    ),
    (
        "utility",
        "Is the rest still there?",
        "Everything else the model should know. More colour: further below the original.",
    ),
)

LARGE = 12
"""A table of more conditions or probes scrolls under its headings, with the provenance of its rows folded away."""
SPENT = "budget exhausted"
"""How the reason begins where there was no time left to begin a condition."""


@dataclass(frozen=True)
class Shown:
    """One cell as the page shows it."""

    text: str
    interval: str = ""
    judged: Judged = PLAIN
    word: str = ""
    """The judgement in words, for whoever does not see the mark."""
    shade: float = 0.0
    hue: str = "warm"
    """warm: above the control, or lost; cold: below it."""
    kind: str = "number"
    """number, missing (not measured), spent (not begun in time) or none (not applicable, not asked)."""
    note: int | None = None
    """Which of the numbered reasons applies."""


# --- the matrix


class Reasons:
    """Why something was not measured, each reason once, numbered in order of appearance."""

    def __init__(self) -> None:
        """Empty."""
        self._places: dict[tuple[str, str], dict[str, list[str]]] = {}

    def add(self, status: str, reason: str, column: str, condition: str) -> int:
        """The number of this reason."""
        self._places.setdefault((status, reason), {}).setdefault(column, []).append(condition)
        return list(self._places).index((status, reason)) + 1

    def rows(self) -> list[dict[str, Any]]:
        """number, status, reason, places."""
        return [
            {
                "number": position,
                "status": status,
                "reason": reason,
                "places": [f"{column}: {'; '.join(conditions)}" for column, conditions in places.items()],
            }
            for position, ((status, reason), places) in enumerate(self._places.items(), start=1)
        ]


def matrix(audit: Audit, reasons: Reasons) -> list[dict[str, Any]]:
    """One panel for the forget set and membership, one for utility; rows are conditions, columns probes."""
    cells = {(cell["condition"], cell["column"]): cell for cell in audit.get("cells", [])}
    conditions = list(dict.fromkeys(condition for condition, _ in cells))
    panels = []
    for about, title, lead in ABOUT:
        names = [name for name in dict.fromkeys(name for _, name in cells) if about_of(audit, name) == about]
        if not names:
            continue
        rows = {
            condition: {
                **_condition(audit, condition),
                "cells": [shown_cell(audit, cells.get((condition, name)), condition, name, reasons) for name in names],
            }
            for condition in conditions
        }
        unasked = [name for name in conditions if about == "utility" and _is_unasked(cells, name, names)]
        groups = [
            {"title": group, "rows": [rows[name] for name in members]}
            for group, members in in_groups(audit, [name for name in conditions if name not in unasked])
        ]
        columns = [
            {"head": heading(audit, name)[0], "sub": heading(audit, name)[1], "label": label_of_column(audit, name)}
            for name in names
        ]
        panels.append(
            {
                "about": about,
                "title": title,
                "lead": lead,
                "columns": columns,
                "before": _reference_rows(audit, cells, names),
                "groups": groups,
                "is_large": len(conditions) > LARGE or len(names) > LARGE,
                "unasked": [label_of_condition(audit, name) for name in unasked],
            }
        )
    return panels


def _is_unasked(cells: Mapping[tuple[str, str], Cell], condition: str, names: Sequence[str]) -> bool:
    """Whether a row would say nothing: no cell was measured or required, none stopped by the budget."""
    found = [cells.get((condition, name), {}) for name in names]
    return not any(
        cell.get("status") == "measured" or cell.get("required") or SPENT in str(cell.get("reason")) for cell in found
    )


def about_of(audit: Audit, column: str) -> str:
    """forget (membership too) or utility."""
    about = audit.get("columns", {}).get(column, {}).get("about", "forget")
    return "utility" if about == "utility" else "forget"


def _condition(audit: Audit, name: str) -> dict[str, Any]:
    condition = audit.get("conditions", {}).get(name, {})
    return {
        "label": label_of_condition(audit, name),
        "provenance": condition.get("provenance", ""),
        "codes": codes_in_words(condition),
        "is_back": is_number(condition.get("code_match")) and condition["code_match"] > NEARLY_BACK,
    }


def _reference_rows(audit: Audit, cells: Mapping[tuple[str, str], Cell], names: Sequence[str]) -> list[dict[str, Any]]:
    """What the original and the control score, as they are: the two ends of every scale."""
    own = [cells.get(("as_is", name), {}) for name in names]
    rows = [
        {"label": "before: the original, as is", "cells": [number(cell.get("original")) for cell in own]},
        {
            "label": f"never knew: {control_in_words(audit)}, as is",
            "cells": [number(control_of(audit, cell)) for cell in own],
        },
    ]
    return [row for row in rows if any(text != DASH for text in row["cells"])]


def control_in_words(audit: Audit) -> str:
    """The control in two words."""
    kind = audit.get("control", {}).get("kind")
    names = {"reference": "retrained reference", "holdout": "holdout units", "lookalike": "look-alike names"}
    return names.get(str(kind), "control")


def shown_cell(audit: Audit, cell: Cell | None, condition: str, name: str, reasons: Reasons) -> Shown:
    """A cell as the page shows it; the reason for what it lacks is added to `reasons`."""
    if cell is None:
        return Shown(DASH, kind="none", word="not asked")
    place = (name_of(audit, name), label_of_condition(audit, condition))
    if cell["status"] != "measured":
        note = reasons.add(cell["status"], str(cell.get("reason") or "no reason given"), *place)
        if cell["status"] == "not applicable":
            return Shown("n/a", kind="none", word="not applicable")
        mark = JUDGEMENTS["not measured"] if cell.get("required") else PLAIN
        if SPENT in str(cell.get("reason")):  # the control's, too, is told as such
            return Shown(SPENT, kind="spent", judged=mark, note=note)
        return Shown("not measured", kind="missing", judged=mark, note=note)
    # a cell may be measured, and its control not: it has a value, and a reason why there is no distance
    why = cell.get("reason")
    word = str(cell.get("judgement") or utility_judgement(audit, name, condition))
    shade, hue = shade_of(audit, cell)
    return Shown(
        text=number(cell.get("value")),
        interval=interval(cell.get("lower"), cell.get("upper")),
        judged=JUDGEMENTS.get(word, PLAIN),
        word=word,
        shade=shade,
        hue=hue,
        note=reasons.add("not compared", str(why), *place) if why else None,
    )


def utility_judgement(audit: Audit, column: str, condition: str) -> str:
    """kept or lost; empty where the protocol asks nothing."""
    rows = (row for row in audit.get("utility", []) if (row["column"], row["condition"]) == (column, condition))
    return str(next((row.get("judgement") for row in rows), "") or "")


def control_of(audit: Audit, cell: Cell) -> float | None:
    """What the control scores in a cell's place; of a utility, which needs none, where it was asked all the same."""
    if cell.get("control") is not None or audit.get("control", {}).get("kind") != "reference":
        return cell.get("control")
    held = audit.get("scores", {}).get("control", {}).get(cell.get("condition"), {}).get(cell.get("column"), {})
    values, how = held.get("values"), audit.get("columns", {}).get(cell.get("column"), {}).get("aggregate")
    if not values or how not in ("mean", "exp_mean"):
        return None
    mean = sum(values) / len(values)
    return math.exp(mean) if how == "exp_mean" else float(mean)


def shade_of(audit: Audit, cell: Cell) -> tuple[float, str]:
    """How much colour a cell gets, in [0, 1], and which."""
    value, original, distance = cell.get("value"), cell.get("original"), cell.get("d")
    column = audit.get("columns", {}).get(cell["column"], {})
    if about_of(audit, cell["column"]) == "utility":
        if not is_number(value) or not is_number(original):
            return 0.0, "warm"
        assert value is not None and original is not None
        fall = value - original if column.get("better") == "low" else original - value
        if column.get("aggregate") == "exp_mean":
            fall = math.log10(max(value, 1e-9) / max(original, 1e-9))
        return _unit(fall), "warm"
    if not is_number(distance) or (column.get("about") == "forget" and column.get("better", "low") != "low"):
        return 0.0, "warm"  # more of a truth ratio is no knowledge
    assert distance is not None
    if distance < 0 and column.get("about") == "membership":
        return _unit(-distance / 0.5), "cold"
    return _unit(distance / 0.5 if column.get("about") == "membership" else distance), "warm"


def _unit(value: float) -> float:
    """Between 0 and 1; what is too small to be seen is 0."""
    return 0.0 if value < 0.03 else round(min(1.0, value), 2)


def find(audit: Audit, column: str, condition: str) -> Cell:
    """A cell, empty where there is none."""
    cells = audit.get("cells", [])
    return next((cell for cell in cells if (cell["column"], cell["condition"]) == (column, condition)), {})
