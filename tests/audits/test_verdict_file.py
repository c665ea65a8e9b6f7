"""What is signed, by whom, and what is left alone: verdict.json of an audited run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from letheon.audits.audit import AuditResult
from letheon.audits.verdict import Verdict
from letheon.audits.verdict_file import make_key, read_verdict, signature_holds, write_verdict
from letheon.runs.ledger import load_record
from letheon.runs.progress import Progress
from letheon.runs.signing import public_key
from tests.audits.conftest import QUIET


@pytest.fixture
def run(audited: AuditResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(audited.run, tmp_path / "run"))


def test_it_says_what_the_audit_says_and_names_its_evidence(run: Path, audited: AuditResult) -> None:
    import hashlib

    held = read_verdict(run / "verdict.json")
    said = audited.audit["verdict"]
    assert [held[name] for name in ("word", "reasons", "scope")] == [said["word"], said["reasons"], said["scope"]]
    assert held["audit_sha256"] == hashlib.sha256((run / "audit.json").read_bytes()).hexdigest()
    record = load_record(run)
    assert held["record_sha256"] == record.sha256 and held["created"] == record.stages[-1].ended
    resamples = audited.audit["settings"]["resamples"]  # fewer than the protocol's, and a reader is told
    sha256 = audited.audit["protocol"]["sha256"]
    assert held["protocol"] == f"quick-1 (with {resamples} resamples, for trying out) ({sha256})"
    assert held["public_key"] == public_key() and signature_holds(held)


def altered(value: Any) -> Any:
    return value[:-1] if isinstance(value, list) else f"{value[:-1]}{'0' if value[-1] != '0' else '1'}"


def test_every_word_of_it_is_signed(run: Path) -> None:
    held = read_verdict(run / "verdict.json")
    for name, value in held.items():
        assert not signature_holds({**held, name: altered(value)}), name
        assert not signature_holds({key: said for key, said in held.items() if key != name}), name
    assert not signature_holds({**held, "note": "one field more"})


def test_the_order_and_the_layout_of_the_file_do_not_matter(run: Path) -> None:
    held = read_verdict(run / "verdict.json")
    (run / "verdict.json").write_text(json.dumps(dict(sorted(held.items())), indent=7), encoding="utf-8")
    assert signature_holds(read_verdict(run / "verdict.json"))


def test_a_verdict_that_still_holds_is_left_alone(run: Path, audited: AuditResult) -> None:
    path = run / "verdict.json"
    path.write_text(json.dumps(read_verdict(path), indent=7), encoding="utf-8")
    before = path.read_bytes()
    assert write_verdict(run, audited.verdict, QUIET) == path and path.read_bytes() == before


HARMS: dict[str, Callable[[Path], None]] = {
    "gone": lambda path: path.unlink(),
    "half written": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "no object": lambda path: path.write_text("[]"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "another word": lambda path: path.write_text(path.read_text().replace("NOT DELETED", "DELETED", 1)),
    "a signature by nobody": lambda path: path.write_text(
        json.dumps({**read_verdict(path), "signature": "0" * 128})
    ),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_verdict_that_does_not_hold_is_written_again(harm: str, run: Path, audited: AuditResult) -> None:
    whole = read_verdict(run / "verdict.json")
    HARMS[harm](run / "verdict.json")
    write_verdict(run, audited.verdict, QUIET)
    assert read_verdict(run / "verdict.json") == whole, "Ed25519 signatures are deterministic"


def test_another_verdict_replaces_the_old_one(run: Path) -> None:
    write_verdict(run, Verdict("INCONCLUSIVE", ("for a reason",), "nowhere"), QUIET)
    held = read_verdict(run / "verdict.json")
    assert (held["word"], held["reasons"], held["scope"]) == ("INCONCLUSIVE", ["for a reason"], "nowhere")
    assert signature_holds(held)


def test_a_key_is_announced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LETHEON_HOME", str(tmp_path))
    for _ in range(2):
        make_key(Progress())
    told = capsys.readouterr().err
    assert told.count("a signing key was made") == 1 and str(tmp_path / "key") in told
