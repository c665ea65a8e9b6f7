"""What an audit says at its end: the matrix, the verdict with its reasons and scope, the page.

Source: this project.  Checked against: each of the four verdicts; a cell that was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from letheon.cli.ending import Outcome, quoted
from letheon.cli.table import table


def judged(result: Any) -> Outcome:
    """The outcome of an audit. Writes the run's report.html."""
    from letheon.reports.page import report

    page = report(result.run)
    verdict = result.verdict
    said = {"run": result.run, "verdict": verdict, "audit_path": result.audit_path, "report": page}
    lines = [
        *_matrix(result.audit),
        f"verdict: {verdict.word}",
        *(f"  - {reason}" for reason in verdict.reasons),
        f"  {verdict.scope}",
        f"report: {quoted(page)}",
    ]
    return Outcome(said, lines, next=f"letheon verify {quoted(result.run)}", code=verdict.exit_code)


def _matrix(audit: Mapping[str, Any]) -> list[str]:
    """One line a column of the audit, one value a condition: there are fewer conditions than columns."""
    conditions = list(dict.fromkeys(cell["condition"] for cell in audit["cells"]))
    columns = list(dict.fromkeys(cell["column"] for cell in audit["cells"]))
    values = {(cell["column"], cell["condition"]): _value(cell) for cell in audit["cells"]}
    rows = [[column, *(values.get((column, condition), "") for condition in conditions)] for column in columns]
    return table([["", *conditions], *rows]) if rows else []


def _value(cell: Mapping[str, Any]) -> str:
    if cell["status"] != "measured":
        return "-"
    return f"{cell['value']:.2f}" + ("*" if cell.get("judgement") in ("knowledge found", "over-forgotten") else "")
