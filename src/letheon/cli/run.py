"""Run a recipe: a chain of verbs in one run folder."""

from __future__ import annotations

import typer

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
    """Run a recipe: a chain of verbs in one run folder. What is done is skipped, what was stopped is continued."""
    from letheon.recipes import recipe as recipes
    from letheon.runs.progress import Progress

    if print_config:
        print(recipes.dump_recipe(recipes.load_recipe(recipe, out=out, allow_code=allow_code)), end="")
        return
    done = recipes.run(recipe, out=out, allow_code=allow_code, progress=Progress(quiet=quiet))
    results = dict(done.results)
    ending = Outcome(None, next="letheon runs")
    if "audit" in results:
        ending = judged(results["audit"])
        results["audit"] = ending.result  # without every single score, which stand in audit.json
    lines = [f"done: {quoted(done.folder)}", *ending.lines]
    outcome = Outcome({"folder": done.folder, "results": results}, lines, next=ending.next, code=ending.code)
    finish(outcome, command="run", as_json=json)
