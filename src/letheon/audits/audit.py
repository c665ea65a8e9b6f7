"""Audit a model that claims to have forgotten: every probe under every condition, against a control, by a protocol.

Writes audit.json (every cell, and the scores it is made of), items.jsonl (raw prompts and answers; may be purged) and
verdict.json (signed) into the run folder. Saved files are audited, never live objects.

Source: this project.  Checked against: the retrained reference, a collapsed model and a sham deletion on the embedded
world; `letheon verify`, which makes every cell again from the scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from letheon.audits.asked import AskedSets
from letheon.audits.attacked import Attack, rows_of, stops
from letheon.audits.budget import Budget
from letheon.audits.codes import code_figures
from letheon.audits.columns import Scores
from letheon.audits.earlier import Joined, caveat, each_alone, joined, with_each
from letheon.audits.inputs import compare_data, compare_models
from letheon.audits.known import INPUTS, Known, known_of
from letheon.audits.matrix import Sources, make_cells, required_cells, utility_rows
from letheon.audits.plan import SHIPPED, Plan, make_plan, not_applicable
from letheon.audits.protocol import Protocol, read_protocol
from letheon.audits.samples import most_at, said
from letheon.audits.scope import cut_caveats, open_warning
from letheon.audits.scorer import Scorer
from letheon.audits.stored import Rows, to_plain
from letheon.audits.tables import Asker
from letheon.audits.verdict import Verdict, decide
from letheon.audits.verdict_file import make_key, write_verdict
from letheon.audits.wordings import silencing
from letheon.data.encode import Encoder
from letheon.data.records import DataFile, hashed_unit, read_records
from letheon.errors import BadInput, NotMeasured, require
from letheon.methods import build, describe, name_of
from letheon.models import ModelFolder, inspect_model, load_model, load_tokenizer, pick_device, read_gate_units
from letheon.numerics.scores import privleak
from letheon.quantization.reading import inspect_any
from letheon.runs.environment import describe_environment
from letheon.runs.folder import sha256_file, sha256_folder, write_text
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder
from letheon.runs.signing import item_key, keyed_hash
from letheon.settings import draft
from letheon.training.losses import Body
from letheon.training.prepare import collect, environment

SCHEMA = "letheon.audit/1"
ROLES = ("forget", "retain", "holdout", "general")
MODELS = ("model", "original", "reference", "shipped")


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """Settings of `letheon audit`. What a forget run knows (original, data, template) is read from its record."""

    model: Path
    """The model folder under audit."""
    original: Path | None = None
    """The model before it was unlearned."""
    forget_data: Path | None = None
    """What should be gone."""
    retain_data: Path | None = None
    """What should still be there."""
    holdout_data: Path | None = None
    """The same kind of records, never trained on; units that a gate has seen are left out."""
    general_data: Path | None = None
    """General knowledge that no term of the unlearning has seen."""
    earlier_data: list[Path] | None = None
    """What earlier requests asked to forget, and must stay forgotten; null: what the record of the model says."""
    reference: Path | None = None
    """A model retrained without the forget set: the best control."""
    shipped: Path | None = None
    """The folder that ships, where it is another one (a quantized copy)."""
    protocol: str = "quick-1"
    """Which cells are needed for a verdict, and their margins."""
    also: Any = None
    """One more thing to do to the model before it is asked, a method of kind `condition`, such as relearn. Its rows are
    shown with their intervals; the verdict is the protocol's and does not rest on them."""
    out: Path | None = None
    """The run folder; null: the run that made the model, or runs/NAME-audit."""
    seed: int = 0
    """Of the resampling and of invented names."""
    resamples: int | None = None
    """Resamples of an interval; null: the protocol's. Another number is for trying things out: the verdict says so."""
    budget_s: float | None = None
    """Seconds after which no further condition is begun, > 0. What was not begun is not measured, "budget exhausted",
    and never passed. null: no end."""
    template: str = "auto"
    """auto, plain, chat, or a text with {prompt}."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our field -> the file's."""
    device: str = "auto"
    """auto, cpu, cuda."""


