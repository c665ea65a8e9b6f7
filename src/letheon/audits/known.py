"""What the run of forget that made a model knows: its original, its data, and their hashes when it read them.

A request is what the run was given, not what lies at its paths today. A file that is read from the record must be that
file still; one that is named instead, with another content, is asked about, and the verdict's scope says so.

A model may have forgotten several times: the run's own model was made by a run of forget, and so on. Then the original
is the model that the first of them began with, and what the others forgot is to be asked about as well.

Source: this project.  Checked against: a changed file, a changed original, a part of the set in the set's place, a
moved run; three runs in a row, a rounded model between two of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letheon.errors import require
from letheon.runs.folder import sha256_file, sha256_folder
from letheon.runs.record import RunFolder, StageRecord, made_by


@dataclass(frozen=True)
class _Input:
    """An input of a run of forget, as an audit speaks of it."""

    name: str
    """In the record."""
    said: str
    option: str
    caveat: str
    """What the scope says when another content is asked about."""


INPUTS = {
    "original": _Input(
        "model", "original", "--original DIR", "the original is not the model that the run of forget began with"
    ),
    "forget_data": _Input(
        "forget_data", "forget set", "--forget FILE", "the forget set is not the one the run forgot"
    ),
    "retain_data": _Input(
        "retain_data", "retain set", "--retain FILE", "the retain set is not the one the run kept"
    ),
    "holdout_data": _Input(
        "holdout_data", "holdout set", "--holdout FILE", "the holdout set is not the one the run was given"
    ),
}  # fmt: skip
"""Setting of an audit -> what it was to the run."""
_RESTORE = "Restore it, or name what to ask about with --earlier A,B"


@dataclass(frozen=True)
class Earlier:
    """What a run of forget before this one was asked to forget."""

    stage: Path
    """The folder that it made."""
    path: Path
    sha256: str
    """Of the forget set when that run began."""


@dataclass(frozen=True)
class Known:
    """What is known of a model. Of one that no run of forget has made: nothing, or the run alone."""

    run: Path | None = None
    """The run that made the model; None when no run did."""
    stage: Path | None = None
    """The folder that the run of forget made."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Setting of an audit -> value."""
    recorded: Mapping[str, str] = field(default_factory=dict)
    """Setting -> hash of that input when the run began."""
    gate_units: frozenset[str] = frozenset()
    """Hashes of the units that the gates have seen."""
    earlier: tuple[Earlier, ...] = ()
    """The runs of forget before it, first things first; none that had the same forget set as a later one."""
    broken: tuple[str, ...] = ()
    """Why it is not certain what was forgotten before."""

    def faults(self, paths: Mapping[str, Path | None]) -> list[str]:
        """Inputs, by the record's paths, that are no longer what the run was given: setting -> path."""
        return [
            f"{INPUTS[name].said} {path}: is not the one that {self.stage} was made with any more (sha256 "
            f"{self.recorded[name][:12]} then, {now[:12]} now). Restore it, or name what to ask about with "
            f"{INPUTS[name].option}"
            for name, path, now in self._others(paths)
        ]

    def faults_of_earlier(self) -> list[str]:
        """Earlier forget sets that are gone, or no longer what those runs were given."""
        problems = list(self.broken)
        for one in self.earlier:
            now = sha256_file(one.path) if one.path.is_file() else ""
            if now != one.sha256:
                found = f"is not the one that {one.stage} was made with any more" if now else "is not there any more"
                hashes = (
                    f" (sha256 {one.sha256[:12]} then, {now[:12]} now)" if now else f"; {one.stage} was made with it"
                )
                problems.append(f"earlier forget set {one.path}: {found}{hashes}. {_RESTORE}")
        return problems

    def caveats(self, paths: Mapping[str, Path | None], earlier: Sequence[Path]) -> list[str]:
        """What the scope must say of inputs that somebody has named.

        Args:
            paths: setting -> path.
            earlier: what is asked about as forgotten, the forget set among it.
        """
        there = {sha256_file(path) for path in earlier if path.is_file()}
        left_out = sum(one.sha256 not in there for one in self.earlier)
        before = f"{left_out} earlier request{'s' if left_out != 1 else ''} of the same model not asked about"
        return [*(INPUTS[name].caveat for name, _, _ in self._others(paths)), *([before] if left_out else [])]

    def _others(self, paths: Mapping[str, Path | None]) -> Iterable[tuple[str, Path, str]]:
        """(setting, path, hash) of inputs with another content than the record has."""
        for name, path in paths.items():
            if name not in self.recorded or path is None or not path.exists():  # its reader says what is missing
                continue
            now = sha256_folder(path) if path.is_dir() else sha256_file(path)
            if now != self.recorded[name]:
                yield name, path, now


