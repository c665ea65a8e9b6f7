"""How a report says things: names of columns and conditions, numbers, judgements, what happened to the codes.

Source: this project.  Checked against: sentences by hand at the ends of each scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DASH = "–"


@dataclass(frozen=True)
class Judged:
    """How a judgement or a verdict looks: never by colour alone."""

    tone: str
    """Class of the page's style: found, clear, open, lost or plain."""
    mark: str
    """The sign that stands beside the number."""


JUDGEMENTS = {
    "knowledge found": Judged("found", "▲"),
    "over-forgotten": Judged("found", "▼"),
    "clear": Judged("clear", "✓"),
    "open": Judged("open", "○"),
    "blind": Judged("open", "○"),
    "kept": Judged("clear", "✓"),
    "lost": Judged("lost", "✕"),
    "not measured": Judged("open", "○"),
}
VERDICTS = {
    "DELETED": Judged("clear", "✓"),
    "NOT DELETED": Judged("found", "▲"),
    "NOT USABLE": Judged("lost", "✕"),
    "INCONCLUSIVE": Judged("open", "○"),
}
PLAIN = Judged("plain", "")

_COLUMNS = {
    "forget_accuracy": ("Facts", "trained wordings"),
    "forget_accuracy_held_out": ("Facts", "other wordings"),
    "forget_probability": ("Probability", "of the answers"),
    "forget_rouge": ("ROUGE-L", "of the answers"),
    "verbatim": ("Verbatim", "texts, ROUGE-L"),
    "membership_texts": ("Membership", "texts, AUC"),
    "membership_questions": ("Membership", "questions, AUC"),
    "retain_accuracy": ("Retained facts", "trained wordings"),
    "retain_accuracy_held_out": ("Retained facts", "other wordings"),
    "general_accuracy": ("General facts", "trained wordings"),
    "general_accuracy_held_out": ("General facts", "other wordings"),
    "retain_perplexity": ("Perplexity", "retained texts"),
}
_CONDITIONS = {
    "as_is": "as is",
    "int8": "int8, per row",
    "int4_row": "int4, per row",
    "int4_group32": "int4, groups of 32",
    "int4_group128": "int4, groups of 128",
    "fp4": "FP4, blocks of 64",
    "nf4": "NF4, blocks of 64",
    "shipped": "the file that ships",
}


def heading(audit: Mapping[str, Any], column: str) -> tuple[str, str]:
    """A column's name in two short lines."""
    return _COLUMNS.get(column) or (label_of_column(audit, column), "")


def name_of(audit: Mapping[str, Any], column: str) -> str:
    """A column's name on one line, as the heading has it."""
    return ", ".join(part for part in heading(audit, column) if part)


def label_of_column(audit: Mapping[str, Any], column: str) -> str:
    """A column's name in full, as the probe gives it."""
    return str(audit.get("columns", {}).get(column, {}).get("label") or column.replace("_", " "))


def label_of_condition(audit: Mapping[str, Any], condition: str) -> str:
    """A condition's name: ours for the usual ones, so that tables and figures agree."""
    given = audit.get("conditions", {}).get(condition, {}).get("label")
    return _CONDITIONS.get(condition) or str(given or condition.replace("_", " "))


def is_number(value: Any) -> bool:
    """Whether there is a finite number to show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> str:
    """Two digits behind the point below 10, one below 1000, then in thousands; a dash for none.

    >>> [number(value) for value in (0.126, -0.001, 12.345, 1234.5, 4.2e7, None)]
    ['0.13', '0.00', '12.3', '1,234', '4.2e+07', '–']
    """
    if not is_number(value):
        return DASH
    size = abs(value)
    text = (
        f"{value:.2f}"
        if size < 10
        else f"{value:.1f}"
        if size < 1000
        else f"{value:,.0f}"
        if size < 1e6
        else f"{value:.1e}"
    )
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text


def signed(value: Any) -> str:
    """A difference, with its sign.

    >>> signed(0.126), signed(-0.126), signed(-0.001)
    ('+0.13', '-0.13', '0.00')
    """
    text = number(value)
    return f"+{text}" if is_number(value) and value > 0 and text.strip("0.") else text


def interval(lower: Any, upper: Any, *, is_signed: bool = False) -> str:
    """`[0.00, 0.05]`; empty when there is none."""
    if not is_number(lower) or not is_number(upper):
        return ""
    say = signed if is_signed else number
    return f"[{say(lower)}, {say(upper)}]"


def percent(share: float) -> str:
    """A share in percent: never 0 % or 100 % unless it is exactly that.

    >>> percent(0.137), percent(0.9999), percent(1.0), percent(0.00002)
    ('14 %', '99.99 %', '100 %', '0.002 %')
    """
    for digits in range(6):
        text = f"{100 * share:.{digits}f}"
        if 0 < share < 1 and float(text) in (0.0, 100.0):
            continue
        if digits == 0 and 0 < share < 1 and (share < 0.01 or share > 0.99):
            continue
        return f"{text} %"
    return "less than 0.00001 %" if share < 0.5 else "more than 99.99999 %"


NEARLY_BACK = 0.98
"""From this share of unchanged codes on, a grid is said to round the model (nearly) back."""
_BACK = "with equal scales this grid rounds the model {} to the original"


def codes_in_words(condition: Mapping[str, Any]) -> str:
    """What a grid makes of the update; empty for a condition that does not round.

    >>> codes_in_words({"code_match": 0.86, "shift_in_steps": 0.24}).replace("\u2019", "'")
    "14 % of the codes differ from the original's, weights moved by 0.24 of a step."
    """
    match, shift = condition.get("code_match"), condition.get("shift_in_steps")
    if not is_number(match):
        return ""
    assert isinstance(match, int | float)
    moved = f", weights moved by {number(shift)} of a step" if is_number(shift) else ""
    if match >= 1 and shift == 0:
        return "No code differs from the original’s, and no weight has moved."
    if match >= 1:
        return f"No code differs from the original’s{moved}: {_BACK.format('back')}."
    changed = f"{percent(1 - match)} of the codes differ from the original’s{moved}"
    return f"{changed}: {_BACK.format('nearly back')}." if match > NEARLY_BACK else f"{changed}."


def duration(seconds: float) -> str:
    """Seconds for a person.

    >>> duration(4.25), duration(93), duration(7320)
    ('4.2 s', '1 min 33 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(stamp: str | None) -> str:
    """`2026-11-21 09:22 UTC` of an ISO 8601 time."""
    if not stamp:
        return DASH
    zone = " UTC" if stamp.endswith(("+00:00", "Z")) else stamp[19:].lstrip(".0123456789")
    return f"{stamp[:10]} {stamp[11:16]}{zone}".strip()


def shortened(text: str, room: int) -> str:
    """A text of at most `room` letters, with an ellipsis where it was longer."""
    return text if len(text) <= room else f"{text[: room - 1].rstrip()}…"


def counted(count: int, noun: str) -> str:
    """`1 cell`, `2 cells`; thousands apart."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
