"""Make the page of a run again."""

from __future__ import annotations

from pathlib import Path

import typer

from letheon.cli.ending import Outcome, finish, quoted
from letheon.cli.simple import JSON, command, new_app

app = new_app()


@command(app, "letheon report runs/mine", "letheon report runs/mine --json")
def report(
    run: str = typer.Argument(..., metavar="RUN", help="A run folder with an audit"),
    json: bool = JSON,
) -> None:
    """Make the page of a run again, and its figures as files, from what its audit wrote down; nothing is measured."""
    from letheon.reports import files, page

    made = page.report(Path(run))
    drawn = files.write_files(Path(run))
    lines = [f"report: {quoted(made)}", f"figures: {quoted(drawn[0].parent)} ({len(drawn)} files, SVG and CSV)"]
    outcome = Outcome({"report": made, "figures": drawn}, lines, next=f"letheon verify {quoted(run)}")
    finish(outcome, command="report", as_json=json)