@dataclass(frozen=True)
class AuditResult:
    """Where the audit is, and what was decided."""

    run: Path
    audit_path: Path
    verdict: Verdict
    audit: dict[str, Any]


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


def audit(model: Path | str, *, progress: Progress | None = None, **settings: Any) -> AuditResult:
    """Measure what `model` still knows, and decide.

    Args:
        model: a model folder; after `letheon forget`, everything else is read from its run's record.
        progress: where lines for a person go; by default standard error.
        settings: the fields of `AuditSettings`.
    Raises:
        BadInput: with all faults of all inputs, before anything is loaded.
    """
    progress = progress or Progress()
    request = check_request({"model": model, **settings})
    wanted = request.wanted
    inputs = {name: getattr(wanted, name) for name in MODELS} | {
        f"{role}_data": getattr(wanted, f"{role}_data") for role in ROLES
    }
    own = next((name_of(condition) for condition in request.also.values()), "")
    earlier = enumerate((file.path for file in request.earlier), start=1)
    inputs.update({f"earlier_data_{number}": path for number, path in earlier})
    inputs["also_code"] = Path(own) if own.endswith(".py") else None
    kept: dict[str, Any] = {
        "protocol": wanted.protocol,
        "protocol_sha256": request.protocol.sha256,
        "seed": wanted.seed,
        "resamples": wanted.resamples or request.protocol.resamples,
        "also": {name: describe(condition) for name, condition in request.also.items()},
        **({} if wanted.budget_s is None else {"budget_s": wanted.budget_s}),
        "template": wanted.template,
        "columns": wanted.columns,
    }
    run = RunFolder.open(request.run, environment=environment(request.device), allow_changed_machine=True)
    # What cannot be asked is refused before the stage begins: a stage that has begun takes no other settings.
    prepared = None if _is_done(run) else prepare(request)
    warnings = [*request.warnings, *(prepared[1].warnings if prepared else [])]
    for warning in warnings:
        progress.warn(warning)
    with run.stage("audit", kept, inputs, None) as stage:
        if not stage.is_done:
            make_key(progress)
            for warning in warnings:
                stage.warn(warning)
            encoder, plan = prepared or prepare(request)
            found, items = _measure(request, encoder, plan, kept, progress)
            write_text(run.path / "audit.json", _json(found))
            lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in items)
            write_text(run.path / "items.jsonl", "".join(lines))
            stage.produced(run.path / "audit.json")
            stage.produced(run.path / "items.jsonl", may_be_purged=True)
    found = json.loads((run.path / "audit.json").read_text(encoding="utf-8"))
    verdict = Verdict(found["verdict"]["word"], tuple(found["verdict"]["reasons"]), found["verdict"]["scope"])
    write_verdict(run.path, verdict, progress)
    return AuditResult(run.path, run.path / "audit.json", verdict, found)


def check_request(values: Mapping[str, Any]) -> Request:
    """Settings with what the forget run knows, every folder and file checked. Raises BadInput with all faults."""
    drafted = draft(AuditSettings, values, where="audit")
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
    default_template = AuditSettings(model=asked.model).template
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


def _is_done(run: RunFolder) -> bool:
    return any(entry.verb == "audit" and entry.status == "done" for entry in run.record().stages)


def prepare(request: Request) -> tuple[Encoder, Plan]:
    """Everything that may be asked, as tokens. Raises BadInput: what cannot be encoded, or not for all models alike."""
    wanted, folders = request.wanted, request.folders
    encoder = Encoder(
        load_tokenizer(folders["model"].path), max_length=folders["model"].window, template=wanted.template
    )
    collect(*(partial(_check_tokenizer, encoder, folders["model"], name, folder) for name, folder in folders.items()))
    plan = make_plan(
        request.protocol,
        request.asked_data,
        encoder=encoder,
        also=request.also,
        has_reference="reference" in folders,
        shipped=folders[SHIPPED].path if SHIPPED in folders else None,
        gate_units=request.gate_units,
        seed=wanted.seed,
    )
    return encoder, plan


