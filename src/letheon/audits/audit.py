"""Audit a model that claims to have forgotten: every probe under every condition, against a control, by a protocol.

Writes audit.json (every cell, and the scores it is made of), items.jsonl (raw prompts and answers; may be purged) and
verdict.json (signed) into the run folder. Saved files are audited, never live objects.

Source: this project.  Checked against: the retrained reference, a collapsed model and a sham deletion on the embedded
world; `letheon verify`, which makes every cell again from the scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letheon.audits.asked import AskedSets, make_sets, questions_about
from letheon.audits.columns import Column, Scores
from letheon.audits.control import Control, choose_control, lookalike_questions
from letheon.audits.matrix import Sources, make_cells, required_cells, utility_rows
from letheon.audits.protocol import Protocol, read_protocol
from letheon.audits.scorer import Scorer
from letheon.audits.stored import Rows, to_plain
from letheon.audits.tables import Asker, Plan
from letheon.audits.verdict import Verdict, decide
from letheon.audits.verdict_file import write_verdict
from letheon.data.encode import Encoder
from letheon.data.overlap import overlap
from letheon.data.records import DataFile, read_records
from letheon.errors import BadInput, NotMeasured, require
from letheon.methods import build, load
from letheon.models import ModelFolder, inspect_model, load_tokenizer, pick_device
from letheon.numerics.scores import privleak
from letheon.runs.folder import sha256_file, sha256_folder, write_json, write_text
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder, made_by
from letheon.runs.signing import item_key, keyed_hash
from letheon.settings import fill
from letheon.training.prepare import collect, environment

SCHEMA = "letheon.audit/1"
ROLES = ("forget", "retain", "holdout", "general")
MODELS = ("model", "original", "reference", "shipped")
SAMPLED = ("as_is", "int4_row")
"""Conditions whose generated answers are kept in items.jsonl."""


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
    reference: Path | None = None
    """A model retrained without the forget set: the best control."""
    shipped: Path | None = None
    """The folder that ships, where it is another one (a quantized copy)."""
    protocol: str = "quick-1"
    """Which cells are needed for a verdict, and their margins."""
    out: Path | None = None
    """The run folder; null: the run that made the model, or runs/NAME-audit."""
    seed: int = 0
    """Of the resampling and of invented names."""
    resamples: int | None = None
    """Resamples of an interval; null: the protocol's. Another number is for trying things out: the verdict says so."""
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
    device: str
    gate_units: frozenset[str]
    run: Path
    warnings: tuple[str, ...]


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
    for warning in request.warnings:
        progress.say(f"warning: {warning}")
    wanted = request.wanted
    inputs = {name: getattr(wanted, name) for name in MODELS} | {
        f"{role}_data": getattr(wanted, f"{role}_data") for role in ROLES
    }
    kept: dict[str, Any] = {
        "protocol": wanted.protocol,
        "protocol_sha256": request.protocol.sha256,
        "seed": wanted.seed,
        "resamples": wanted.resamples or request.protocol.resamples,
        "template": wanted.template,
        "columns": wanted.columns,
    }
    run = RunFolder.open(request.run, environment=environment(request.device), allow_changed_machine=True)
    with run.stage("audit", kept, inputs, None) as stage:
        if not stage.is_done:
            for warning in request.warnings:
                stage.warn(warning)
            found, items = _measure(request, kept, progress)
            write_json(run.path / "audit.json", found)
            write_text(run.path / "items.jsonl", "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
            stage.produced(run.path / "audit.json")
            stage.produced(run.path / "items.jsonl", may_be_purged=True)
    found = json.loads((run.path / "audit.json").read_text(encoding="utf-8"))
    verdict = Verdict(found["verdict"]["word"], tuple(found["verdict"]["reasons"]), found["verdict"]["scope"])
    write_verdict(run.path, verdict, progress)
    return AuditResult(run.path, run.path / "audit.json", verdict, found)


def check_request(values: Mapping[str, Any]) -> Request:
    """Settings with what the forget run knows, every folder and file checked. Raises BadInput with all faults."""
    wanted, run, gate_units = _with_record(fill(AuditSettings, values, where="audit"))
    if wanted.original is None or wanted.forget_data is None:
        missing = [
            name for name, value in (("--original", wanted.original), ("--forget", wanted.forget_data)) if value is None
        ]
        raise BadInput(
            f"MODEL {wanted.model} was not made by a run of letheon forget, so {' and '.join(missing)} must be given"
        )
    require(
        wanted.resamples is None or wanted.resamples >= 1000, f"resamples must be at least 1000, got {wanted.resamples}"
    )
    paths = {name: getattr(wanted, name) for name in MODELS if getattr(wanted, name) is not None}
    files = {role: getattr(wanted, f"{role}_data") for role in ROLES if getattr(wanted, f"{role}_data") is not None}
    spelled = {"model": "MODEL", "original": "original", "reference": "reference", "shipped": "shipped"}
    *found, protocol, device = collect(
        *(lambda name=name, path=path: inspect_model(path, role=spelled[name]) for name, path in paths.items()),  # type: ignore[misc]
        *(
            lambda role=role, path=path: read_records(path, role=role, columns=wanted.columns)
            for role, path in files.items()
        ),  # type: ignore[misc]
        lambda: read_protocol(wanted.protocol),
        lambda: pick_device(wanted.device),
    )
    folders: dict[str, ModelFolder] = dict(zip(paths, found[: len(paths)], strict=True))
    data: dict[str, DataFile] = dict(zip(files, found[len(paths) :], strict=True))
    warnings = _compare(data)
    if gate_units and "holdout" in data:
        left = [unit for unit in data["holdout"].units if unit not in gate_units]
        warnings.append(
            f"{len(gate_units)} holdout units were used by the gate; the audit asks about the other {len(left)}"
        )
    return Request(wanted, folders, data, protocol, device, frozenset(gate_units), run, tuple(warnings))


def _with_record(wanted: AuditSettings) -> tuple[AuditSettings, Path, list[str]]:
    """What is not given is read from the run that made the model; also the run's folder and the gate's units."""
    import dataclasses

    made = made_by(wanted.model)
    default = Path("runs") / f"{wanted.model.resolve().name}-audit"
    if made is None:
        return wanted, wanted.out or default, []
    run, entry = made
    known: dict[str, Any] = {}
    if entry.verb == "forget":
        for name in ("forget_data", "retain_data", "holdout_data"):
            known[name] = run.input_path(entry, name)
        known["original"] = run.input_path(entry, "model")
        known["template"], known["columns"] = entry.settings["template"], entry.settings["columns"]
    defaults = {spec.name: spec.default for spec in dataclasses.fields(AuditSettings)}
    filled = {
        name: value
        for name, value in known.items()
        if getattr(wanted, name) in (None, {}) or (name == "template" and wanted.template == defaults["template"])
    }
    gate_units = entry.notes.get("gate_units", []) if entry.verb == "forget" else []
    return dataclasses.replace(wanted, **filled), wanted.out or run.path, list(gate_units)


def _compare(data: Mapping[str, DataFile]) -> list[str]:
    """A holdout that overlaps is refused; forget and retain that overlap are told."""
    warnings: list[str] = []
    if "holdout" in data:
        for role in ("forget", "retain"):
            if role in data and (shared := overlap(data["holdout"], data[role])):
                raise BadInput(
                    f"{shared.sentence}. A holdout must never have been trained on: take these records out of it"
                )
    if "retain" in data and (shared := overlap(data["forget"], data["retain"])):
        warnings.append(shared.sentence)
    if data["forget"].unit_is_line:
        warnings.append(
            "forget set: no 'unit' field, so each line counts as its own unit and the intervals may be too narrow"
        )
    return warnings


def _measure(
    request: Request, kept: Mapping[str, Any], progress: Progress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All tables, the cells, the verdict: audit.json as a dictionary, and the raw items."""
    wanted, protocol = request.wanted, request.protocol
    encoder = Encoder(
        load_tokenizer(wanted.model), max_length=request.folders["model"].window, template=wanted.template
    )
    sets, control = _sets_and_control(request, encoder)
    plan = _plan(request, sets, control)
    as_is = {"as_is": plan.conditions["as_is"]}
    reference_conditions = {name: condition for name, condition in plan.conditions.items() if name != "shipped"}
    total = len(plan.conditions) + 1 + (len(reference_conditions) if control.kind == "reference" else 0)
    done = 0

    def advance(text: str) -> None:
        nonlocal done
        done += 1
        progress.step(done, total, text)

    asker = Asker(plan, encoder, request.device, _cache_environment(request), advance)
    progress.say(f"audit: {wanted.model}, protocol {protocol.name}, control: {control.sentence}")
    progress.start()
    role = {"reference": "", "holdout": "holdout", "lookalike": "lookalike"}[control.kind]
    subject, own_control, scorer = asker.table(request.folders["model"], plan.conditions, self_control=role)
    original = asker.cached_table(request.folders["original"], as_is)
    controls = own_control
    if control.kind == "reference":
        controls = asker.cached_table(request.folders["reference"], reference_conditions, utility_at=("as_is",))
        if "shipped" in plan.conditions:
            controls["shipped"] = controls["as_is"]
    is_paired = control.kind == "reference" or (control.kind == "lookalike" and _same_units(sets))
    sources = Sources(subject, controls, original, is_paired)
    not_applicable = _not_applicable(request, plan)
    seed, resamples = wanted.seed, int(kept["resamples"])
    cells = make_cells(sources, plan.columns, protocol, not_applicable, seed=seed, resamples=resamples)
    utility = utility_rows(subject, original, plan.columns, protocol, seed=seed, resamples=resamples)
    name = (
        protocol.name
        if resamples == protocol.resamples
        else f"{protocol.name} (with {resamples} resamples, for trying out)"
    )
    verdict = decide(cells, utility, protocol=name, control=control.sentence)
    key = item_key(request.run)
    found = {
        "schema": SCHEMA,
        "protocol": {
            "name": protocol.name,
            "sha256": protocol.sha256,
            "level": protocol.level,
            "m": required_cells(protocol, plan.columns, not_applicable),
            "required": [
                {"condition": at, "column": column, "margin": rule.margin, "side": rule.side}
                for (at, column), rule in protocol.cells.items()
            ],
            "utility": [
                {"column": column, "margin": rule.margin} for rule in protocol.utility for column in rule.columns
            ],
        },
        "models": {
            ("subject" if model == "model" else model): {"path": str(folder.path), "sha256": sha256_folder(folder.path)}
            for model, folder in request.folders.items()
        },
        "control": {"kind": control.kind, "sentence": control.sentence, "is_paired": is_paired},
        "data": {role: _data_note(file) for role, file in request.data.items()},
        "settings": dict(kept),
        "columns": {column: vars(kind) for column, kind in plan.columns.items()},
        "conditions": {
            at: _condition_note(request, at, condition, scorer) for at, condition in plan.conditions.items()
        },
        "privleak": _privleak(subject, controls, control),
        "not_applicable": [
            {"condition": at, "column": column, "reason": reason} for (at, column), reason in not_applicable.items()
        ],
        **to_plain({"subject": subject, "control": controls, "original": original}, lambda name: keyed_hash(name, key)),
        "cells": cells,
        "utility": utility,
        "verdict": {"word": verdict.word, "reasons": list(verdict.reasons), "scope": verdict.scope},
    }
    return found, _items(request, asker, scorer, key)


def _cache_environment(request: Request) -> dict[str, Any]:
    from letheon.runs.environment import describe_environment

    return describe_environment(environment(request.device))


def _sets_and_control(request: Request, encoder: Encoder) -> tuple[AskedSets, Control]:
    """Everything that may be asked, and which control there is."""
    data = request.data
    allowed: dict[str, set[str]] = {}
    if "holdout" in data:
        allowed["holdout"] = {unit for unit in data["holdout"].units if unit not in request.gate_units}
    sets = make_sets(data, encoder=encoder, limits=dict(request.protocol.limits), only_units=allowed)
    has_reference = "reference" in request.folders
    holdout_units = len(allowed.get("holdout", set()))
    invented: list[tuple[str, str, str, str]] = []
    if not has_reference and holdout_units < 3:
        others = [file for role, file in data.items() if role != "forget"]
        invented = lookalike_questions(data["forget"], others, seed=request.wanted.seed)
        sets.sets["lookalike_questions"] = questions_about("lookalike_questions", invented, encoder)
        sets.sets["lookalike_held_out"] = questions_about("lookalike_held_out", invented, encoder)
    return sets, choose_control(has_reference=has_reference, holdout_units=holdout_units, lookalikes=len(invented))


def _plan(request: Request, sets: AskedSets, control: Control) -> Plan:
    protocol = request.protocol
    probes = [build("probe", name) for name in protocol.probes]
    columns: dict[str, Column] = {}
    probe_of: dict[str, Any] = {}
    for probe in probes:
        columns.update(probe.columns)
        probe_of.update(dict.fromkeys(probe.columns, probe))
    conditions: dict[str, Any] = {}
    for name, spec in protocol.conditions.items():
        if name == "shipped":
            if "shipped" in request.folders:
                conditions[name] = load("condition", "shipped")(path=request.folders["shipped"].path)
            continue
        conditions[name] = build("condition", spec)
    return Plan(
        sets=sets,
        columns=columns,
        probe_of=probe_of,
        conditions=conditions,
        generated={column: set(protocol.generated.conditions) for column in protocol.generated.columns},
        strangers="lookalike" if control.kind == "lookalike" else "holdout",
    )


def _same_units(sets: AskedSets) -> bool:
    return list(dict.fromkeys(sets["lookalike_questions"].units)) == list(dict.fromkeys(sets["forget_questions"].units))


def _not_applicable(request: Request, plan: Plan) -> dict[tuple[str, str], str]:
    """Cells that these data, or this protocol, do not have."""
    found: dict[tuple[str, str], str] = {}
    conditions = [*plan.conditions, *(["shipped"] if "shipped" not in plan.conditions else [])]
    kinds = {"questions": request.data["forget"].questions, "texts": request.data["forget"].texts}
    for name, column in plan.columns.items():
        for condition in conditions:
            if condition not in plan.conditions:
                found[condition, name] = "the audited file is the one that ships"
            elif column.about != "utility" and not kinds[column.asked_of]:
                found[condition, name] = f"the forget set holds no {column.asked_of}"
            elif name == "forget_accuracy_held_out" and not len(plan.sets["forget_held_out"]):
                found[condition, name] = "the forget set has no paraphrases"
            elif not plan.is_made(name, condition):
                found[condition, name] = "needs generation, which this protocol does under other conditions only"
    return found


def _condition_note(request: Request, name: str, condition: Any, scorer: Scorer) -> dict[str, Any]:
    """What was done, and for a grid: how many codes differ from the original's, and how far weights moved in steps."""
    note: dict[str, Any] = {"provenance": condition.provenance, "code_match": None, "shift_in_steps": None}
    grid = getattr(condition, "grid", None)
    if grid is not None:
        note.update(_code_figures(request, scorer, grid))
    return note


def _code_figures(request: Request, scorer: Scorer, grid: Any) -> dict[str, Any]:
    from letheon.audits.conditions.quantized import stored_name
    from letheon.models import as_matrix, decoder_linears, read_tensor
    from letheon.numerics.grids import code_match, shift_in_steps

    original, subject = request.folders["original"], request.folders["model"]
    equal = moved = 0.0
    total = 0
    has_step = True
    try:
        for name, module in decoder_linears(scorer.model).items():
            before, after = (
                as_matrix(module, read_tensor(folder, stored_name(folder, f"{name}.weight")).float()).contiguous()
                for folder in (original, subject)
            )
            equal += code_match(before, after, grid) * before.numel()
            shift = shift_in_steps(before, after, grid)
            has_step = has_step and shift is not None
            moved += (shift or 0.0) * before.numel()
            total += before.numel()
    except (BadInput, NotMeasured, StopIteration, KeyError):
        return {}
    return {"code_match": equal / total, "shift_in_steps": moved / total if has_step else None}


def _privleak(subject: Rows, controls: Rows, control: Control) -> dict[str, Any]:
    """MUSE's PrivLeak as is; only with a retrained reference."""
    if control.kind != "reference":
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


def _items(request: Request, asker: Asker, scorer: Scorer, key: bytes) -> list[dict[str, Any]]:
    """Raw prompts and answers of forget and retain questions, as is and at int4: before (original) and after (subject)."""
    from letheon.models import load_model
    from letheon.training.losses import Body

    items: list[dict[str, Any]] = []
    original = load_model(request.folders["original"].path, device=request.device)
    scorers = {
        "original": (Scorer(original, Body(original), asker.encoder, request.device), "original"),
        "subject": (scorer, "model"),
    }
    for role, (asked_model, folder_name) in scorers.items():
        for condition in SAMPLED if role == "subject" else SAMPLED[:1]:
            if condition not in asker.plan.conditions:
                continue
            asked_model.forget_results()
            try:
                with asker.plan.conditions[condition].applied(asked_model.model, request.folders[folder_name]):
                    for name in ("forget_held_out", "forget_questions", "retain_questions"):
                        items += _said(name, role, condition, asker.plan.sets, asked_model, key)
            except NotMeasured:
                continue
    return items


def _said(
    name: str, role: str, condition: str, sets: AskedSets, scorer: Scorer, key: bytes, *, most: int = 60
) -> list[dict[str, Any]]:
    asked = sets[name]
    step = max(1, len(asked) // most)
    chosen = range(0, len(asked), step)
    answers = (
        scorer.continuations(
            [asked.examples[i].prompt_ids for i in chosen], [len(asked.examples[i].answer_ids) + 8 for i in chosen]
        )
        if len(asked)
        else []
    )
    return [
        {
            "id": keyed_hash(asked.items[i], key),
            "role": role,
            "set": name,
            "condition": condition,
            "unit": asked.units[i],
            "prompt": asked.prompts[i],
            "answer": asked.answers[i],
            "given": given,
        }
        for i, given in zip(chosen, answers, strict=True)
    ]
