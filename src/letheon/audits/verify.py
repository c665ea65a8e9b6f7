"""Check a verdict from its files alone: hashes, signature, and every cell made again from the scores.

Source: this project.  Checked against: one altered byte in each file, a cell edited with its hashes, another key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letheon.audits.columns import Column, Scores
from letheon.audits.earlier import Part, each_alone, with_each
from letheon.audits.matrix import Answer, Sources, make_cells, required_cells, utility_rows
from letheon.audits.protocol import Protocol, read_protocol
from letheon.audits.stored import from_plain
from letheon.audits.verdict import decide
from letheon.audits.verdict_file import read_verdict, signature_holds
from letheon.errors import BadInput, LetheonError
from letheon.methods import build
from letheon.runs.folder import sha256_file
from letheon.runs.ledger import StageRecord, load_record
from letheon.runs.record import verify_record
from letheon.runs.signing import fingerprint


@dataclass(frozen=True)
class Verification:
    """What was found. No problems: whole."""

    run: Path
    problems: tuple[str, ...]
    word: str
    fingerprint: str
    is_pinned: bool
    """A key was given, and it is the signer's: whose verdict it is, not only that it is whole."""


def verify(path: Path | str, *, key: str | None = None) -> Verification:
    """Check a run folder, or a file in it.

    Args:
        path: the run folder, its verdict.json, audit.json or record.json.
        key: the signer's fingerprint, as the signer told it. Without it only integrity is shown.
    Raises:
        BadInput: there is no verdict to check.
    """
    run = Path(path)
    run = run.parent if run.is_file() else run
    if not (run / "verdict.json").is_file():
        if (run / "record.json").is_file():
            return Verification(run, tuple(verify_record(run)), "", "", False)
        raise BadInput(
            f"{path}: neither a verdict.json nor a record.json is there. Give a run folder, such as runs/NAME"
        )
    problems = list(verify_record(run))
    try:
        held = read_verdict(run / "verdict.json")
        who = fingerprint(str(held.get("public_key", "")))
        is_signed = signature_holds(held)
    except ValueError as error:  # no text, no JSON, no object, NaN, no key
        return Verification(run, (*problems, f"verdict.json cannot be read: {error}"), "", "", False)
    if not is_signed:
        problems.append("verdict.json: the signature is not over what the file says")
    if key is not None and who != key:
        problems.append(f"verdict.json was signed by {who}, not by {key}")
    problems += _audit_problems(run, held)
    return Verification(run, tuple(dict.fromkeys(problems)), str(held.get("word")), who, key is not None and who == key)


