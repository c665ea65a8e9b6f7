"""Ask a model that is reachable by text alone: numbers, no verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from letheon.cli.ending import Outcome, finish, quoted
from letheon.cli.simple import JSON, QUIET, command, new_app
from letheon.cli.table import table
from letheon.errors import BadInput

app = new_app()
_FILE = "FILE"
COLUMNS = typer.Option([], metavar="OURS=YOURS", help="answer=reply: other names of fields", show_default=False)


@command(
    app,
    "letheon ask https://api.example.org/v1 --model NAME --forget f.jsonl --holdout h.jsonl",
    "letheon ask http://localhost:8000/v1 --model NAME --forget f.jsonl --holdout h.jsonl --samples 0",
)
def ask(
    url: str = typer.Argument(..., metavar="URL", help="The address up to its version, as in https://host/v1"),
    model: str = typer.Option(..., metavar="NAME", help="The model's name at the address", show_default=False),
    forget: str = typer.Option(..., metavar=_FILE, help="Questions whose answers were forgotten", show_default=False),
    retain: str | None = typer.Option(None, metavar=_FILE, help="Questions whose answers were to stay"),
    general: str | None = typer.Option(None, metavar=_FILE, help="Questions that neither set is about"),
    holdout: str | None = typer.Option(
        None, metavar=_FILE, help="Questions about units never trained on: the control; else invented names"
    ),
    out: str = typer.Option("runs/ask", metavar="PATH", help="Folder of what was said and found"),
    samples: int = typer.Option(16, metavar="N", help="Answers to a question at each temperature; 0: greedy alone"),
    temperatures: str = typer.Option("1.0", metavar="A,B", help="Of the samples"),
    limit: int = typer.Option(100, metavar="N", help="Most questions of each set"),
    max_tokens: int = typer.Option(64, "--max-tokens", metavar="N", help="Longest answer"),
    key_variable: str = typer.Option(
        "LETHEON_API_KEY", "--key-variable", metavar="NAME", help="Environment variable that holds the key"
    ),
    timeout: float = typer.Option(60.0, metavar="SECONDS", help="Longest silence of the server"),
    tries: int = typer.Option(5, metavar="N", help="Times that a request is sent before giving up"),
    columns: list[str] = COLUMNS,
    seed: int = typer.Option(0, metavar="N", help="Of bounds and invented names"),
    json: bool = JSON,
    quiet: bool = QUIET,
) -> None:
    """Ask a model that is reachable by text alone: how much of what was to be forgotten it says, greedily and in many
    samples, beside a control. Numbers, no verdict. A run that was stopped goes on by the same command.
    """
    import letheon
    from letheon.audits.black_box import as_data
    from letheon.runs.progress import Progress

    found = letheon.ask(
        url,
        name=model,
        forget_data=forget,
        retain_data=retain,
        general_data=general,
        holdout_data=holdout,
        out=out,
        samples=samples,
        temperatures=_numbers(temperatures),
        limit=limit,
        seed=seed,
        columns=_columns(columns),
        progress=Progress(quiet=quiet),
        key_variable=key_variable,
        timeout=timeout,
        tries=tries,
        max_tokens=max_tokens,
    )
    lines = [
        *table([("asked", "of", "temperature", "value", "bounds", "control", "difference"), *map(_row, found.cells)]),
        f"control: {found.control.sentence}",
        f"{len(found.not_measured)} conditions and probes of an audit are not measured: they need weights",
        found.note,
        f"all of it: {quoted(found.folder / 'ask.json')}",
    ]
    finish(Outcome(as_data(found), lines), command="ask", as_json=json)


def _row(cell: Any) -> Sequence[str]:
    def span(low: float | None, high: float | None) -> str:
        return "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"

    def one(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    difference = span(cell.difference_lower, cell.difference_upper)
    where = f"{cell.role} ({cell.items} questions, {cell.units} units)"
    return (
        cell.column, where, f"{cell.temperature:g}", one(cell.value), span(cell.lower, cell.upper), one(cell.control),
        cell.reason or difference,
    )  # fmt: skip


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise BadInput(f"--temperatures {text!r} are no numbers. Give some such as 0.7,1.0") from None


def _columns(given: Sequence[str]) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in given]
    if broken := [ours for ours, sign, _ in pairs if not sign]:
        raise BadInput(f"--columns {broken[0]!r} has no '='. Give it as answer=reply")
    return {ours: theirs for ours, _, theirs in pairs}
