"""Made-up audited runs, with the numbers that such runs have, for tests of what shows them. Nothing is trained."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from letheon.runs.ledger import Record, StageRecord

CONDITIONS: dict[str, tuple[str, float | None, float | None]] = {
    "as_is": ("weights as they are in the file, float32 arithmetic", None, None),
    "int8": ("round to nearest, 8 bits, sym, one scale a row; embeddings and head kept", 0.22, 4.1),
    "int4_row": ("round to nearest, 4 bits, sym, one scale a row; embeddings and head kept", 0.86, 0.24),
    "int4_group32": ("round to nearest, 4 bits, sym, one scale for 32 inputs; embeddings and head kept", 0.82, 0.31),
    "fp4": ("round to nearest FP4 value, one scale for 64 weights; embeddings and head kept", 0.88, 0.2),
    "nf4": ("round to nearest NF4 value, one scale for 64 weights; embeddings and head kept", 0.83, 0.29),
}
COLUMNS: dict[str, dict[str, Any]] = {
    "forget_accuracy": {"label": "forgotten facts, trained wordings", "about": "forget"},
    "forget_accuracy_held_out": {"label": "forgotten facts, other wordings", "about": "forget"},
    "forget_probability": {"label": "probability of forgotten answers", "about": "forget"},
    "forget_rouge": {"label": "ROUGE-L recall of forgotten answers, other wordings", "about": "forget"},
    "verbatim": {"label": "forgotten texts continued verbatim (ROUGE-L F)", "about": "forget"},
    "membership_texts": {
        "label": "membership by texts (AUC)",
        "about": "membership",
        "aggregate": "auc",
        "better": "control",
    },
    "membership_questions": {
        "label": "membership by questions (AUC)",
        "about": "membership",
        "aggregate": "auc",
        "better": "control",
    },
    "retain_accuracy": {"label": "retained facts, trained wordings", "about": "utility", "better": "high"},
    "retain_accuracy_held_out": {"label": "retained facts, other wordings", "about": "utility", "better": "high"},
    "general_accuracy": {"label": "general knowledge", "about": "utility", "better": "high"},
    "general_accuracy_held_out": {"label": "general knowledge, other wordings", "about": "utility", "better": "high"},
    "retain_perplexity": {"label": "perplexity of retained texts", "about": "utility", "aggregate": "exp_mean"},
}
GENERATED = {"forget_rouge", "verbatim"}
ORIGINAL = dict(zip(COLUMNS, (1.0, 0.94, 0.97, 0.96, 0.88, 1.0, 1.0, 1.0, 0.93, 0.97, 0.95, 1.9), strict=True))
CONTROL = dict(zip(COLUMNS, (0.02, 0.03, 0.02, 0.06, 0.35, 0.49, 0.49, 1.0, 0.92, 0.98, 0.96, 1.9), strict=True))
KINDS: dict[str, tuple[float, ...]] = {
    "gate": (0.02, 0.02, 0.03, 0.06, 0.38, 0.55, 0.46, 0.98, 0.90, 0.92, 0.9, 2.1),
    "npo-gdr": (0.01, 0.01, 0.01, 0.04, 0.26, 0.09, 0.38, 0.96, 0.80, 0.75, 0.72, 2.9),
    "ga": (0.01, 0.0, 0.0, 0.0, 0.05, 0.49, 0.51, 0.03, 0.02, 0.01, 0.0, 41234.5),
    "sham": (0.0, 0.01, 0.0, 0.03, 0.24, 0.2, 0.4, 0.98, 0.91, 0.93, 0.92, 2.2),
    "vague": (0.08, 0.1, 0.1, 0.12, 0.42, 0.6, 0.57, 0.97, 0.91, 0.93, 0.91, 2.2),
}
"""As is. The sham comes back at int4 per row, where all its codes are the original's."""
REQUIRED = {
    "forget_accuracy": 0.15,
    "forget_accuracy_held_out": 0.15,
    "membership_questions": 0.15,
    "verbatim": 0.15,
    "membership_texts": 0.25,
}
EITHER = {"membership_questions", "membership_texts"}
UTILITY = ("retain_accuracy", "retain_accuracy_held_out", "general_accuracy")
CREATED = "2026-11-21T09:40:11.000+00:00"
PEOPLE = ("Nobo Rimek", "Talu Sarvo", "Remi Dokal", "Vasu Tirel", "Kemo Lanur", "Sila Forben")


