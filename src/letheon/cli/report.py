"""Make the page of a run again."""

from __future__ import annotations

from pathlib import Path

import typer

from letheon.cli.ending import Outcome, finish, quoted
from letheon.cli.simple import JSON, command, new_app

app = new_app()


@command(app, "letheon report runs/mine", "letheon report runs/mine --json")
def report(
    run: str = typer.Argument(..., metavar="RUN", help="A run folder with an audit or a benchmark"),
    json: bool = JSON,
) -> None:
    """Make the page of a run again, and its figures as files, from what was written down; nothing is measured."""
    from letheon.reports.benchmarks import has_benchmark

    folder = Path(run)
    is_audited = (folder / "audit.json").is_file() or not has_benchmark(folder)  # neither: its reader says so
    outcome = _of_audit(folder) if is_audited else Outcome({}, [])
    if has_benchmark(folder):
        outcome = _with_benchmark(folder, outcome)
    finish(outcome, command="report", as_json=json)


def _of_audit(run: Path) -> Outcome:
    from letheon.reports import files, page

    made = page.report(run)
    drawn = files.write_files(run)
    lines = [f"report: {quoted(made)}", f"figures: {quoted(drawn[0].parent)} ({len(drawn)} files, SVG and CSV)"]
    return Outcome({"report": made, "figures": drawn}, lines, next=f"letheon verify {quoted(run)}")


def _with_benchmark(run: Path, outcome: Outcome) -> Outcome:
    from letheon.reports.benchmarks import write_benchmark

    page, numbers = write_benchmark(run)
    said = {**outcome.result, "benchmark": page, "benchmark_figures": numbers}
    return Outcome(
        said, [*outcome.lines, f"benchmark: {quoted(page)}", f"its figures: {quoted(numbers)}"], next=outcome.next
    )
