"""verdict.json: what was decided, on which evidence, by whose key.

The signature is over the canonical JSON of everything else in the file, which names audit.json and the run's record by
hash; so altering the verdict, a cell, a score or the record is found.

Source: this project.  Checked against: one altered byte in each file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from letheon.audits.protocol import read_protocol
from letheon.audits.verdict import Verdict
from letheon.errors import require
from letheon.runs.folder import sha256_file, write_json
from letheon.runs.ledger import canonical, load_record
from letheon.runs.progress import Progress
from letheon.runs.signing import Signature, ensure_key, sign, verify

SCHEMA = "letheon.verdict/1"


def write_verdict(run: Path, verdict: Verdict, progress: Progress) -> Path:
    """Sign and write the verdict on a finished audit; what already stands and still holds is left alone."""
    path = run / "verdict.json"
    record = load_record(run)
    stage = next(entry for entry in record.stages if entry.verb == "audit")
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "word": verdict.word,
        "reasons": list(verdict.reasons),
        "scope": verdict.scope,
        "protocol": f"{_said(stage.settings)} ({stage.settings['protocol_sha256']})",
        "audit_sha256": sha256_file(run / "audit.json"),
        "record_sha256": stage.sha256(),
        "created": stage.ended,
    }
    if path.is_file() and _holds(path, body):
        return path
    make_key(progress)
    signature = sign(canonical(body))
    write_json(path, {**body, "public_key": signature.public_key, "signature": signature.signature})
    return path


def _said(settings: Mapping[str, Any]) -> str:
    """The protocol's name, with whatever was not the protocol's."""
    return read_protocol(settings["protocol"]).said(int(settings["resamples"]), int(settings["seed"]))


def make_key(progress: Progress) -> None:
    """Make the signing key on first use, and say where it is."""
    key, is_new = ensure_key()
    if is_new:
        progress.say(f"a signing key was made: {key} (keep it; verdicts are signed with it)")


def read_verdict(path: Path) -> dict[str, Any]:
    """The file as it is. Raises ValueError (BadInput, or what reading JSON raises) where it holds no object."""
    held = json.loads(path.read_text(encoding="utf-8"))
    require(isinstance(held, dict), f"{path} holds no object")
    return dict(held)


def signature_holds(held: dict[str, Any]) -> bool:
    """Whether the signature in a verdict is over what it says."""
    body = {name: value for name, value in held.items() if name not in ("public_key", "signature")}
    return verify(canonical(body), Signature(str(held.get("public_key")), str(held.get("signature"))))


def _holds(path: Path, body: dict[str, Any]) -> bool:
    try:
        held = read_verdict(path)
        return all(held.get(name) == value for name, value in body.items()) and signature_holds(held)
    except ValueError:  # no text, no JSON, no object, NaN
        return False
