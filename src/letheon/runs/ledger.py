"""What record.json says: one entry a stage, each holding the hash of the one before it.

    chain: previous_sha256 of stage n = SHA-256(canonical JSON of stage n-1); "" for the first
    the record's own chain_sha256     = SHA-256(canonical JSON of the last stage)

so that a stage cannot be altered without every later one, and the verdict signed over the chain, showing it.

Source: this project.  Checked against: one altered field in each place, one altered byte in each output.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from letheon.errors import BadInput
from letheon.runs.folder import sha256_file, visible_files, write_json, write_text

SCHEMA = "letheon.record/1"
RECORD_NAME = "record.json"
RECIPE_NAME = "recipe.yaml"
CHECKPOINTS_NAME = "checkpoints"
ITEMS_NAME = "items.jsonl"
ANSWERS_NAME = "answers.jsonl"
"""What a model behind an address has said; raw text as well."""
STATUSES = ("started", "interrupted", "failed", "done")


@dataclasses.dataclass(kw_only=True)
class StageRecord:
    """One stage of a run, as record.json holds it."""

    position: int
    """1 for the first stage; the number in the name of its folder."""
    verb: str
    """The command: train, forget, quantize, audit, ..."""
    produces: str | None
    """The name in its folder's name, None for a stage that makes no folder."""
    status: str = "started"
    """started (running, or killed), interrupted (by the person), failed (see error), done."""
    settings: dict[str, Any]
    """Resolved settings, plain JSON values."""
    inputs: dict[str, dict[str, str] | None]
    """name -> {path, sha256}, None for one that was not given. Paths inside the run are relative to it."""
    environment: dict[str, Any]
    """See environment.py; of the last time that the stage was entered."""
    seeds: dict[str, int]
    """Every setting that is a seed, by its dotted name."""
    started: str
    """UTC, ISO 8601."""
    ended: str | None = None
    wall_s: float = 0.0
    """Seconds, summed over all times that it was continued."""
    peak_memory_mb: float = 0.0
    """Largest resident memory, 10^6 bytes."""
    entered: int = 1
    """How many times it was started or continued."""
    error: str | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the stage found worth keeping, e.g. the share of changed weights that survived saving."""
    outputs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """Path relative to the run -> {sha256, bytes, may_be_purged}."""
    previous_sha256: str = ""

    @property
    def label(self) -> str:
        """`1-forget`: the stage's name, and its folder's name if it makes one."""
        return f"{self.position}-{self.produces or self.verb}"

    def sha256(self) -> str:
        """Hash of the stage's canonical JSON."""
        return hashlib.sha256(canonical(dataclasses.asdict(self))).hexdigest()


@dataclasses.dataclass
class Record:
    """record.json of a run."""

    stages: list[StageRecord] = dataclasses.field(default_factory=list)

    @property
    def sha256(self) -> str:
        """The head of the chain: changes with any stage. A verdict signs this."""
        return self.stages[-1].sha256() if self.stages else ""

    def save(self, folder: Path) -> None:
        """Write record.json, then recipe.yaml, each whole or not at all."""
        stages = [dataclasses.asdict(stage) for stage in self.stages]
        write_json(folder / RECORD_NAME, {"schema": SCHEMA, "chain_sha256": self.sha256, "stages": stages})
        recipe = yaml.safe_dump(self.recipe(), sort_keys=False, allow_unicode=True)
        write_text(folder / RECIPE_NAME, recipe)

    def recipe(self) -> dict[str, Any]:
        """What recipe.yaml says: every stage's verb, inputs and resolved settings."""
        return {
            "stages": [
                {
                    "verb": stage.verb,
                    "produces": stage.produces,
                    "inputs": {name: given["path"] if given else None for name, given in stage.inputs.items()},
                    "settings": stage.settings,
                }
                for stage in self.stages
            ]
        }


def load_record(folder: Path) -> Record:
    """Read record.json; an empty record where there is none yet. Raises BadInput when it is not one."""
    path = folder / RECORD_NAME
    if not path.exists():
        return Record()
    return Record([_stage(entry, path) for entry in _read(path)["stages"]])


