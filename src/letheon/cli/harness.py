"""Write a benchmark's questions as tasks of lm-evaluation-harness (lm_eval)."""

from __future__ import annotations

from typing import Any

import typer

from letheon.cli.ending import Outcome, finish, quoted
from letheon.cli.page import CONTEXT, DOTTED, Page, paged
from letheon.cli.simple import JSON, new_app, takes_context
from letheon.cli.verb import layered

app = new_app()
_PAGE = Page(
    (
        "letheon harness MODEL --benchmark tofu --benchmark.data DIR --benchmark.split forget10 --out tasks",
        "letheon harness MODEL --benchmark people --out tasks",
    ),
    groups={"--benchmark": "benchmark"},
)


@app.command(cls=paged(_PAGE), context_settings=CONTEXT)
@takes_context
def harness(
    ctx: Any,
    model: str = typer.Argument(..., metavar="MODEL", help="The model folder whose tokenizer is written for"),
    benchmark: str = typer.Option(
        ...,
        metavar="NAME",
        help="tofu, muse or people; its settings, --benchmark.KEY VALUE, are those of letheon benchmark",
        show_default=False,
    ),
    out: str = typer.Option(
        "tasks", metavar="PATH", help="Folder of the tasks, for lm_eval --include_path; tasks of others in it stay"
    ),
    json: bool = JSON,
) -> None:
    """Write what letheon benchmark asks as tasks of lm-evaluation-harness, so that lm_eval prints the same numbers
    under the same names. The folder holds the questions as they are in your copy of the data.
    """
    from letheon.audits.harness.tasks import write_tasks

    given = layered("benchmark", {"benchmark": benchmark}, ctx.meta[DOTTED])
    found = write_tasks(model, given["benchmark"], out)
    lines = [
        *(f"written: {name}" for name in found.tasks),
        *(f"lm_eval cannot say: {what}. letheon benchmark does" for what in found.left_out),
    ]
    run = (
        f"lm_eval --model hf --model_args pretrained={quoted(model)},dtype=float32 --include_path {quoted(out)} "
        f"--tasks letheon_{found.benchmark}"
    )
    finish(Outcome(found, lines, next=run), command="harness", as_json=json)
