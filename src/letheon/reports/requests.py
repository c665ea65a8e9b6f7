"""What became of each deletion request: in one audit of several, and step by step in a queue of them.

A cell of the queue's table says how much of a request is answered after a step: as it is, and in parentheses the most
under any condition. An empty one: the request had not had its turn. A fall is against the first model of all.

Source: this project.  Checked against: each number against the audit it came from; an audit of a single request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from letheon.reports.reading import AuditedRun, printable
from letheon.reports.wording import DASH, VERDICTS, counted, is_number, name_of, number, signed

Audit = Mapping[str, Any]
_FACTS = "forget_accuracy"
_TEXTS = "verbatim"


def of_run(audit: Audit) -> dict[str, Any] | None:
    """One row a request of an audit; None where it was asked about one alone."""
    requests = audit.get("requests") or []
    if not requests:
        return None
    return {
        "title": "Each request alone",
        "heads": ["request", "alone", "answered, as is", "at most", "control", "original"],
        "rows": [_row_of_request(at, request) for at, request in enumerate(requests, start=1)],
        "note": (
            "Answered: the share of a request's facts (without questions: how much of its texts is continued word by "
            "word). At most: under whichever condition most is answered. A request alone is judged on its own items at "
            "the protocol's level divided by the number of requests; about fewer than three people no interval can be "
            "given, so a small request is at best not convicted."
        ),
    }


def of_queue(runs: Sequence[AuditedRun]) -> dict[str, Any] | None:
    """One row a step of a queue of requests; None where no run was asked about several."""
    return table(runs) if any(run.audit.get("requests") for run in runs) else None


def table(runs: Sequence[AuditedRun]) -> dict[str, Any]:
    """One row a step."""
    audits = [run.audit for run in runs]
    most = max(len(_shares(audit)) for audit in audits)
    utilities = list(dict.fromkeys(row["column"] for audit in audits for row in audit.get("utility", [])))
    return {
        "title": "Request by request",
        "heads": [
            "after",
            "verdict",
            *(f"request {at}" for at in range(1, most + 1)),
            *(f"fall of {name_of(audits[-1], column).lower()}" for column in utilities),
        ],
        "rows": [_row_of_step(run, most, utilities) for run in runs],
        "note": (
            "Of each request: the share of its facts that is answered, as is (in parentheses: at most, under any "
            "condition); ▲ marks a request that is convicted alone. Falls are against the model that the queue began "
            "with, so what each deletion costs adds up."
        ),
    }


def _shares(audit: Audit) -> list[Mapping[str, Any]]:
    """Of each request what was found; of a single one the audit's own cells are that."""
    if requests := audit.get("requests"):
        return list(requests)
    facts = [cell for cell in audit.get("cells", []) if cell["column"] in (_FACTS, _TEXTS)]
    return [{"facts": facts, "word": (audit.get("verdict") or {}).get("word", ""), "data": audit["data"]["forget"]}]


def _row_of_request(at: int, request: Mapping[str, Any]) -> dict[str, Any]:
    facts = _facts(request)
    as_is = next((fact for fact in facts if fact["condition"] == "as_is"), {})
    data = request.get("data") or {}
    said = counted(int(data.get("records", 0)), "record")
    if not data.get("unit_is_line"):
        said += f" about {counted(int(data.get('units', 0)), 'unit')}"
    return {
        "label": f"request {at}: {printable(PurePath(str(data.get('path', ''))).name)}",
        "said": said,
        "word": str(request["word"]),
        "judged": VERDICTS[request["word"]],
        "cells": [
            number(as_is.get("value")),
            number(_most(facts)),
            number(as_is.get("control")),
            number(as_is.get("original")),
        ],
    }


def _row_of_step(run: AuditedRun, most: int, utilities: Sequence[str]) -> dict[str, Any]:
    shares = _shares(run.audit)
    cells = [_in_short(share) for share in shares] + [""] * (most - len(shares))
    falls = [signed(_fall(run.audit, column)) for column in utilities]
    word = str(run.verdict.get("word", ""))
    return {"label": run.name, "said": "", "word": word, "judged": VERDICTS[word], "cells": [*cells, *falls]}


def _in_short(share: Mapping[str, Any]) -> str:
    facts = _facts(share)
    as_is = next((fact.get("value") for fact in facts if fact["condition"] == "as_is"), None)
    mark = f" {VERDICTS['NOT DELETED'].mark}" if share["word"] == "NOT DELETED" else ""
    return f"{number(as_is)} ({number(_most(facts))}){mark}"


def _facts(share: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Facts where the request has questions, else its texts."""
    for column in (_FACTS, _TEXTS):
        if found := [fact for fact in share["facts"] if fact["column"] == column and is_number(fact.get("value"))]:
            return found
    return []


def _most(facts: Sequence[Mapping[str, Any]]) -> float | None:
    return max((fact["value"] for fact in facts), default=None)


def _fall(audit: Audit, column: str) -> float | None:
    rows = (row for row in audit.get("utility", []) if (row["column"], row["condition"]) == (column, "as_is"))
    return next((row.get("fall") for row in rows), None)


def rows(runs: Sequence[AuditedRun]) -> list[list[str]]:
    """The same as rows of text, the heading first."""
    shown = table(runs)
    below = [[row["label"], row["word"], *(cell or DASH for cell in row["cells"])] for row in shown["rows"]]
    return [shown["heads"], *below]