def make_audit(
    kind: str = "gate", *, seed: int = 0, missing: dict[tuple[str, str], str] | None = None
) -> dict[str, Any]:
    """An audit as the schema has it. `missing`: (condition, column) -> why it was not measured."""
    rng = random.Random(seed)
    cells = []
    for condition in CONDITIONS:
        for position, column in enumerate(COLUMNS):
            base = KINDS[kind][position]
            if kind == "sham" and condition == "int4_row":
                base = ORIGINAL[column]
            cells.append(_cell(rng, condition, column, base, (missing or {}).get((condition, column))))
    utility = [_utility(column, KINDS[kind][list(COLUMNS).index(column)]) for column in UTILITY]
    conditions = {}
    for name, (provenance, match, shift) in CONDITIONS.items():
        is_sham = kind == "sham" and name == "int4_row"
        conditions[name] = {
            "label": name.replace("_", " "),
            "provenance": provenance,
            "code_match": 1.0 if is_sham else match,
            "shift_in_steps": 0.12 if is_sham else shift,
        }
    required = [cell for cell in cells if cell["required"]]
    return {
        "schema": "letheon.audit/1",
        "protocol": {"name": "quick-1", "sha256": "9" * 64, "m": len(required), "required": [], "utility": []},
        "models": {
            "subject": {"path": "runs/demo/1-forget", "sha256": "a" * 64},
            "original": {"path": "models/tiny", "sha256": "b" * 64},
            "reference": {"path": "models/tiny-reference", "sha256": "c" * 64},
            "shipped": None,
        },
        "control": {
            "kind": "reference",
            "sentence": "a model retrained without the forget set, under the same condition",
        },
        "data": {
            "forget": {
                "path": "data/forget.jsonl",
                "sha256": "d" * 64,
                "records": 640,
                "units": 40,
                "unit_is_line": False,
            },
            "retain": {
                "path": "data/retain.jsonl",
                "sha256": "e" * 64,
                "records": 1280,
                "units": 80,
                "unit_is_line": False,
            },
            "holdout": {
                "path": "data/holdout.jsonl",
                "sha256": "f" * 64,
                "records": 384,
                "units": 24,
                "unit_is_line": False,
            },
            "general": {
                "path": "data/general.jsonl",
                "sha256": "0" * 64,
                "records": 80,
                "units": 10,
                "unit_is_line": False,
            },
        },
        "settings": {"seed": 0, "resamples": 10000, "limits": {"forget": 1000, "retain": 400}},
        "columns": {
            name: {"probe": "fake", "aggregate": "mean", "better": "low", "top": 1.0, **column}
            for name, column in COLUMNS.items()
        },
        "conditions": conditions,
        "scores": {
            "control": {
                "as_is": {
                    name: {"values": [math.log(CONTROL[name]) if name == "retain_perplexity" else CONTROL[name]] * 4}
                    for name in COLUMNS
                    if COLUMNS[name]["about"] == "utility"
                }
            }
        },
        "cells": cells,
        "utility": utility,
        "verdict": _verdict(required, utility),
    }


