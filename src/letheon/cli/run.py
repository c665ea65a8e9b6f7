"""Run a recipe: a chain of verbs in one run folder, or a queue of deletion requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from letheon.cli.benchmark import measured
from letheon.cli.ending import Outcome, finish, quoted
from letheon.cli.judged import judged
from letheon.cli.simple import JSON, QUIET, command, new_app

app = new_app()


@command(app, "letheon run recipe.yaml", "letheon run recipe.yaml --out runs/mine-again --print-config")
def run(
    recipe: str = typer.Argument(..., metavar="RECIPE", help="A YAML file with 'out' and 'steps'"),
    out: str | None = typer.Option(None, metavar="PATH", help="The run folder, instead of the recipe's"),
    allow_code: bool = typer.Option(False, "--allow-code", help="Methods in it may be files of Python, which are run"),
    print_config: bool = typer.Option(False, "--print-config", help="Check the recipe, print it, run nothing"),
    json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Run a recipe: a chain of verbs in one run folder, or, with `requests`, the chain for each deletion request in
    turn. What is done is skipped, what was stopped is continued.
    """
    from letheon.recipes import recipe as recipes
    from letheon.runs.progress import Progress

    if print_config:
        print(recipes.dump_recipe(recipes.load_recipe(recipe, out=out, allow_code=allow_code)), end="")
        return
    done = recipes.run(recipe, out=out, allow_code=allow_code, progress=Progress(quiet=quiet))
    ending = _of_queue(done) if done.requests else _of_chain(done)
    finish(ending, command="run", as_json=json)


def _of_chain(done: Any) -> Outcome:
    results = dict(done.results)
    ending = Outcome(None, next="letheon runs")
    if "audit" in results:
        ending = judged(results["audit"])
        results["audit"] = ending.result  # without every single score, which stand in audit.json
    said: list[str] = []
    if "benchmark" in results:
        outcome = measured(results["benchmark"])
        results["benchmark"], said = outcome.result, list(outcome.lines)
    lines = [f"done: {quoted(done.folder)}", *said, *ending.lines]
    return Outcome({"folder": done.folder, "results": results}, lines, next=ending.next, code=ending.code)


def _of_queue(done: Any) -> Outcome:
    """The table of the whole queue, its page, and the verdict after the last request; a page of each request's own."""
    from letheon.cli.table import table
    from letheon.reports.page import compare
    from letheon.reports.reading import read_run
    from letheon.reports.requests import rows

    endings = [judged(request.results["audit"]) for request in done.requests]
    folders = [request.folder for request in done.requests]
    page = compare(
        folders,
        Path(done.folder) / "report.html",
        title="A queue of deletion requests",
        intro="Each request was carried out on the model that the one before it left, and audited together with all "
        "requests before it, against the model that the queue began with.",
        described=[f"{len(folders[: at + 1])} of {len(folders)}" for at in range(len(folders))],
    )
    last = endings[-1]
    verdict = done.verdict
    results = [
        {"folder": request.folder, "results": {**request.results, "audit": ending.result}}
        for request, ending in zip(done.requests, endings, strict=True)
    ]
    lines = [
        f"done: {quoted(done.folder)}",
        *table(rows([read_run(folder) for folder in folders])),
        f"verdict after the last request: {verdict.word}",
        *(f"  - {reason}" for reason in verdict.reasons),
        f"  {verdict.scope}",
        f"report: {quoted(page)}",
    ]
    said = {"folder": done.folder, "requests": results, "report": page}
    return Outcome(said, lines, next=last.next, code=last.code)