def known_of(model: Path) -> Known:
    """What the run that made the model knows; a rounded model is about the requests of the one it was made from."""
    made = made_by(model)
    if made is None:
        return Known()
    runs, broken = _runs_of_forget(made)
    if not runs:
        return Known(made[0].path)
    (run, entry), (first, first_entry) = runs[0], runs[-1]
    values: dict[str, Any] = {name: run.input_path(entry, each.name) for name, each in INPUTS.items()}
    values["original"] = first.input_path(first_entry, "model")
    values["shipped"] = _shipped_from(run, model)
    values["template"], values["columns"] = entry.settings["template"], entry.settings["columns"]
    recorded = {name: given["sha256"] for name, each in INPUTS.items() if (given := entry.inputs.get(each.name))}
    recorded["original"] = _recorded(first_entry, "model")["sha256"]
    return Known(
        made[0].path,
        run.path / entry.label,
        values,
        recorded,
        frozenset(unit for _, one in runs for unit in one.notes.get("gate_units", [])),
        _earlier(runs),
        broken,
    )


def _runs_of_forget(
    made: tuple[RunFolder, StageRecord] | None,
) -> tuple[list[tuple[RunFolder, StageRecord]], tuple[str, ...]]:
    """The stages of forget that a model went through, last things first, and what is broken between them.

    What was rounded between two of them is passed over.
    """
    found: list[tuple[RunFolder, StageRecord]] = []
    faults: list[str] = []
    broken: list[str] = []
    while made is not None and made[1].verb in ("forget", "quantize"):
        run, entry = made
        if entry.verb == "forget":
            found.append(made)
            broken += faults  # of the way to here: behind the first run of forget nothing matters
            faults = []
        source, then = run.input_path(entry, "model"), _recorded(entry, "model")["sha256"]
        if source is not None and source.is_dir() and (now := sha256_folder(source)) != then:
            faults.append(
                f"{source}: is not the model that {run.path / entry.label} was made from any more (sha256 {then[:12]} "
                f"then, {now[:12]} now), so what was forgotten before is not certain. {_RESTORE}"
            )
        made = None if source is None else made_by(source)
    return found, tuple(broken)


def _earlier(runs: Sequence[tuple[RunFolder, StageRecord]]) -> tuple[Earlier, ...]:
    """The forget sets of all runs but the last, each content once."""
    seen = {_recorded(runs[0][1], "forget_data")["sha256"]}
    found: list[Earlier] = []
    for run, entry in runs[1:]:
        digest, path = _recorded(entry, "forget_data")["sha256"], run.input_path(entry, "forget_data")
        if digest not in seen and path is not None:
            seen.add(digest)
            found.append(Earlier(run.path / entry.label, path, digest))
    return tuple(reversed(found))


def _recorded(entry: StageRecord, name: str) -> dict[str, str]:
    """Path and hash of an input without which a stage cannot be."""
    given = entry.inputs.get(name)
    require(given is not None, f"record of {entry.label}: no {name!r} among its inputs. Restore record.json")
    assert given is not None
    return given


def _shipped_from(run: RunFolder, model: Path) -> Path | None:
    """The folder that the same run made from the model by rounding it, if it did."""
    for entry in run.record().stages:
        if _is_rounded_from(run, entry, model):
            return run.path / entry.label
    return None


def _is_rounded_from(run: RunFolder, entry: StageRecord, model: Path) -> bool:
    source = run.input_path(entry, "model")
    is_from_it = source is not None and source.resolve() == model.resolve()
    return entry.verb == "quantize" and entry.status == "done" and is_from_it
