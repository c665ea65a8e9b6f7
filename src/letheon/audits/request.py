"""What `letheon audit` was asked for, once it is checked; and the checks of what belongs together.

Source: this project.  Checked against: one refused request for each fault, all faults at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from letheon.audits.attacked import rows_of
from letheon.audits.earlier import Joined, caveat, joined
from letheon.audits.inputs import compare_data, compare_models
from letheon.audits.known import INPUTS, Known, known_of
from letheon.audits.plan import SHIPPED
from letheon.audits.protocol import Protocol, read_protocol
from letheon.audits.scope import open_warning
from letheon.data.records import DataFile, hashed_unit, read_records
from letheon.errors import BadInput, require
from letheon.methods import build, name_of
from letheon.models import ModelFolder, inspect_model, pick_device, read_gate_units
from letheon.quantization.reading import inspect_any
from letheon.runs.folder import sha256_file
from letheon.settings import Draft
from letheon.training.prepare import collect

if TYPE_CHECKING:
    from letheon.audits.audit import AuditSettings

ROLES = ("forget", "retain", "holdout", "general")
MODELS = ("model", "original", "reference", "shipped")


@dataclass(frozen=True)
class Request:
    """A checked audit: nothing loaded yet."""

    wanted: AuditSettings
    folders: dict[str, ModelFolder]
    data: dict[str, DataFile]
    protocol: Protocol
    also: Mapping[str, Any]
    """Row -> condition, beside the protocol's."""
    device: str
    gate_units: frozenset[str]
    run: Path
    warnings: tuple[str, ...]
    caveats: tuple[str, ...]
    """What the verdict's scope must say of the inputs."""
    earlier: tuple[DataFile, ...] = ()
    """The forget sets of earlier requests, first things first."""

    @property
    def requests(self) -> Joined:
        """All that is to be forgotten, the newest request last."""
        return joined((*self.earlier, self.data["forget"]))

    @property
    def asked_data(self) -> dict[str, DataFile]:
        """Role -> records that are asked about."""
        return {**self.data, "forget": self.requests.file} if self.earlier else self.data


def checked(drafted: Draft[AuditSettings]) -> Request:
    """Settings with what the forget run knows, every folder and file checked. Raises BadInput with all faults."""
    asked = drafted.made
    known = Known() if "model" in drafted.faulty else known_of(asked.model)
    wanted = _with_known(asked, known)
    paths = {name: getattr(wanted, name) for name in MODELS if getattr(wanted, name) is not None}
    files = {role: getattr(wanted, f"{role}_data") for role in ROLES if getattr(wanted, f"{role}_data") is not None}

    def inspected(name: str) -> ModelFolder:
        role = "MODEL" if name == "model" else name
        return (inspect_any if name in ("model", SHIPPED) else inspect_model)(paths[name], role=role)

    before = _earlier_files(wanted)

    def read(role: str) -> DataFile | None:
        path = files[role] if role in files else before[role]
        return None if "columns" in drafted.faulty else read_records(path, role=role, columns=wanted.columns)

    *found, protocol, also, device, _, _, _, _ = collect(
        *(partial(inspected, name) for name in paths),
        *(partial(read, role) for role in (*files, *before)),
        lambda: read_protocol(wanted.protocol),
        lambda: _also(wanted),
        lambda: pick_device(wanted.device),
        lambda: _check_numbers(wanted),
        lambda: None if "model" in drafted.faulty else _check_given(wanted),
        lambda: _check_unchanged(asked, known),
        drafted.checked,
    )
    folders: dict[str, ModelFolder] = dict(zip(paths, found[: len(paths)], strict=True))
    read_files = found[len(paths) :]
    data: dict[str, DataFile] = dict(zip(files, read_files, strict=False))
    earlier = tuple(read_files[len(files) :])
    of_models, of_data = collect(lambda: compare_models(folders), lambda: compare_data(data, earlier))
    about = [file.path for file in (*earlier, data["forget"])]
    others = known.caveats({name: getattr(asked, name) for name in INPUTS}, about)
    used, of_gate = _gate_units(folders["model"].path, known, data)
    warnings = [
        *(hint for file in (*data.values(), *earlier) for hint in file.hints),
        *of_models.warnings,
        *of_data.warnings,
        *of_gate,
        *(f"{caveat}; the scope says so" for caveat in others),
    ]
    if missing := open_warning(data):
        warnings.append(missing)
    run = wanted.out or known.run or Path("runs") / f"{wanted.model.resolve().name}-audit"
    several = [caveat(len(about))] if earlier else []
    return Request(
        wanted,
        folders,
        data,
        protocol,
        also,
        device,
        used,
        run,
        tuple(warnings),
        (*several, *others, *of_data.caveats),
        earlier,
    )


