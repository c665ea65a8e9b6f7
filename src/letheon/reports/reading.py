"""What lies in the folder of an audited run, read once.

Source: this project.  Checked against: a folder without an audit, one of another schema, torn last lines.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letheon.errors import BadInput
from letheon.runs.ledger import ITEMS_NAME, StageRecord, load_record

SCHEMA = "letheon.audit/1"
Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class AuditedRun:
    """An audit with everything that was kept beside it."""

    name: str
    audit: dict[str, Any]
    signed: dict[str, Any] = field(default_factory=dict)
    """verdict.json; empty when there is none."""
    stages: list[StageRecord] = field(default_factory=list)
    items: Lines | None = None
    """items.jsonl; None when it was purged or never written."""
    metrics: dict[str, Lines] = field(default_factory=dict)
    """Stage label -> lines of its metrics.jsonl."""

    @property
    def verdict(self) -> dict[str, Any]:
        """word, reasons, scope."""
        found = self.signed if self.signed.get("word") else self.audit.get("verdict")
        return dict(found) if found and found.get("word") else {}

    @property
    def created(self) -> str | None:
        """When the verdict was given, or the last stage ended."""
        ended = [stage.ended for stage in self.stages if stage.ended]
        created = self.signed.get("created") or (ended[-1] if ended else None)
        return None if created is None else str(created)


def read_run(run: Path) -> AuditedRun:
    """Everything a page shows of a run. Raises BadInput when there is no audit in it."""
    audit = json_object(run / "audit.json", remedy="Run `letheon audit` on the model first.")
    if audit.get("schema") != SCHEMA:
        raise BadInput(
            f"{run / 'audit.json'} is not an audit of this version (schema {audit.get('schema')!r}, not {SCHEMA!r}). "
            "Run `letheon audit` again."
        )
    verdict, items = run / "verdict.json", run / ITEMS_NAME
    metrics = {file.parent.name: _lines(file) for file in sorted(run.glob("*/metrics.jsonl"), key=_position)}
    return AuditedRun(
        name=printable(run.resolve().name),
        audit=audit,
        signed=json_object(verdict, remedy="Restore it, or audit again.") if verdict.exists() else {},
        stages=load_record(run).stages,
        items=_lines(items) if items.exists() else None,
        metrics={label: lines for label, lines in metrics.items() if lines},
    )


def printable(text: str) -> str:
    """Text without control characters and broken Unicode, which no page and no SVG may hold."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def json_object(path: Path, *, remedy: str) -> dict[str, Any]:
    """A file that holds one object. Raises BadInput that ends with the remedy."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}. {remedy}") from error
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}. {remedy}") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path} is a JSON {type(found).__name__}, not an object. {remedy}")
    return found


def _lines(path: Path) -> Lines:
    """The whole lines of a JSON lines file; one torn by a kill is left out."""
    lines: Lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _position(file: Path) -> tuple[int, str]:
    """Stages in the order in which they ran: 2-forget before 10-train."""
    number, _, _ = file.parent.name.partition("-")
    return (int(number) if number.isdigit() else 0, file.parent.name)