def _check_tokenizer(encoder: Encoder, mine: ModelFolder, name: str, folder: ModelFolder) -> None:
    """All models are asked the same tokens, so these must mean the same to all."""
    files = [place.path / "tokenizer.json" for place in (mine, folder)]
    if all(file.is_file() for file in files) and sha256_file(files[0]) == sha256_file(files[1]):
        return
    if load_tokenizer(folder.path).get_vocab() != encoder.tokenizer.get_vocab():
        raise BadInput(
            f"{name} {folder.path}: its tokenizer has another vocabulary than that of MODEL {mine.path}. "
            f"Give {name} of the same family"
        )


def _measure(
    request: Request, encoder: Encoder, plan: Plan, kept: Mapping[str, Any], progress: Progress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All tables, the cells, the verdict: audit.json as a dictionary, and the raw items."""
    wanted, protocol, folders, control = request.wanted, request.protocol, request.folders, plan.control
    as_is = {"as_is": plan.conditions["as_is"]}
    reference_conditions = {name: condition for name, condition in plan.conditions.items() if name != SHIPPED}
    of_original = {**as_is, **silencing(plan.conditions)}
    total = len(plan.conditions) + len(of_original) + (len(reference_conditions) if control.kind == "reference" else 0)
    done = 0

    def advance(text: str) -> None:
        nonlocal done
        done += 1
        progress.step(done, total, text)

    hashed = partial(keyed_hash, key=item_key(request.run))
    items: list[dict[str, Any]] = []

    def sample(condition: str, scorer: Scorer, sets: AskedSets, role: str = "subject") -> None:
        most = most_at(condition, plan.generated, parts=getattr(plan.conditions[condition], "folds", 0))
        before = {str(line["id"]) for line in items if line["role"] == "original"}
        if most:
            with suppress(NotMeasured):
                items.extend(said(sets, scorer, role=role, condition=condition, hashed=hashed, most=most, among=before))

    around = describe_environment(environment(request.device))
    budget = Budget(wanted.budget_s)
    asker = Asker(plan, encoder, request.device, around, advance, original=folders["original"], budget=budget)
    progress.say(f"audit: {wanted.model}, protocol {protocol.name}, control: {control.sentence}")
    progress.start()
    original_model = load_model(folders["original"].path, device=request.device)
    sample("as_is", Scorer(original_model, Body(original_model), encoder, request.device), plan.sets, role="original")
    del original_model
    role = "" if control.kind == "reference" else control.kind
    subject, controls, scorer = asker.table(folders["model"], plan.conditions, self_control=role, meanwhile=sample)
    original = asker.cached_table(folders["original"], of_original)
    if control.kind == "reference":
        controls = asker.cached_table(folders["reference"], reference_conditions, utility_at=("as_is",))
        if SHIPPED in plan.conditions:
            controls[SHIPPED] = controls["as_is"]
    is_paired = control.kind != "holdout"
    sources = Sources(subject, controls, original, is_paired)
    absent = not_applicable(plan, request.asked_data["forget"])
    seed, resamples = wanted.seed, int(kept["resamples"])
    cells = make_cells(sources, plan.columns, protocol, absent, seed=seed, resamples=resamples)
    utility = utility_rows(subject, original, plan.columns, protocol, seed=seed, resamples=resamples)
    caveats = [*request.caveats, *cut_caveats(plan.sets), *asker.left.values()]
    rule = protocol.said(resamples, seed)
    verdict = decide(cells, utility, protocol=rule, control=control.sentence, caveats=caveats)
    requests: list[dict[str, Any]] = []
    if request.earlier:
        whole = request.requests
        parts = whole.parts((subject, controls, original), plan.columns)
        alone = each_alone(sources, plan.columns, protocol, absent, utility, parts, seed=seed, resamples=resamples)
        verdict = with_each(verdict, alone)
        requests = [
            {"data": _data_note(file), **part.as_plain(hashed), **judged}
            for file, part, judged in zip(whole.files, parts, alone, strict=True)
        ]
    grids = {at: condition.grid for at, condition in plan.conditions.items() if hasattr(condition, "grid")}
    figures = code_figures(scorer.model, folders["original"], folders["model"], grids)
    none = {"code_match": None, "shift_in_steps": None}
    found = {
        "schema": SCHEMA,
        "protocol": {
            "name": protocol.name,
            "sha256": protocol.sha256,
            "level": protocol.level,
            "m": required_cells(protocol, plan.columns, absent),
            "required": [
                {"condition": at, "column": column, "margin": rule.margin, "side": rule.side}
                for (at, column), rule in protocol.cells.items()
            ],
            **protocol.said_of_convicting,
            "utility": [
                {"column": column, "margin": rule.margin} for rule in protocol.utility for column in rule.columns
            ],
        },
        "models": {
            ("subject" if model == "model" else model): {"path": str(folder.path), "sha256": sha256_folder(folder.path)}
            for model, folder in folders.items()
        },
        "control": {"kind": control.kind, "sentence": control.sentence, "is_paired": is_paired},
        "caveats": caveats,
        "data": {role: _data_note(file) for role, file in request.data.items()},
        "settings": dict(kept),
        "columns": {column: vars(kind) for column, kind in plan.columns.items()},
        "conditions": {
            at: {**_said_of(condition), **figures.get(at, none)} for at, condition in plan.conditions.items()
        },
        "privleak": _privleak(subject, controls, control.kind == "reference"),
        "near_ties": asker.ties.as_plain(hashed),
        "not_applicable": [
            {"condition": at, "column": column, "reason": reason} for (at, column), reason in absent.items()
        ],
        **to_plain({"subject": subject, "control": controls, "original": original}, hashed),
        "cells": cells,
        "utility": utility,
        **({"requests": requests} if requests else {}),
        "verdict": {"word": verdict.word, "reasons": list(verdict.reasons), "scope": verdict.scope},
    }
    return found, items


def _said_of(condition: Any) -> dict[str, Any]:
    """What was done, the row's name where the condition has one for readers, and of an attack which one and how far."""
    label = getattr(condition, "label", "")
    said = {"provenance": condition.provenance, **({"label": label} if label else {})}
    if isinstance(condition, Attack):
        said["attack"] = Path(name_of(condition)).stem
        if condition.along:
            said |= {"along": condition.along, "value": stops(condition)[0]}
    return said


def _privleak(subject: Rows, controls: Rows, has_reference: bool) -> dict[str, Any]:
    """MUSE's PrivLeak as is; only with a retrained reference."""
    if not has_reference:
        return {"value": None, "reason": "needs a retrained reference (--reference)"}
    mine, theirs = subject["as_is"]["membership_texts"], controls["as_is"]["membership_texts"]
    if not isinstance(mine, Scores) or not isinstance(theirs, Scores):
        return {"value": None, "reason": "membership by texts was not measured"}
    aucs = mine.aggregate("auc"), theirs.aggregate("auc")
    try:
        return {"value": privleak(1 - aucs[0], 1 - aucs[1]), "muse_auc": 1 - aucs[0], "muse_auc_reference": 1 - aucs[1]}
    except NotMeasured as reason:
        return {"value": None, "reason": str(reason)}


def _data_note(file: DataFile) -> dict[str, Any]:
    return {
        "path": str(file.path),
        "sha256": sha256_file(file.path),
        "records": len(file.records),
        "units": len(file.units),
        "unit_is_line": file.unit_is_line,
    }


def _json(found: Mapping[str, Any]) -> str:
    """One line a section, and a line a cell: megabytes of scores indented number by number take seconds to write."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    def section(value: Any) -> str:
        if not isinstance(value, list):
            return line(value)
        return "[\n  " + ",\n  ".join(map(line, value)) + "\n ]" if value else "[]"

    return "{\n " + ",\n ".join(f"{line(name)}: {section(value)}" for name, value in found.items()) + "\n}\n"