def _with_known(asked: AuditSettings, known: Known) -> AuditSettings:
    """What is not given is read from the run that made the model."""
    default_template = type(asked)(model=asked.model).template
    if asked.earlier_data is None and asked.forget_data is None:  # who names what to ask about names all of it
        asked = replace(asked, earlier_data=[one.path for one in known.earlier])
    return replace(
        asked,
        **{
            name: value
            for name, value in known.values.items()
            if getattr(asked, name) in (None, {}) or (name == "template" and asked.template == default_template)
        },
    )


def _check_unchanged(asked: AuditSettings, known: Known) -> None:
    """What is read from the record must still be what the run was given."""
    faults = known.faults({name: known.values.get(name) for name in INPUTS if getattr(asked, name) is None})
    if asked.earlier_data is None and asked.forget_data is None:
        faults += known.faults_of_earlier()
    if faults:
        raise BadInput(faults)


def _earlier_files(wanted: AuditSettings) -> dict[str, Path]:
    """Role -> forget set of an earlier request, each content once and none that is the newest again."""
    newest = wanted.forget_data
    seen = {sha256_file(newest)} if newest is not None and newest.is_file() else set()
    found: dict[str, Path] = {}
    for path in wanted.earlier_data or []:
        digest = sha256_file(path) if path.is_file() else str(path)  # its reader says what is missing
        if digest not in seen:
            seen.add(digest)
            found[f"earlier request {len(found) + 1}"] = path
    return found


def _gate_units(model: Path, known: Known, data: Mapping[str, DataFile]) -> tuple[frozenset[str], list[str]]:
    """The holdout units that a gate has seen, and what must be said of them."""
    seen = known.gate_units | set(read_gate_units(model))
    if not seen or "holdout" not in data:
        return frozenset(), []
    units = data["holdout"].units
    used = [unit for unit in units if hashed_unit(unit) in seen]
    if used:
        left = len(units) - len(used)
        return frozenset(used), [
            f"{len(used)} holdout units were used by the gate; the audit asks about the other {left}"
        ]
    return frozenset(), [
        f"the gate used {len(seen)} holdout units, and none of that name is in this holdout set. If they are "
        "in it under other names they are no strangers: give the holdout set and columns of the forget run"
    ]


def _also(wanted: AuditSettings) -> dict[str, Any]:
    """The rows that the protocol does not have. Raises BadInput: a method that is always among the protocol's."""
    if wanted.also is None:
        return {}
    condition = build("condition", wanted.also, where="also")
    name = Path(name_of(condition)).stem
    if name in ("as_is", SHIPPED):
        remedy = "name the folder with --shipped DIR" if name == SHIPPED else "leave it out"
        raise BadInput(f"also: {name} is a row of every audit; {remedy}")
    return rows_of(name, condition)


def _check_numbers(wanted: AuditSettings) -> None:
    require(wanted.seed >= 0, f"seed must be 0 or more, got {wanted.seed}")
    require(
        wanted.budget_s is None or wanted.budget_s > 0,
        f"budget_s must be > 0 seconds, got {wanted.budget_s}; leave it out for no end",
    )
    require(
        wanted.resamples is None or wanted.resamples >= 1000, f"resamples must be at least 1000, got {wanted.resamples}"
    )


def _check_given(wanted: AuditSettings) -> None:
    given = {"--original DIR": wanted.original, "--forget FILE": wanted.forget_data}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise BadInput(
            f"MODEL {wanted.model} was not made by a run of letheon forget, so {' and '.join(missing)} must be given"
        )