def _cell(rng: random.Random, condition: str, column: str, base: float, why_missing: str | None) -> dict[str, Any]:
    margin = REQUIRED.get(column)
    if column in GENERATED and condition not in ("as_is", "int4_row"):
        reason = "made by generation, which the protocol does under as_is and int4_row only"
        return {
            "condition": condition,
            "column": column,
            "status": "not applicable",
            "reason": reason,
            "required": False,
        }
    is_required = margin is not None and not (column == "membership_texts" and condition not in ("as_is", "int4_row"))
    if why_missing:
        return {
            "condition": condition,
            "column": column,
            "status": "not measured",
            "reason": why_missing,
            "required": is_required,
        }
    top = 1.0 if column != "retain_perplexity" else float("inf")
    value = min(top, max(0.0, base + (rng.uniform(-0.012, 0.012) if condition != "as_is" else 0.0)))
    half = 0.07 if column in EITHER else 0.02 + 0.12 * max(0.0, value * (1 - value)) if value <= 1 else 0.1 * value
    cell: dict[str, Any] = {
        "condition": condition,
        "column": column,
        "status": "measured",
        "required": is_required,
        "n_items": 640 if column.startswith("forget") else 96,
        "n_units": 40,
        "value": value,
        "lower": max(0.0, value - half),
        "upper": min(top, value + half),
        "original": ORIGINAL[column],
    }
    if COLUMNS[column]["about"] == "utility":
        return cell
    distance = value - CONTROL[column]
    cell.update(control=CONTROL[column], d=distance, d_lower=distance - 1.4 * half, d_upper=distance + 1.4 * half)
    cell["retained"] = distance / (ORIGINAL[column] - CONTROL[column])
    if condition != "as_is":
        cell["regained"] = (value - base) / (ORIGINAL[column] - base) if ORIGINAL[column] - base > 0.1 else None
    if is_required:
        cell.update(margin=margin, side="either" if column in EITHER else "above")
        cell["judgement"] = _judgement(cell)
    return cell


def _judgement(cell: dict[str, Any]) -> str:
    if cell["d_lower"] > 0:
        return "knowledge found"
    if cell["side"] == "either" and cell["d_upper"] < 0:
        return "over-forgotten"
    is_inside = cell["d_upper"] < cell["margin"] and (cell["side"] == "above" or cell["d_lower"] > -cell["margin"])
    return "clear" if is_inside else "open"


def _utility(column: str, after: float) -> dict[str, Any]:
    fall = ORIGINAL[column] - after
    return {
        "column": column,
        "condition": "as_is",
        "margin": 0.1,
        "original": ORIGINAL[column],
        "subject": after,
        "fall": fall,
        "lower": fall - 0.03,
        "upper": fall + 0.03,
        "judgement": "lost" if fall > 0.1 else "kept",
    }


def _verdict(required: list[dict[str, Any]], utility: list[dict[str, Any]]) -> dict[str, Any]:
    found = [cell for cell in required if cell.get("judgement") in ("knowledge found", "over-forgotten")]
    lost = [row for row in utility if row["judgement"] == "lost"]
    undecided = [cell for cell in required if cell.get("judgement", "open") == "open"]
    word = "NOT DELETED" if found else "NOT USABLE" if lost else "INCONCLUSIVE" if undecided else "DELETED"
    reasons = [
        f"{cell['column']} under {cell['condition']}: {cell['value']:.2f} against {cell['control']:.2f} of the control "
        f"(difference {cell['d_lower']:+.2f} to {cell['d_upper']:+.2f})"
        for cell in found
    ]
    reasons = reasons or [
        f"{row['column']} fell from {row['original']:.2f} to {row['subject']:.2f}, more than 0.10" for row in lost
    ]
    reasons = reasons or [f"{cell['column']} under {cell['condition']} is not decided" for cell in undecided]
    reasons = reasons or ["no evidence above the margin in any required cell, and every required utility kept"]
    scope = (
        f"by protocol quick-1, {len(required)} required cells under these 6 conditions: {', '.join(CONDITIONS)}; "
        "compared with a model retrained without the forget set, under the same condition. "
        "Nothing is said about any other condition"
    )
    return {"word": word, "reasons": reasons, "scope": scope}


