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
from functools import partial
from pathlib import Path
from typing import Any

from letheon.audits.measure import measure
from letheon.audits.plan import SHIPPED, Plan, make_plan
from letheon.audits.request import MODELS, ROLES, Request, checked
from letheon.audits.verdict import Verdict
from letheon.audits.verdict_file import make_key, write_verdict
from letheon.data.encode import Encoder
from letheon.errors import BadInput
from letheon.methods import describe, name_of
from letheon.models import ModelFolder, load_tokenizer
from letheon.runs.folder import sha256_file, write_text
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder
from letheon.settings import draft
from letheon.training.prepare import collect, environment


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
            found, items = measure(request, encoder, plan, kept, progress)
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
    return checked(draft(AuditSettings, values, where="audit"))


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


def _json(found: Mapping[str, Any]) -> str:
    """One line a section, and a line a cell: megabytes of scores indented number by number take seconds to write."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    def section(value: Any) -> str:
        if not isinstance(value, list):
            return line(value)
        return "[\n  " + ",\n  ".join(map(line, value)) + "\n ]" if value else "[]"

    return "{\n " + ",\n ".join(f"{line(name)}: {section(value)}" for name, value in found.items()) + "\n}\n"