def _read(path: Path) -> dict[str, Any]:
    remedy = "Give another --out, or restore the file."
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadInput(f"{path} cannot be read as a record: {error}. {remedy}") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA or not isinstance(found.get("stages"), list):
        raise BadInput(f"{path} is not a record of this version (schema {schema!r}, not {SCHEMA!r}). {remedy}")
    return dict(found)


def _stage(entry: Any, path: Path) -> StageRecord:
    try:
        stage = StageRecord(**entry)
        canonical(dataclasses.asdict(stage))
    except (TypeError, ValueError) as error:
        raise BadInput(f"{path}: a stage cannot be read ({error}). Restore the file.") from error
    if stage.status not in STATUSES:
        raise BadInput(f"{path}: {stage.status!r} is no status of a stage. Known: {', '.join(STATUSES)}.")
    return stage


def verify_record(folder: Path) -> list[str]:
    """Every fault of a run's record, in words; empty when it is whole.

    Checks the chain of hashes, that every stage is done, that recipe.yaml says the same, and every output
    file. Files that may be purged may be missing, but not altered.
    """
    path = folder / RECORD_NAME
    if not path.exists():
        return [f"{path} is missing. A run has one; give the folder that holds it."]
    try:
        record, head = load_record(folder), _read(path).get("chain_sha256")
    except BadInput as error:
        return error.problems
    return [
        *_chain_problems(record, head),
        *(f"{stage.label}: {stage.status}, not done" for stage in record.stages if stage.status != "done"),
        *_recipe_problems(record, folder),
        *(problem for stage in record.stages for problem in output_problems(stage, folder)),
        *(problem for stage in record.stages for problem in _unrecorded(stage, folder)),
    ]


def _chain_problems(record: Record, head: Any) -> list[str]:
    problems, previous = [], ""
    for stage in record.stages:
        if stage.previous_sha256 != previous:
            problems.append(f"{RECORD_NAME}: the entry before {stage.label} was altered afterwards")
        previous = stage.sha256()
    if head != previous:
        problems.append(f"{RECORD_NAME}: its last entry was altered")
    return problems


def _recipe_problems(record: Record, folder: Path) -> list[str]:
    try:
        found = yaml.safe_load((folder / RECIPE_NAME).read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        return [f"{RECIPE_NAME} cannot be read: {error}"]
    return [] if found == record.recipe() else [f"{RECIPE_NAME} differs from {RECORD_NAME}"]


def output_problems(stage: StageRecord, folder: Path) -> list[str]:
    """What is missing or altered among the files that a stage made."""
    problems = []
    for name, entry in stage.outputs.items():
        file = folder / name
        if not file.is_file():
            if not entry.get("may_be_purged"):
                problems.append(f"{name} is missing")
        elif (now := sha256_file(file)) != entry["sha256"]:
            problems.append(f"{name} was altered: its hash was {entry['sha256'][:12]}, now {now[:12]}")
    return problems


def _unrecorded(stage: StageRecord, folder: Path) -> list[str]:
    """Files in the folder of a stage that it did not make: a loader might read them all the same."""
    made = folder / stage.label
    if stage.produces is None or stage.status != "done" or not made.is_dir():
        return []
    names = [file.relative_to(folder).as_posix() for file in visible_files(made)]
    return [f"{name} was not made by this run" for name in names if name not in stage.outputs]


def canonical(obj: Any) -> bytes:
    """The one way of writing `obj` as JSON that hashes and signatures are made over."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def plain(value: Any, name: str = "settings") -> Any:
    """Settings as plain JSON values: dataclasses and mappings become dicts, tuples lists, paths text.

    Raises BadInput, naming the setting, on anything else, and on NaN or infinity: a record could not hold it.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner, f"{name}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, f"{name}[{index}]") for index, inner in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise BadInput(f"{name} = {value!r} cannot be recorded. Use text, finite numbers, lists and mappings.")


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names.

    >>> flattened({"smooth": {"name": "sam", "rho": 0.05}})
    {'smooth.name': 'sam', 'smooth.rho': 0.05}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat.update(flattened(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
