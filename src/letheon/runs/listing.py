"""What runs there are, and what they still hold that was to be erased.

Source: this project.  Checked against: a damaged record, a run that verifies after a purge.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from letheon.errors import BadInput
from letheon.runs.folder import disk_errors, lock, remove_leftovers
from letheon.runs.ledger import ANSWERS_NAME, CHECKPOINTS_NAME, ITEMS_NAME, RECORD_NAME, load_record
from letheon.runs.signing import SALT_NAME


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One line of `letheon runs`."""

    name: str
    path: Path
    stages: list[tuple[str, str]]
    """(label, status) of each stage."""
    started: str | None
    wall_s: float
    verdict: str | None
    """The word of verdict.json."""
    holds_raw_text: bool
    """Whether there is anything that `purge` would remove."""
    problem: str | None
    """Why the record could not be read."""
    command: str | None
    """What was typed to begin or continue the stage that is not done; None where all are, or nothing was typed."""


def list_runs(root: Path) -> list[RunSummary]:
    """All runs directly below `root`, by name. One whose record cannot be read is listed with its problem."""
    if not root.is_dir():
        return []
    return [_summary(folder) for folder in sorted(root.iterdir()) if (folder / RECORD_NAME).is_file()]


def purge(folder: Path) -> list[Path]:
    """Remove what holds raw text from a run (items, checkpoints, caches) and the salt of its item ids.

    Without the salt nobody, the key's owner included, can test a guessed text against the ids in audit.json.
    What was recorded and signed stays valid. Returns what was removed; report.html is not touched.
    Raises BadInput when `folder` is not a run, or a process is working in it.
    """
    if not (folder / RECORD_NAME).is_file() and not (folder / ANSWERS_NAME).is_file():
        raise BadInput(f"{folder} is not a run: it has no {RECORD_NAME}. See `letheon runs`.")
    with lock(folder):
        remove_leftovers(folder)
        salt = folder / SALT_NAME
        removed = [*_raw_text(folder), *([salt] if salt.exists() else [])]
        for path in removed:
            with disk_errors(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return removed


def _raw_text(folder: Path) -> list[Path]:
    checkpoints = folder / CHECKPOINTS_NAME
    named = sorted(path for name in (ITEMS_NAME, ANSWERS_NAME) for path in folder.rglob(name))
    items = [path for path in named if checkpoints not in path.parents]
    return [checkpoints, *items] if checkpoints.is_dir() else items


def _summary(folder: Path) -> RunSummary:
    problem, stages = None, []
    try:
        stages = load_record(folder).stages
    except BadInput as error:
        problem = str(error)
    return RunSummary(
        name=folder.name,
        path=folder,
        stages=[(stage.label, stage.status) for stage in stages],
        started=stages[0].started if stages else None,
        wall_s=round(sum((stage.wall_s for stage in stages), start=0.0), 3),
        verdict=_verdict(folder),
        holds_raw_text=bool(_raw_text(folder)),
        problem=problem,
        command=next((stage.environment.get("command") for stage in stages if stage.status != "done"), None),
    )


def _verdict(folder: Path) -> str | None:
    try:
        found = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
        return str(found["word"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
