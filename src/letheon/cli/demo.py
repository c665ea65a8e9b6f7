"""Show the whole line on a world of people who never existed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from letheon.cli.ending import Outcome, finish, quoted
from letheon.cli.simple import JSON, QUIET, command, new_app
from letheon.errors import BadInput

if TYPE_CHECKING:
    from letheon.recipes.demo import RowResult

app = new_app()

NOTHING = 0.05
"""A share of answers that is called no recovery."""
INTRO = (
    "Invented people were taught to a small language model. Some of them have asked to be forgotten. Each row below "
    "is one way to make the model forget them; all are compared with a reference that was trained without them and "
    "never knew."
)


@command(app, "letheon demo", "letheon demo --short")
def demo(
    baselines: bool = typer.Option(False, "--baselines", help="The six published baselines", show_default=False),
    short: bool = typer.Option(False, "--short", help="A smaller world and two rows", show_default=False),
    out: str = typer.Option(
        "", metavar="PATH", help="Where the runs go [runs/demo, runs/demo-short, ...]", show_default=False
    ),
    json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Show the whole line on a world of people who never existed: train, forget in several ways, audit, report."""
    from letheon.recipes.demo import guessing, run_rows
    from letheon.reports.page import compare
    from letheon.reports.terminal import table
    from letheon.runs.progress import Progress

    if baselines and short:
        raise BadInput("--baselines and --short exclude each other: the baselines are shown on the whole world")
    folder = Path(out or ("runs/demo-baselines" if baselines else "runs/demo-short" if short else "runs/demo"))
    results = run_rows(baselines=baselines, short=short, out=folder, progress=Progress(quiet=quiet))
    said, guessed = what_rounding_did(results), guessing(short=short)
    page = compare(
        [result.audit.run for result in results],
        folder / "report.html",
        title="The embedded world: who is really forgotten?",
        intro="\n\n".join([INTRO, f"{guessed.capitalize()}.", *said]),
        described=[result.row.title for result in results],
    )
    shown = table([(result.row.title, result.audit.audit) for result in results])
    lines = ["", *shown.splitlines(), guessed, "", *said, ""]
    finish(
        Outcome(
            {"rows": [_data(result) for result in results], "report": page},
            [*lines, f"report: {quoted(page)}"],
            next=f"letheon verify {quoted(results[0].audit.run)}",
        ),
        command="demo",
        as_json=json,
    )


def what_rounding_did(results: Sequence[RowResult]) -> list[str]:
    """What quantization brought back, as measured: of the honest rows and of the sham."""
    changes = {result.row.title: _changes(result.audit.audit) for result in results}
    honest = {title: found for title, found in changes.items() if found and not title.startswith("sham")}
    moved = [change for found in honest.values() for change in found]
    sham = [change for title, found in changes.items() if title.startswith("sham") for change in found]
    said = []
    if moved:
        said.append(
            f"Rounding to 8 and 4 bits changed the share of forgotten facts that are answered "
            f"by at most {max(map(abs, moved)):.2f} in the {'row' if len(honest) == 1 else 'rows'} without a trick."
            + (" On so small a model nothing comes back by itself." if max(moved) < NOTHING else "")
        )
    if sham and max(sham) >= NOTHING:
        said.append(
            f"The sham was built to pass as it is: rounding to one grid gave back {max(sham):.2f}. An audit has to try "
            "the grid that ships."
        )
    elif sham:
        said.append(
            "The sham was built to pass as it is and to come back at one grid. Here it did not come back: "
            f"rounding gave back at most {max(0.0, *sham):.2f}."
        )
    return said


def _changes(audit: dict[str, Any]) -> list[float]:
    """By how much each condition changed the accuracy on the forgotten facts, where both were measured."""
    values = {cell["condition"]: cell.get("value") for cell in audit["cells"] if cell["column"] == "forget_accuracy"}
    as_is = values.pop("as_is")
    return [value - as_is for value in values.values() if value is not None and as_is is not None]


def _data(result: RowResult) -> dict[str, Any]:
    audit = result.audit
    return {
        "name": result.row.name,
        "title": result.row.title,
        "run": audit.run,
        "verdict": audit.verdict,
        "cells": [
            {name: cell.get(name) for name in ("condition", "column", "value", "lower", "upper", "d", "judgement")}
            for cell in audit.audit["cells"]
            if cell["status"] == "measured"
        ],
    }
