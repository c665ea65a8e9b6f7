"""What the page tells beside the numbers: what was asked, stages, software and hashes.

Source: this project.  Checked against: a run with all of it, and one with nothing but its audit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from letheon.reports.reading import AuditedRun
from letheon.reports.wording import DASH, counted, duration, is_number, label_of_condition, moment, number, percent
from letheon.runs.ledger import StageRecord, flattened
from letheon.runs.signing import fingerprint

_ROLES = {"forget": "to be forgotten", "retain": "to be kept", "holdout": "never seen", "general": "general knowledge"}
_MODELS = {
    "subject": "audited model",
    "original": "original",
    "reference": "retrained reference",
    "shipped": "file that ships",
}


def asked(audit: Mapping[str, Any]) -> list[dict[str, str]]:
    """What was to go, what was to stay, and what the model is compared with."""
    rows = []
    for role, said in _ROLES.items():
        given = audit.get("data", {}).get(role)
        if role == "forget" and audit.get("requests"):
            rows += _requests(audit["requests"])
        elif given:
            rows.append({"label": said.capitalize(), "text": _amount(given), "path": str(given.get("path") or "")})
    control = audit.get("control", {})
    if control.get("sentence"):
        rows.append({"label": "Compared with", "text": f"{control['sentence']} (the control)", "path": ""})
    original = (audit.get("models", {}).get("original") or {}).get("path")
    if original:
        rows.append({"label": "Before", "text": "the original model", "path": str(original)})
    return rows


def _requests(requests: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Each request that was asked about."""
    said = [(f"Request {number}, to be forgotten", one["data"]) for number, one in enumerate(requests, start=1)]
    return [{"label": label, "text": _amount(given), "path": str(given.get("path") or "")} for label, given in said]


def _amount(given: Mapping[str, Any]) -> str:
    records, units = given.get("records"), given.get("units")
    text = counted(records, "record") if isinstance(records, int) else "records"
    if given.get("unit_is_line"):
        return f"{text}; no units are named, so every line counts as one"
    return f"{text} about {counted(units, 'unit')}" if isinstance(units, int) else text


def near_ties(audit: Mapping[str, Any]) -> dict[str, Any] | None:
    """Answers that hang by a hair, by condition; None where there is none, or the audit does not speak of them."""
    found = audit.get("near_ties") or {}
    rows = [
        {
            "label": label_of_condition(audit, str(row.get("condition"))),
            "count": counted(len(row["items"]), "answer"),
            "items": ", ".join(map(str, row["items"])),
        }
        for row in found.get("rows") or []
        if row.get("items")
    ]
    if not rows:
        return None
    every = {item for row in found["rows"] for item in row["items"]}
    return {
        "sentence": (
            f"{counted(len(every), 'item')} had a greedy answer of which some token led the next likeliest by less "
            f"than {found['margin']:g} nats. Another machine, or another number of threads, may answer them otherwise; "
            "the numbers above count what was said here."
        ),
        "rows": rows,
    }


# --- where it all comes from


def privleak(audit: Mapping[str, Any]) -> str:
    """MUSE's own membership number in a sentence, or why there is none; empty where the audit does not speak of it."""
    found = audit.get("privleak")
    if not isinstance(found, Mapping):
        return ""
    if not is_number(found.get("value")):
        return f"PrivLeak, as MUSE has it: not measured, {found.get('reason') or 'no reason given'}."
    aucs = f" (MUSE's AUC {number(found.get('muse_auc'))}, of the reference {number(found.get('muse_auc_reference'))})"
    scale = "-100 is memorised, 0 like the reference, above it over-forgotten"
    return f"PrivLeak, as MUSE has it: {found['value']:+.1f}{aucs}; {scale}."


def stages(run: AuditedRun) -> list[dict[str, Any]]:
    """One row a stage of record.json."""
    return [_stage(stage) for stage in run.stages]


def _stage(stage: StageRecord) -> dict[str, Any]:
    seeds = [f"{name} {value}" for name, value in stage.seeds.items()]
    return {
        "label": stage.label,
        "status": stage.status,
        "started": moment(stage.started),
        "took": duration(stage.wall_s) + (f", entered {stage.entered} times" if stage.entered > 1 else ""),
        "memory": f"{stage.peak_memory_mb:,.0f} MB" if stage.peak_memory_mb else DASH,
        "device": str(stage.environment.get("device") or DASH),
        "threads": str(stage.environment.get("threads") or DASH),
        "seeds": ", ".join(seeds) or DASH,
        "warnings": [*stage.warnings, *([stage.error] if stage.error else [])],
        "notes": _notes(stage),
        "settings": [(name, _plain(value)) for name, value in flattened(stage.settings).items()],
    }


def _notes(stage: StageRecord) -> list[str]:
    """What a stage found worth keeping, in words where we know them."""
    notes = []
    if stage.notes.get("stopped"):
        steps = f" after {stage.notes['steps']} steps" if "steps" in stage.notes else ""
        notes.append(f"stopped{steps}: {stage.notes['stopped']}")
    survival = stage.notes.get("survival")
    if isinstance(survival, dict) and survival.get("moved") and {"survived", "total"} <= set(survival):
        share = percent(survival["survived"] / survival["moved"])
        notes.append(
            f"{survival['moved']:,} of {survival['total']:,} weights moved; {share} of the moves survived saving"
        )
    return notes


def _plain(value: Any) -> str:
    return (
        DASH
        if value is None
        else ", ".join(map(str, value)) or "none"
        if isinstance(value, list | dict)
        else str(value)
    )


def software(run: AuditedRun) -> list[tuple[str, str]]:
    """Versions and machine of the last stage."""
    if not run.stages:
        return []
    environment = run.stages[-1].environment
    return [(name, str(value)) for name, value in environment.items() if value is not None]


def hashes(run: AuditedRun) -> list[dict[str, str]]:
    """Every model, data set and file that the verdict rests on, by its SHA-256."""
    audit = run.audit
    rows = [_hash(said, audit.get("models", {}).get(role)) for role, said in _MODELS.items()]
    rows += [_hash(f"data: {role}", given) for role, given in audit.get("data", {}).items()]
    earlier = enumerate(audit.get("requests", [])[:-1], start=1)  # the newest is the forget set
    rows += [_hash(f"data: request {number}", one.get("data")) for number, one in earlier]
    protocol = audit.get("protocol") or {}
    if protocol.get("sha256"):
        rows.append({"what": f"protocol {protocol.get('name', '')}", "path": "", "sha256": str(protocol["sha256"])})
    for name in ("audit", "record"):
        if run.signed.get(f"{name}_sha256"):
            rows.append({"what": f"{name}.json, as signed", "path": "", "sha256": str(run.signed[f"{name}_sha256"])})
    return [row for row in rows if row["sha256"]]


def _hash(what: str, given: Mapping[str, Any] | None) -> dict[str, str]:
    given = given or {}
    return {"what": what, "path": str(given.get("path") or ""), "sha256": str(given.get("sha256") or "")}


def settings(audit: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings of the audit itself."""
    return [(name, _plain(value)) for name, value in flattened(audit.get("settings") or {}).items()]


def signed_by(run: AuditedRun) -> str:
    """The fingerprint of the key that signed the verdict; empty when it is not signed."""
    key = run.signed.get("public_key")
    return fingerprint(str(key)) if key and run.signed.get("signature") else ""
