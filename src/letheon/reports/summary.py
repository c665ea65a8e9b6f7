"""Several audits in one table: a row a run, and one for the original and the control where all runs share them.

Source: this project.  Checked against: every cell against the audit it came from; runs of different originals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from letheon.reports.reading import AuditedRun
from letheon.reports.tables import Reasons, Shown, control_of, find, shown_cell
from letheon.reports.verdicts import verdict
from letheon.reports.wording import heading, label_of_condition, number

Audit = Mapping[str, Any]
SUMMARY = (
    ("forget_accuracy", "as_is"),
    ("forget_accuracy_held_out", "as_is"),
    ("forget_accuracy", "int4_row"),
    ("membership_texts", "as_is"),
    ("membership_questions", "as_is"),
    ("retain_accuracy", "as_is"),
    ("retain_accuracy_held_out", "as_is"),
    ("general_accuracy", "as_is"),
)
"""(column, condition) of the summary over several runs, in order; those that no run has are left out."""


def summary_columns(audits: Sequence[Audit]) -> list[tuple[str, str]]:
    """The columns of the summary that at least one audit has."""
    there = {(cell["column"], cell["condition"]) for audit in audits for cell in audit.get("cells", [])}
    return [place for place in SUMMARY if place in there]


def summary(runs: Sequence[AuditedRun], described: Sequence[str] = ()) -> dict[str, Any]:
    """One row a run with its description, and one for the original and the control where all runs share them."""
    audits = [run.audit for run in runs]
    places = summary_columns(audits)
    columns = []
    for column, condition in places:
        head, sub = heading(audits[0], column)
        where = "" if condition == "as_is" else label_of_condition(audits[0], condition)
        columns.append({"head": head, "sub": sub, "where": where})
    rows = []
    for run, said in zip(runs, described or [""] * len(runs), strict=True):
        shown = []
        for column, condition in places:
            cell = find(run.audit, column, condition)
            shown.append(shown_cell(run.audit, cell or None, condition, column, Reasons()))
        rows.append(
            {"name": run.name, "said": said, "verdict": verdict(run), "cells": [_without_note(cell) for cell in shown]}
        )
    return {"columns": columns, "rows": rows, "before": shared_rows(audits, places)}


def _without_note(cell: Shown) -> Shown:
    """Reasons are numbered in each run's own section."""
    return Shown(cell.text, cell.interval, cell.judged, cell.word, cell.shade, cell.hue, cell.kind)


def shared_rows(audits: Sequence[Audit], places: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The original and the control as they are, where every audit had the same ones."""
    rows = []
    for label, key, role in (("the original", "original", "original"), ("the control", "control", "reference")):
        hashes = {str((audit.get("models", {}).get(role) or {}).get("sha256")) for audit in audits}
        if len(hashes) != 1 or hashes == {"None"}:
            continue
        cells = []
        for column, condition in places:
            cell = find(audits[0], column, condition)
            # the original is asked as it is only
            value = control_of(audits[0], cell) if key == "control" else cell.get(key) if condition == "as_is" else None
            cells.append(number(value))
        rows.append({"label": label, "cells": cells})
    return rows