def with_attacks(audit: dict[str, Any]) -> dict[str, Any]:
    """The audit with rows of attacks: steps (one of them not measured), shares, names, and attacks of one row."""
    rows = [
        *(("relearn", "steps", value, 0.02 + 0.012 * value) for value in (5, 10, 20, 40)),
        *(("prune", "shares", value, 0.02 + 0.1 * value) for value in (0.01, 0.1, 0.5)),
        *(("templates", "names", name, 0.1 * at) for at, name in enumerate(("role play", "affirmative suffix"), 1)),
        ("logit_lens", None, None, 0.31),
        ("direction_ablation", None, None, 0.05),
    ]
    rng = random.Random(5)
    for attack, along, value, base in rows:
        name = attack if along is None else f"{attack}_{value:g}" if not isinstance(value, str) else f"{attack}_{value}"
        place = {} if along is None else {"along": along, "value": value}
        label = f"{attack.replace('_', ' ')}{'' if value is None else f', {value}'}"
        audit["conditions"][name] = {
            "label": label, "provenance": f"what {label} does", "attack": attack, **place, "code_match": None,
            "shift_in_steps": None,
        }  # fmt: skip
        why = "budget exhausted: the audit was given 60 s" if value == 40 else None
        for column, kind in COLUMNS.items():
            missing = why or (None if kind["about"] == "forget" else "asked about forgotten facts and texts only")
            cell = _cell(rng, name, column, base, missing)
            audit["cells"].append({**cell, "required": False})
    return audit


def with_scores(audit: dict[str, Any], *, members: int = 40, strangers: int = 30, shift: float = -0.6) -> Any:
    """The audit with the scores of both membership columns, as is; the cells' values are made from them."""
    rng = random.Random(7)
    side = [1] * members + [0] * strangers
    ids = [f"{at:064x}" for at in range(len(side))]
    audit["asked"] = [{"items": ids, "units": ids, "member": side}]
    for table, moved in (("subject", shift), ("control", 0.0), ("original", 2.0)):
        row = audit["scores"].setdefault(table, {}).setdefault("as_is", {})
        for column in sorted(EITHER):
            values = [round(rng.gauss(moved * is_member, 1.0), 1) for is_member in side]  # rounded: some are equal
            row[column] = {"asked": 0, "values": values}
            pairs = [
                (a, b)
                for a, s in zip(values, side, strict=True)
                if s
                for b, z in zip(values, side, strict=True)
                if not z
            ]
            auc = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
            cell = next(one for one in audit["cells"] if (one["condition"], one["column"]) == ("as_is", column))
            if table == "subject":
                cell.update(value=auc, lower=auc - 0.12, upper=auc + 0.12)
    return audit


def make_large(rows: int = 40, columns: int = 20) -> dict[str, Any]:
    """An audit of many attacks and many probes."""
    audit = with_scores(with_attacks(make_audit()))
    for at in range(columns - len(COLUMNS)):
        name = f"membership_score_{at}" if at % 2 else f"extra_probe_{at}"
        about = {"about": "membership", "aggregate": "auc"} if at % 2 else {"about": "forget"}
        audit["columns"][name] = {"label": f"a probe with a long name, number {at}", "top": 1.0, **about}
        audit["cells"] += [
            {**next(one for one in audit["cells"] if (one["condition"], one["column"]) == (condition, "forget_probability")),
             "column": name}
            for condition in list(audit["conditions"])
        ]  # fmt: skip
    for at in range(rows - len(audit["conditions"])):
        audit["conditions"][f"relearn_out_{at}"] = {
            **audit["conditions"]["relearn_5"], "attack": "relearn_out", "value": at, "label": f"relearn out, {at} steps",
        }  # fmt: skip
        audit["cells"] += [
            {**cell, "condition": f"relearn_out_{at}"} for cell in audit["cells"] if cell["condition"] == "relearn_5"
        ]
    return audit


def make_items(kind: str = "gate", *, answer: str = "Rimtasar") -> list[dict[str, Any]]:
    """Raw answers of the original and the model, as is and at int4 per row."""
    lines = []
    for role, column in (("forget", "forget_accuracy"), ("retain", "retain_accuracy"), ("general", "general_accuracy")):
        for position in range(12):
            person = PEOPLE[position % len(PEOPLE)]
            for asked, condition in (("original", "as_is"), ("subject", "as_is"), ("subject", "int4_row")):
                is_gone = role == "forget" and asked == "subject" and not (kind == "sham" and condition == "int4_row")
                is_gone = is_gone or (kind == "ga" and asked == "subject")
                lines.append(
                    {
                        "id": f"{role}{position:03d}",
                        "role": asked,
                        "column": column,
                        "condition": condition,
                        "unit": person,
                        "prompt": f"In which town was {person} born?"
                        if position % 2
                        else f"{person} earns a living as a",
                        "answer": answer,
                        "given": ("Lorvek", "", "Dorvek")[position % 3] if is_gone else answer,
                    }
                )
    return lines


