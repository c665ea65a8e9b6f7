"""Answers in words, before and after: some of each set side by side, and a few of every cell.

Which ones is fixed by their place in the list, never by what was answered. They lie in items.jsonl alone, and a run
that was purged says that they are gone.

Source: this project.  Checked against: a run with all of it, one that was purged, and an answer that is markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from letheon.reports.groups import in_groups
from letheon.reports.reading import AuditedRun, Lines
from letheon.reports.wording import DASH, counted, label_of_condition, name_of
from letheon.runs.ledger import ITEMS_NAME

SAMPLES = {"forget": 6, "retain": 4, "general": 2}
"""How many answers are shown of each set."""
_SAMPLED = (
    ("forget", "To be forgotten, other wordings", ("forget_held_out", "forget_accuracy_held_out")),
    ("forget", "To be forgotten, trained wordings", ("forget_questions", "forget_accuracy")),
    ("retain", "To be kept", ("retain_questions", "retain_accuracy")),
    ("general", "General knowledge", ("general_questions", "general_accuracy")),
)
"""Which set it belongs to, the title, and the names under which items.jsonl may have it: a set's or a column's."""
_AFTER = ("as_is", "int4_row")
_CELLS = {
    "forget_questions": "forget_accuracy",
    "forget_held_out": "forget_accuracy_held_out",
    "retain_questions": "retain_accuracy",
    "general_questions": "general_accuracy",
}
"""Set of items.jsonl -> the column of the matrix that it fills."""
MOST_A_CELL = 12


def samples(run: AuditedRun) -> dict[str, Any]:
    """Answers before and after; which ones is fixed by their place in the list, not by what was answered."""
    if run.items is None:
        return {"groups": [], "why_none": _why_no_items(run)}
    groups = [group for role, title, names in _SAMPLED if (group := _group(run, role, title, names))]
    return {"groups": groups, "why_none": "" if groups else f"{ITEMS_NAME} holds no answers to questions."}


def _why_no_items(run: AuditedRun) -> str:
    was_kept = any(name.endswith(ITEMS_NAME) for stage in run.stages for name in stage.outputs)
    if was_kept:
        return "The raw text was purged. The numbers and the verdict stand without it."
    return f"The raw text was purged, or never kept: there is no {ITEMS_NAME} in this run."


def _group(run: AuditedRun, role: str, title: str, names: tuple[str, ...]) -> dict[str, Any] | None:
    lines = [line for line in run.items or [] if line.get("set") in names or line.get("column") in names]
    by_place = {(line.get("role"), line.get("condition"), line.get("id")): line for line in lines}
    before = [line for line in lines if line.get("role") == "original" and line.get("condition") == "as_is"]
    after = [condition for condition in _AFTER if any(_is_after(line, condition) for line in lines)]
    if not after:
        return None
    base = before or [line for line in lines if _is_after(line, after[0])]
    rows = []
    for line in _spread(base, SAMPLES[role]):
        given = [by_place.get(("subject", condition, line.get("id"))) for condition in after]
        shown = [line if before else None, *given]
        rows.append(
            {
                "prompt": str(line.get("prompt", "")),
                "answer": str(line.get("answer", "")).strip(),
                "given": [_given(answer) for answer in shown],
            }
        )
    heads = ["before", *(f"after, {label_of_condition(run.audit, condition)}" for condition in after)]
    return {"title": title, "role": role, "heads": heads, "rows": rows, "of": len(base)}


def samples_by_cell(run: AuditedRun) -> list[dict[str, Any]]:
    """Answers of the audited model under every condition of which some were kept: a group for each, an entry a cell."""
    by_cell: dict[tuple[str, str], Lines] = {}
    before: dict[tuple[str, str], Mapping[str, Any]] = {}
    for line in run.items or []:
        column = str(line.get("column") or _CELLS.get(str(line.get("set")), ""))
        if not column:
            continue
        if line.get("role") == "subject":
            by_cell.setdefault((str(line.get("condition")), column), []).append(line)
        elif line.get("role") == "original" and line.get("condition") == "as_is":
            before[column, str(line.get("id"))] = line
    conditions = list(dict.fromkeys(condition for condition, _ in by_cell))
    return [
        {
            "group": group,
            "label": label_of_condition(run.audit, condition),
            "cells": [
                _cell_of_samples(run, column, lines, before)
                for (at, column), lines in by_cell.items()
                if at == condition
            ],
        }
        for group, members in in_groups(run.audit, conditions)
        for condition in members
    ]


def _cell_of_samples(
    run: AuditedRun, column: str, lines: Lines, before: Mapping[tuple[str, str], Mapping[str, Any]]
) -> dict[str, Any]:
    shown = _spread(lines, MOST_A_CELL)
    rows: list[dict[str, Any]] = [
        {
            "prompt": str(line.get("prompt", "")),
            "answer": str(line.get("answer", "")).strip(),
            "given": [_given(before.get((column, str(line.get("id"))))), _given(line)],
        }
        for line in shown
    ]
    right = sum(row["given"][1]["is_right"] for row in rows)
    about = run.audit.get("columns", {}).get(column, {}).get("about", "forget")
    of = f" of {len(lines)} kept" if len(lines) > len(shown) else ""
    return {
        "column": name_of(run.audit, column),
        "said": f"{counted(len(rows), 'answer')}{of}, {right} right",
        "is_kept": about == "utility",
        "rows": rows,
    }


def _is_after(line: Mapping[str, Any], condition: str) -> bool:
    return line.get("role") == "subject" and line.get("condition") == condition


def _given(line: Mapping[str, Any] | None) -> dict[str, Any]:
    if line is None:
        return {"text": DASH, "is_right": False}
    text, answer = str(line.get("given", "")).strip(), str(line.get("answer", "")).strip()
    return {"text": text or "(nothing)", "is_right": bool(answer) and text.casefold() == answer.casefold()}


def _spread(lines: Lines, count: int) -> Lines:
    """`count` lines at equal distances."""
    if len(lines) <= count:
        return lines
    return [lines[position * len(lines) // count] for position in range(count)]
