"""Audits as plain text for a terminal of 120 columns: one line a run.

Source: this project.  Checked against: the width with long names; each value against the audit it came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from letheon.reports.summary import shared_rows
from letheon.reports.tables import find, utility_judgement
from letheon.reports.wording import JUDGEMENTS, is_number, number

WIDTH = 120
_COLUMNS = (
    ("forget_accuracy", "as_is", "", "facts"),
    ("forget_accuracy_held_out", "as_is", "forgotten", "other"),
    ("forget_accuracy", "int4_row", "", "int4"),
    ("membership_texts", "as_is", "member", "texts"),
    ("membership_questions", "as_is", "", "quest."),
    ("retain_accuracy", "as_is", "retained", "facts"),
    ("retain_accuracy_held_out", "as_is", "", "other"),
    ("general_accuracy", "as_is", "general", "facts"),
)
"""Column, condition, and the two lines of the heading."""
_CELL, _VERDICT = 9, 12
_KEY = (
    "other: in other wordings; int4: rounded, one scale a row; member: AUC, 1 memorised, 0.5 never seen\n"
    "* traces found or utility lost   ? not decided   - not measured"
)


def table(audits: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The summary of several audits: (name, audit) -> lines of at most 120 columns, without a final line end.

    Names too long for the width are cut, with ".." at the end.
    """
    room = WIDTH - 2 - _VERDICT - _CELL * len(_COLUMNS)
    places = [(column, condition) for column, condition, _, _ in _COLUMNS]
    before = shared_rows([audit for _, audit in audits], places) if audits else []
    names = [name for name, _ in audits] + [str(row["label"]) for row in before]
    width = min(room, max([len("run"), *map(len, names)]))
    lines = [
        _line("", "", [group for _, _, group, _ in _COLUMNS], width),
        _line("run", "verdict", [head for _, _, _, head in _COLUMNS], width),
    ]
    lines += [_line(str(row["label"]), "", [text.replace("–", "-") for text in row["cells"]], width) for row in before]
    lines += [
        _line(
            name,
            str((audit.get("verdict") or {}).get("word") or "none"),
            [_cell(audit, *place) for place in places],
            width,
        )
        for name, audit in audits
    ]
    return "\n".join([*lines, "", _KEY])


def _line(name: str, verdict: str, cells: Sequence[str], width: int) -> str:
    shown = name if len(name) <= width else f"{name[: width - 2]}.."
    # one place behind the number is kept for its mark, so that points stand below one another
    numbers = "".join((text if text[-1:] in ("*", "?") else f"{text} ").rjust(_CELL) for text in cells)
    return f"{shown:<{width}}  {verdict:<{_VERDICT}}{numbers}".rstrip()


def _cell(audit: Mapping[str, Any], column: str, condition: str) -> str:
    cell = find(audit, column, condition)
    if not is_number(cell.get("value")):
        return "-"
    judged = JUDGEMENTS.get(str(cell.get("judgement") or utility_judgement(audit, column, condition)))
    mark = {"found": "*", "lost": "*", "open": "?"}.get(judged.tone if judged else "", "")
    return f"{number(cell['value'])}{mark}"