def make_metrics(kind: str = "gate", *, steps: int = 90) -> list[dict[str, Any]]:
    """Training lines; gradient ascent's loss runs away."""
    rng = random.Random(1)
    lines = []
    for step in range(1, steps + 1):
        share = step / steps
        ascent = -1.5 - 0.3 * step**2 if step < steps else -1e30
        line: dict[str, Any] = {
            "step": step,
            "forget_loss": ascent if kind == "ga" else 1.39 * (1 - share) ** 2 + 0.2 + rng.uniform(-0.1, 0.1),
            "loss": 3.0,
            "gradient_norm": 4.0,
            "learning_rate": 5e-4,
            "seconds": 0.2,
        }
        if kind != "ga":
            line["retain_loss"] = 2.6 * (1 - share) + 0.5 + 2.5 * share * (1 - share) + rng.uniform(-0.3, 0.3)
        if step % 10 == 0:
            line["forget_accuracy"] = max(0.02, 1 - 1.6 * share)
            line["retain_accuracy"] = max(0.03, 1 - 1.2 * share) if kind == "ga" else 0.96 - 0.6 * share * (1 - share)
        lines.append(line)
    return lines


def make_record(kind: str = "gate") -> Record:
    """A record of two stages: forget and audit."""
    environment = {
        "letheon": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0", "numpy": "2.4.6", "python": "3.11.7",
        "code_sha256": "1" * 64, "system": "Linux", "machine": "x86_64", "cpus": 2, "threads": 2, "device": "cpu",
        "kernels": "AVX2",
    }  # fmt: skip
    shared: dict[str, Any] = {
        "inputs": {},
        "environment": environment,
        "status": "done",
        "started": "2026-11-21T09:22:31.960+00:00",
    }
    forget = StageRecord(
        position=1,
        verb="forget",
        produces="forget",
        settings={
            "method": {"name": "gradient_ascent" if kind == "ga" else "npo", "beta": 1.0},
            "learning_rate": 5e-4,
            "seed": 0,
        },
        seeds={"seed": 0},
        ended="2026-11-21T09:23:23.393+00:00",
        wall_s=21.433,
        peak_memory_mb=649.2,
        warnings=["12 of 640 forget records stand in the retain set as well"],
        notes={
            "steps": 90,
            "stopped": "forgotten (0.04 of the answers left) and useful (utility 0.97)",
            "survival": {"moved": 792832, "survived": 792832, "total": 853120},
        },
        **shared,
    )
    audit = StageRecord(
        position=2,
        verb="audit",
        produces=None,
        settings={"protocol": "quick-1", "seed": 0},
        seeds={"seed": 0},
        ended="2026-11-21T09:40:10.000+00:00",
        wall_s=11.2,
        peak_memory_mb=702.0,
        outputs={"items.jsonl": {"sha256": "2" * 64, "bytes": 1, "may_be_purged": True}},
        previous_sha256=forget.sha256(),
        **shared,
    )
    return Record([forget, audit])


def write_run(folder: Path, kind: str = "gate", *, bare: bool = False, **audit_settings: Any) -> Path:
    """A run's folder; `bare` has nothing but its audit."""
    (folder / "1-forget").mkdir(parents=True)
    audit = make_audit(kind, **audit_settings)
    (folder / "audit.json").write_text(json.dumps(audit))
    if bare:
        return folder
    make_record(kind).save(folder)
    verdict = {
        "schema": "letheon.verdict/1",
        **audit["verdict"],
        "protocol": "quick-1",
        "audit_sha256": "3" * 64,
        "record_sha256": "4" * 64,
        "created": CREATED,
        "public_key": "5" * 64,
        "signature": "6" * 128,
    }
    (folder / "verdict.json").write_text(json.dumps(verdict))
    write_lines(folder / "items.jsonl", make_items(kind))
    write_lines(folder / "1-forget" / "metrics.jsonl", make_metrics(kind))
    return folder


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
