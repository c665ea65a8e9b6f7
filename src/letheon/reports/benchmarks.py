"""A benchmark's figures as a page and as a table: every figure under its exact name, nothing measured again.

No raw text is in either, so `letheon runs purge` leaves them. The same bytes every time.

Source: this project.  Checked against: each number against benchmark.json; markup in a name and in a path; a file that
is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from letheon.errors import BadInput
from letheon.reports.files import FOLDER, as_csv
from letheon.reports.reading import json_object, printable
from letheon.reports.templates import template
from letheon.reports.wording import moment
from letheon.runs.folder import write_text
from letheon.runs.ledger import load_record

SCHEMA = "letheon.benchmark/1"
LOG_NAME = "benchmark.json"
PAGE_NAME = "benchmark.html"
HEADS = ("figure", "value", "95 % interval", "n", "better")
COLUMNS = ("name", "value", "low", "high", "n", "better", "note")
Figure = Mapping[str, Any]


def has_benchmark(run: Path) -> bool:
    """Whether there is the log of a benchmark in a run's folder."""
    return (run / LOG_NAME).is_file()


def write_benchmark(run: Path) -> list[Path]:
    """Write `run`/benchmark.html and `run`/figures/benchmark.csv from the log in the run's folder; returns both paths.

    Raises:
        BadInput: there is no log in `run`, or it is none of this version.
        CannotFinish: the disk refuses.
    """
    log = _read(run)
    stages = [stage for stage in load_record(run).stages if stage.verb == "benchmark" and stage.ended]
    settings = log["settings"]["benchmark"]
    shown = template("benchmark.html.j2").render(
        name=printable(run.resolve().name),
        benchmark=printable(str(settings.get("name", "")) if isinstance(settings, Mapping) else str(settings)),
        created=moment(str(stages[-1].ended)) if stages else "",
        facts=_facts(log),
        heads=HEADS,
        rows=rows(log["figures"]),
    )
    page, numbers = run / PAGE_NAME, run / FOLDER / "benchmark.csv"
    write_text(page, shown)
    write_text(numbers, as_csv(COLUMNS, log["figures"]))
    return [page, numbers]


def rows(figures: Iterable[Figure]) -> list[tuple[str, ...]]:
    """One row a figure, under `HEADS`: not measured is said with its reason, and is no number."""
    return [
        (str(figure["name"]), _number(figure["value"]), _interval(figure), str(figure["n"]), _note(figure))
        for figure in figures
    ]


def _read(run: Path) -> dict[str, Any]:
    path = run / LOG_NAME
    log = json_object(path, remedy="Run `letheon benchmark` on the model first.")
    figures = log.get("figures")
    is_whole = isinstance(figures, list) and all(isinstance(one, dict) and set(COLUMNS) <= set(one) for one in figures)
    if log.get("schema") != SCHEMA or not is_whole or "benchmark" not in log.get("settings", {}):
        raise BadInput(
            f"{path} is not the log of a benchmark of this version (schema {log.get('schema')!r}, not {SCHEMA!r}, or "
            "damaged). Run `letheon benchmark` again."
        )
    return log


def _facts(log: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, path, SHA-256) of the model, the reference and the data."""
    given = {"model": log.get("model"), "reference": log.get("reference"), **(log.get("data") or {})}
    return [
        (name, printable(str(one.get("path", ""))), str(one.get("sha256", "")))
        for name, one in given.items()
        if isinstance(one, Mapping)
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def _interval(figure: Figure) -> str:
    return "" if figure["low"] is None else f"{_number(figure['low'])} .. {_number(figure['high'])}"


def _note(figure: Figure) -> str:
    return "; ".join(part for part in (figure["better"], figure["note"]) if part)