def _audit_problems(run: Path, held: dict[str, Any]) -> list[str]:
    path = run / "audit.json"
    if not path.is_file():
        return ["audit.json is missing"]
    problems: list[str] = []
    if sha256_file(path) != held.get("audit_sha256"):
        problems.append("audit.json is not the one the verdict was made on")
    try:
        stages = load_record(run).stages
        if held.get("record_sha256") not in [stage.sha256() for stage in stages]:
            problems.append("record.json is not the one the verdict was made on")
        audit = json.loads(path.read_text(encoding="utf-8"))
        asked = max((_requests_of(stage) for stage in stages if stage.verb == "audit"), default=0)
        if len(audit.get("requests", [])) != asked:
            problems.append(
                f"audit.json judges {len(audit.get('requests', []))} requests alone, record.json has {asked}"
            )
        return [*problems, *_recomputed(audit, held)]
    except LetheonError as error:
        return [*problems, f"audit.json: {error}"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        return [*problems, f"audit.json cannot be read: {type(error).__name__}: {error}"]


def _requests_of(stage: StageRecord) -> int:
    """How many requests an audit had to judge alone: none where there was one."""
    earlier = sum(name.startswith("earlier_data_") for name in stage.inputs)
    return earlier + 1 if earlier else 0


def _recomputed(audit: dict[str, Any], held: dict[str, Any]) -> list[str]:
    """Make the cells and the verdict again from the per-item scores."""
    protocol = read_protocol(audit["protocol"]["name"])
    problems = []
    if protocol.sha256 != audit["protocol"]["sha256"]:
        problems.append(f"audit.json was made by another text of protocol {protocol.name} than this installation has")
    columns = {name: Column(**kind) for name, kind in audit["columns"].items()}
    tables = from_plain(audit)
    sources = Sources(tables["subject"], tables["control"], tables["original"], audit["control"]["is_paired"])
    absent = {(entry["condition"], entry["column"]): entry["reason"] for entry in audit["not_applicable"]}
    problems += _wrongly_described(audit, protocol, required_cells(protocol, columns, absent))
    for condition, column in absent:
        if isinstance(tables["subject"].get(condition, {}).get(column), Scores):
            problems.append(
                f"audit.json: {column} under {condition} is called not applicable, and there are scores for it"
            )
    seed, resamples = audit["settings"]["seed"], audit["settings"]["resamples"]
    cells = make_cells(sources, columns, protocol, absent, seed=seed, resamples=resamples)
    utility = utility_rows(tables["subject"], tables["original"], columns, protocol, seed=seed, resamples=resamples)
    there = {*absent, *((cell["condition"], cell["column"]) for cell in cells)}
    utilities = [("as_is", column) for rule in protocol.utility for column in rule.columns]
    wanted = [*protocol.cells, *protocol.convicts, *utilities]
    left_out = [f"{column} under {condition}" for condition, column in wanted if (condition, column) not in there]
    problems += [f"audit.json: {what} is required, and is left out" for what in left_out]
    for made, stored in zip(cells, audit["cells"], strict=True):
        problems += _differences(made, stored, f"{made['column']} under {made['condition']}")
    for made, stored in zip(utility, audit["utility"], strict=True):
        problems += _differences(made, stored, f"utility {made['column']}")
    verdict = decide(
        cells,
        utility,
        protocol=protocol.said(resamples, seed),
        control=audit["control"]["sentence"],
        caveats=audit.get("caveats", []),  # an older audit has none
    )
    if requests := audit.get("requests", []):  # only where several were asked about
        parts = [Part(tuple(one["items"]), one["absent"]) for one in requests]
        alone = each_alone(sources, columns, protocol, absent, utility, parts, seed=seed, resamples=resamples)
        problems += _request_differences(alone, requests, sources)
        verdict = with_each(verdict, alone)
    given = {"word": verdict.word, "reasons": list(verdict.reasons), "scope": verdict.scope}
    for name, value in given.items():
        for file, said in (("audit.json", audit["verdict"].get(name)), ("verdict.json", held.get(name))):
            if said != value:
                problems.append(f"{file}: {name} is {said!r}, and the scores give {value!r}")
    return problems


def _wrongly_described(audit: dict[str, Any], protocol: Protocol, m: int) -> list[str]:
    """What audit.json says of its protocol, its columns and its control, where this installation has something else."""
    problems = [
        f"audit.json: protocol: {name} is not what this installation has"
        for name, value in protocol.as_plain(m).items()
        if name != "sha256" and audit["protocol"].get(name) != value
    ]
    for spec in protocol.probes:
        for name, column in build("probe", spec).columns.items():
            stored = audit["columns"].get(name, vars(column))  # one that is left out is told elsewhere
            problems += [
                f"audit.json: column {name}: {what} is {stored.get(what)!r}, and this installation has {value!r}"
                for what, value in vars(column).items()
                if what != "label" and stored.get(what) != value
            ]
    control = audit["control"]
    if control["is_paired"] != (control["kind"] != "holdout"):
        problems.append(f"audit.json: a control of kind {control['kind']!r} with is_paired {control['is_paired']!r}")
    return problems


def _request_differences(
    alone: Sequence[dict[str, Any]], requests: Sequence[dict[str, Any]], sources: Sources
) -> list[str]:
    """What is said of each request alone, and what the scores give."""
    problems = []
    for number, (made, stored) in enumerate(zip(alone, requests, strict=True), start=1):
        what = f"request {number}"
        own = frozenset(stored["items"])
        for condition, row in sources.subject.items():
            asked = [name for name in stored["absent"] if _is_asked(row.get(name), own)]
            problems += [f"audit.json: {what} is said to have no {name}, asked under {condition}" for name in asked]
        for part in ("cells", "facts"):
            if len(made[part]) != len(stored[part]):
                problems.append(f"audit.json: {what} has {len(stored[part])} {part}, the scores give {len(made[part])}")
            for made_one, one in zip(made[part], stored[part], strict=False):
                where = f"{made_one['column']} under {made_one['condition']}"
                problems += _differences(made_one, one, f"{what}, {part}, {where}")
        said = ("word", "reasons", "unseen")
        problems += _differences({name: made[name] for name in said}, {name: stored[name] for name in said}, what)
    items = [item for one in requests for item in one["items"]]
    return [*problems, *(["audit.json: an item counts for two requests"] if len(items) > len(set(items)) else [])]


def _is_asked(answer: Answer | None, own: frozenset[str]) -> bool:
    return isinstance(answer, Scores) and not own.isdisjoint(answer.items)


def _differences(made: dict[str, Any], stored: dict[str, Any], what: str) -> list[str]:
    return [
        f"audit.json: {what}: {name} is {stored.get(name)!r}, and the scores give {made.get(name)!r}"
        for name in {**made, **stored}
        if not _equal(made.get(name), stored.get(name))
    ]


def _equal(made: Any, stored: Any) -> bool:
    if isinstance(made, float) and isinstance(stored, int | float) and not isinstance(stored, bool):
        # Made again by another version of a library, a sum may differ in its last digits.
        return math.isclose(made, stored, rel_tol=1e-9, abs_tol=1e-9)
    return bool(made == stored)
