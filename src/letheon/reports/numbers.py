"""Every number of an audit as rows: for the page in words, for a file as it stands.

Source: this project.  Checked against: the file read back against the audit, value by value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from letheon.reports.wording import (
    DASH,
    JUDGEMENTS,
    PLAIN,
    interval,
    label_of_column,
    label_of_condition,
    name_of,
    number,
    signed,
)

Audit = Mapping[str, Any]
CELL = (
    "condition", "column", "status", "required", "convicts", "value", "lower", "upper", "n_items", "n_units",
    "original", "control", "d", "d_lower", "d_upper", "within_lower", "within_upper", "margin", "side", "retained",
    "regained", "judgement", "reason",
)  # fmt: skip
"""What a cell may hold, by the audit's own names; its pair `within` is two columns."""


def cell_rows(audit: Audit) -> list[dict[str, Any]]:
    """Every cell with everything that a number, a word or a reason can say of it; what it lacks is None."""
    return [{**{name: _ratio(cell.get(name)) for name in CELL}, **_within(cell)} for cell in audit.get("cells", [])]


def _within(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The bounds by which a cell is acquitted, where they are others than those by which it is convicted."""
    lower, upper = cell.get("within") or (None, None)
    return {"within_lower": lower, "within_upper": upper}


def number_rows(audit: Audit) -> list[dict[str, Any]]:
    """Every measured cell with all that is known of it."""
    rows = []
    for cell in audit.get("cells", []):
        if cell["status"] != "measured":
            continue
        word = str(cell.get("judgement") or "")
        margin, side = cell.get("margin"), cell.get("side")
        rows.append(
            {
                "condition": label_of_condition(audit, cell["condition"]),
                "column": name_of(audit, cell["column"]),
                "n_items": number_of(cell.get("n_items")),
                "n_units": number_of(cell.get("n_units")),
                "value": number(cell.get("value")),
                "interval": interval(cell.get("lower"), cell.get("upper")),
                "control": number(cell.get("control")),
                "original": number(cell.get("original")),
                "d": signed(cell.get("d")),
                "d_interval": interval(cell.get("d_lower"), cell.get("d_upper"), is_signed=True),
                "margin": DASH if margin is None else f"{'±' if side == 'either' else ''}{number(margin)}",
                "retained": number(_ratio(cell.get("retained"))),
                "regained": number(_ratio(cell.get("regained"))),
                "judged": JUDGEMENTS.get(word, PLAIN),
                "word": word or _why_unjudged(cell),
            }
        )
    return rows


def _why_unjudged(cell: Mapping[str, Any]) -> str:
    if cell.get("convicts"):
        return "can only convict"
    return "" if cell.get("required") else "not required"


def _ratio(value: Any) -> Any:
    """A ratio may come alone or with its bounds."""
    return value.get("value") if isinstance(value, Mapping) else value


def number_of(count: Any) -> str:
    """A count, or a dash."""
    return f"{count:,}" if isinstance(count, int) else DASH


def utility_rows(audit: Audit) -> list[dict[str, Any]]:
    """How far each required utility fell, against its margin."""
    return [
        {
            "label": label_of_column(audit, row["column"]),
            "original": number(row.get("original")),
            "subject": number(row.get("subject")),
            "fall": signed(row.get("fall")),
            "interval": interval(row.get("lower"), row.get("upper"), is_signed=True),
            "margin": number(row.get("margin")),
            "judged": JUDGEMENTS.get(str(row.get("judgement")), PLAIN),
            "word": str(row.get("judgement") or ""),
            "reason": str(row.get("reason") or ""),
        }
        for row in audit.get("utility", [])
    ]
