"""Whole audits of a small world, one for each kind of control: who is convicted, who is not, and what stays open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from letheon.audits.audit import AuditResult, audit
from tests.audits.conftest import QUICKLY
from tests.audits.mini import Mini


def audit_of(mini: Mini, model: Path, out: Path, **changes: object) -> AuditResult:
    """An audit with everything given, but for the changes."""
    given = {"reference": mini.reference, **mini.inputs, **changes}
    return audit(model, out=out, **{name: value for name, value in given.items() if value is not None}, **QUICKLY)


def cell(result: AuditResult, column: str, condition: str = "as_is") -> dict[str, Any]:
    cells = result.audit["cells"]
    return next(one for one in cells if (one["condition"], one["column"]) == (condition, column))


def test_a_model_that_knows_is_not_deleted(audited: AuditResult) -> None:
    assert audited.verdict.word == "NOT DELETED"
    assert cell(audited, "forget_accuracy")["value"] >= 0.9
    assert cell(audited, "forget_accuracy")["control"] <= 0.3
    assert cell(audited, "membership_texts")["value"] >= 0.9
    assert any("forget_accuracy under int4_row" in reason for reason in audited.verdict.reasons)


def test_a_model_that_never_knew_is_not_convicted(mini: Mini, tmp_path: Path) -> None:
    result = audit_of(mini, mini.reference, tmp_path / "run")
    assert result.verdict.word != "NOT DELETED"
    for column in ("forget_accuracy", "membership_questions", "verbatim"):
        assert cell(result, column)["d"] == 0.0


def test_without_a_reference_holdout_units_are_the_control(mini: Mini, tmp_path: Path) -> None:
    result = audit_of(mini, mini.target, tmp_path / "run", reference=None)
    assert result.audit["control"]["kind"] == "holdout"
    assert cell(result, "membership_questions")["control"] == 0.5
    assert result.verdict.word == "NOT DELETED"


def test_without_either_invented_names_are_the_control(mini: Mini, tmp_path: Path) -> None:
    result = audit_of(mini, mini.target, tmp_path / "run", reference=None, holdout_data=None)
    assert result.audit["control"]["kind"] == "lookalike"
    assert cell(result, "forget_accuracy")["control"] < 0.5
    assert cell(result, "membership_texts")["status"] == "not measured"
    inputs = "".join(mini.files[name].read_text() for name in ("forget", "retain", "general"))
    items = [json.loads(line) for line in (result.run / "items.jsonl").read_text().splitlines()]
    assert all(item["unit"] in inputs for item in items)


def test_a_reference_that_knows_acquits_nobody(mini: Mini, tmp_path: Path) -> None:
    """One mistyped path: the original in the reference's place. Every difference is 0, and nothing was shown."""
    result = audit_of(mini, mini.target, tmp_path / "run", reference=mini.target)
    assert cell(result, "forget_accuracy")["value"] >= 0.9 and cell(result, "forget_accuracy")["d"] == 0.0
    assert result.verdict.word == "INCONCLUSIVE"
    assert any("nothing could have been seen" in reason for reason in result.verdict.reasons)


def test_an_original_that_knows_nothing_shows_nothing(mini: Mini, tmp_path: Path) -> None:
    result = audit_of(mini, mini.base, tmp_path / "run", original=mini.base, reference=None)
    assert result.verdict.word == "INCONCLUSIVE"
    assert any("so a loss could not be seen" in reason for reason in result.verdict.reasons)


def test_no_general_knowledge_given_is_not_a_pass(mini: Mini, tmp_path: Path) -> None:
    result = audit_of(mini, mini.reference, tmp_path / "run", general_data=None)
    assert result.verdict.word == "INCONCLUSIVE"
    assert any("general_accuracy: not measured" in reason for reason in result.verdict.reasons)
