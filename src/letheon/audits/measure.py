"""Ask all models of an audit, make the cells, decide: audit.json as a dictionary, and the raw items.

Source: this project.  Checked against: `letheon verify`, which makes every cell again from the scores; the retrained
reference, a collapsed model and a sham deletion on the embedded world.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from letheon.audits.asked import AskedSets
from letheon.audits.attacked import Attack, stops
from letheon.audits.budget import Budget
from letheon.audits.codes import code_figures
from letheon.audits.columns import Scores
from letheon.audits.earlier import each_alone, with_each
from letheon.audits.matrix import Sources, Table, make_cells, required_cells, utility_rows
from letheon.audits.near_ties import NearTies
from letheon.audits.plan import SHIPPED, Plan, not_applicable
from letheon.audits.request import Request
from letheon.audits.samples import most_at, said
from letheon.audits.scope import cut_caveats
from letheon.audits.scorer import Scorer
from letheon.audits.stored import to_plain
from letheon.audits.tables import Asker
from letheon.audits.verdict import Verdict, decide
from letheon.audits.wordings import silencing
from letheon.data.encode import Encoder
from letheon.data.records import DataFile
from letheon.errors import NotMeasured
from letheon.methods import name_of
from letheon.models import load_model
from letheon.numerics.scores import privleak
from letheon.runs.environment import describe_environment
from letheon.runs.folder import sha256_file, sha256_folder
from letheon.runs.progress import Progress
from letheon.runs.signing import item_key, keyed_hash
from letheon.training.losses import Body
from letheon.training.prepare import environment

SCHEMA = "letheon.audit/1"
Hashed = Callable[[str], str]
"""Item or unit -> what stands for it in audit.json."""
Absent = Mapping[tuple[str, str], str]
"""(condition, column) -> why these data have no such cell."""


@dataclass(frozen=True)
class _Asked:
    """What the models said."""

    sources: Sources
    items: list[dict[str, Any]]
    """Prompts and answers in words."""
    model: Any
    """The audited one, as it is."""
    left_out: tuple[str, ...]
    """What of the questions was not asked, a sentence a condition."""
    ties: NearTies
    """Greedy answers that hung by a hair."""


@dataclass(frozen=True)
class _Judged:
    """What follows from it by the protocol."""

    cells: list[dict[str, Any]]
    utility: list[dict[str, Any]]
    requests: list[dict[str, Any]]
    """One for each of several deletion requests."""
    caveats: tuple[str, ...]
    verdict: Verdict


def measure(
    request: Request, encoder: Encoder, plan: Plan, kept: Mapping[str, Any], progress: Progress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """audit.json as a dictionary, and the raw items.

    Args:
        request: the checked audit.
        encoder: of the audited model.
        plan: what is asked.
        kept: the settings as they are recorded; `resamples` among them.
        progress: where lines for a person go.
    """
    hashed = partial(keyed_hash, key=item_key(request.run))
    progress.say(f"audit: {request.wanted.model}, protocol {request.protocol.name}, control: {plan.control.sentence}")
    asked = _ask(request, encoder, plan, hashed, progress)
    absent = not_applicable(plan, request.asked_data["forget"])
    judged = _judge(request, plan, asked, absent, int(kept["resamples"]), hashed)
    return _as_plain(request, plan, kept, asked, judged, absent, hashed), asked.items


def _ask(request: Request, encoder: Encoder, plan: Plan, hashed: Hashed, progress: Progress) -> _Asked:
    """The original in words, then the tables of all models."""
    folders, control = request.folders, plan.control
    reference_conditions = {name: condition for name, condition in plan.conditions.items() if name != SHIPPED}
    of_original = {"as_is": plan.conditions["as_is"], **silencing(plan.conditions)}
    total = len(plan.conditions) + len(of_original) + (len(reference_conditions) if control.kind == "reference" else 0)
    done = 0

    def advance(text: str) -> None:
        nonlocal done
        done += 1
        progress.step(done, total, text)

    items: list[dict[str, Any]] = []

    def sample(condition: str, scorer: Scorer, sets: AskedSets, role: str = "subject") -> None:
        most = most_at(condition, plan.generated, parts=getattr(plan.conditions[condition], "folds", 0))
        before = {str(line["id"]) for line in items if line["role"] == "original"}
        if most:
            with suppress(NotMeasured):
                items.extend(said(sets, scorer, role=role, condition=condition, hashed=hashed, most=most, among=before))

    around = describe_environment(environment(request.device))
    budget = Budget(request.wanted.budget_s)
    asker = Asker(plan, encoder, request.device, around, advance, original=folders["original"], budget=budget)
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
    sources = Sources(subject, controls, original, is_paired=control.kind != "holdout")
    return _Asked(sources, items, scorer.model, tuple(asker.left.values()), asker.ties)


def _judge(request: Request, plan: Plan, asked: _Asked, absent: Absent, resamples: int, hashed: Hashed) -> _Judged:
    """The cells and the verdict; of several requests, what each alone shows."""
    protocol, sources, seed = request.protocol, asked.sources, request.wanted.seed
    cells = make_cells(sources, plan.columns, protocol, absent, seed=seed, resamples=resamples)
    utility = utility_rows(sources.subject, sources.original, plan.columns, protocol, seed=seed, resamples=resamples)
    caveats = (*request.caveats, *cut_caveats(plan.sets), *asked.left_out)
    rule = protocol.said(resamples, seed)
    verdict = decide(cells, utility, protocol=rule, control=plan.control.sentence, caveats=caveats)
    requests: list[dict[str, Any]] = []
    if request.earlier:
        whole = request.requests
        parts = whole.parts((sources.subject, sources.control, sources.original), plan.columns)
        alone = each_alone(sources, plan.columns, protocol, absent, utility, parts, seed=seed, resamples=resamples)
        verdict = with_each(verdict, alone)
        requests = [
            {"data": _data_note(file), **part.as_plain(hashed), **judged}
            for file, part, judged in zip(whole.files, parts, alone, strict=True)
        ]
    return _Judged(cells, utility, requests, caveats, verdict)


def _as_plain(
    request: Request,
    plan: Plan,
    kept: Mapping[str, Any],
    asked: _Asked,
    judged: _Judged,
    absent: Absent,
    hashed: Hashed,
) -> dict[str, Any]:
    """audit.json; nobody is in it by name."""
    protocol, folders, sources = request.protocol, request.folders, asked.sources
    grids = {at: condition.grid for at, condition in plan.conditions.items() if hasattr(condition, "grid")}
    figures = code_figures(asked.model, folders["original"], folders["model"], grids)
    none = {"code_match": None, "shift_in_steps": None}
    verdict = judged.verdict
    return {
        "schema": SCHEMA,
        "protocol": protocol.as_plain(required_cells(protocol, plan.columns, absent)),
        "models": {
            ("subject" if model == "model" else model): {"path": str(folder.path), "sha256": sha256_folder(folder.path)}
            for model, folder in folders.items()
        },
        "control": {
            "kind": plan.control.kind,
            "sentence": plan.control.sentence,
            "is_paired": sources.is_paired,
        },
        "caveats": list(judged.caveats),
        "data": {role: _data_note(file) for role, file in request.data.items()},
        "settings": dict(kept),
        "columns": {column: vars(kind) for column, kind in plan.columns.items()},
        "conditions": {
            at: {**_said_of(condition), **figures.get(at, none)} for at, condition in plan.conditions.items()
        },
        "privleak": _privleak(sources.subject, sources.control, plan.control.kind == "reference"),
        "near_ties": asked.ties.as_plain(hashed),
        "not_applicable": [
            {"condition": at, "column": column, "reason": reason} for (at, column), reason in absent.items()
        ],
        **to_plain({"subject": sources.subject, "control": sources.control, "original": sources.original}, hashed),
        "cells": judged.cells,
        "utility": judged.utility,
        **({"requests": judged.requests} if judged.requests else {}),
        "verdict": {"word": verdict.word, "reasons": list(verdict.reasons), "scope": verdict.scope},
    }


def _said_of(condition: Any) -> dict[str, Any]:
    """What was done, the row's name where the condition has one for readers, and of an attack which one and how far."""
    label = getattr(condition, "label", "")
    said = {"provenance": condition.provenance, **({"label": label} if label else {})}
    if isinstance(condition, Attack):
        said["attack"] = Path(name_of(condition)).stem
        if condition.along:
            said |= {"along": condition.along, "value": stops(condition)[0]}
    return said


def _privleak(subject: Table, controls: Table, has_reference: bool) -> dict[str, Any]:
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
