"""Show the whole line on a world of people who never existed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from letheon.cli.ending import Outcome, finish, quoted
from letheon.cli.simple import JSON, QUIET, command, new_app
from letheon.cli.table import table

if TYPE_CHECKING:
    from letheon.recipes.demo import RowResult

app = new_app()
SHOWN = {
    "forget": ("forget_accuracy", "as_is"),
    "other wordings": ("forget_accuracy_held_out", "as_is"),
    "int4": ("forget_accuracy", "int4_row"),
    "texts": ("membership_texts", "as_is"),
    "retain": ("retain_accuracy", "as_is"),
    "general": ("general_accuracy", "as_is"),
}
"""Heading -> the cell of the audit that stands below it."""


@command(app, "letheon demo", "letheon demo --short --out runs/look")
def demo(
    baselines: bool = typer.Option(False, "--baselines", help="The six published baselines", show_default=False),
    short: bool = typer.Option(False, "--short", help="A smaller world and two rows", show_default=False),
    out: str = typer.Option("runs/demo", metavar="PATH", help="Where the runs go [runs/demo]", show_default=False),
    json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Show the whole line on a world of people who never existed: train, forget in several ways, audit, report."""
    from letheon.recipes.demo import run_rows
    from letheon.reports.page import compare, report
    from letheon.runs.progress import Progress

    folder = Path(out)
    results = run_rows(baselines=baselines, short=short, out=folder, progress=Progress(quiet=quiet))
    for result in results:
        report(result.audit.run)
    page = compare([result.audit.run for result in results], folder / "report.html")
    said = {"rows": [_data(result) for result in results], "report": page}
    finish(
        Outcome(
            said, [*_table(results), f"report: {quoted(page)}"], next=f"letheon verify {quoted(results[0].audit.run)}"
        ),
        command="demo",
        as_json=json,
    )


def _data(result: RowResult) -> dict[str, Any]:
    audit = result.audit
    return {
        "name": result.row.name,
        "title": result.row.title,
        "run": audit.run,
        "verdict": audit.verdict,
        **_cells(audit.audit),
    }


def _cells(audit: dict[str, Any]) -> dict[str, float | None]:
    values = {(cell["column"], cell["condition"]): cell.get("value") for cell in audit["cells"]}
    return {heading: values.get(where) for heading, where in SHOWN.items()}


def _table(results: Sequence[RowResult]) -> list[str]:
    rows = [["", *SHOWN, "verdict"]]
    for result in results:
        values = _cells(result.audit.audit).values()
        shown = ["-" if value is None else f"{value:.2f}" for value in values]
        rows.append([result.row.title, *shown, result.audit.verdict.word])
    return table(rows)
