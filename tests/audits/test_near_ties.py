"""What another machine may answer otherwise is listed by row, in audit.json and on the page, and changes no cell."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from letheon.audits.audit import AuditResult, audit
from letheon.audits.near_ties import MARGIN, NearTies
from letheon.models import load_model
from letheon.reports.page import report
from letheon.training.losses import Body
from letheon.training.scoring import score_examples
from tests.audits.conftest import QUICKLY
from tests.audits.mini import Mini


def test_rows_without_a_near_tie_are_not_there_and_an_item_is_named_once() -> None:
    ties = NearTies()
    ties.note("as_is", [])
    ties.note("int8", ["b", "a"])
    ties.note("int8", ["b", "c"])
    assert ties.as_plain(str.upper) == {"margin": MARGIN, "rows": [{"condition": "int8", "items": ["A", "B", "C"]}]}


def twins(mini: Mini, target: Path) -> tuple[Path, set[int]]:
    """The model with the first token of one answer standing twice in its head, and the lines of all such answers."""
    shutil.copytree(mini.target, target)
    questions = mini.data("forget").questions
    examples = mini.encoder.encode_all(questions)
    token = examples[0].answer_ids[0]
    weights = load_file(target / "model.safetensors")
    weights["lm_head.weight"][5] = weights["lm_head.weight"][token]
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    leads = score_examples(Body(load_model(target)), examples, pad=mini.encoder.pad).smallest_leads()
    return target, {record.line for record, lead in zip(questions, leads, strict=True) if lead < MARGIN}


def test_an_audit_lists_them_by_the_ids_of_its_scores(mini: Mini, audited: AuditResult, tmp_path: Path) -> None:
    model, lines = twins(mini, tmp_path / "twins")
    assert 0 < len(lines) < len(mini.data("forget").questions)
    found = audit(model, reference=mini.reference, out=tmp_path / "run", **mini.inputs, **QUICKLY)
    rows = {row["condition"]: row["items"] for row in found.audit["near_ties"]["rows"]}
    assert found.audit["near_ties"]["margin"] == MARGIN and "as_is" in rows
    ids = {item for asked in found.audit["asked"] for item in asked["items"]}
    assert set(rows["as_is"]) <= ids, "no name stands in audit.json"
    assert len(set(rows["as_is"])) == len(rows["as_is"]) >= len(lines)
    text = report(found.run).read_text(encoding="utf-8")
    assert "Answers that hang by a hair" in text and all(item in text for item in rows["as_is"])
    before = {row["condition"]: row["items"] for row in audited.audit["near_ties"]["rows"]}
    assert len(before.get("as_is", [])) < len(lines), "the same model without the tie"


def test_those_of_the_reference_are_not_the_models(
    mini: Mini, audited: AuditResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETHEON_CACHE", str(tmp_path / "cache"))  # the reference is asked, and not remembered
    reference, lines = twins(mini, tmp_path / "twins")
    found = audit(mini.reference, reference=reference, out=tmp_path / "run", **mini.inputs, **QUICKLY)
    rows = {row["condition"]: row["items"] for row in found.audit["near_ties"]["rows"]}
    assert len(rows.get("as_is", [])) < len(lines)


def test_a_page_without_any_says_nothing_of_them(audited: AuditResult, tmp_path: Path) -> None:
    run = Path(shutil.copytree(audited.run, tmp_path / "run"))
    held = json.loads((run / "audit.json").read_text())
    for empty in ({"margin": MARGIN, "rows": []}, None):
        held["near_ties"] = empty
        (run / "audit.json").write_text(json.dumps(held))
        assert "hang by a hair" not in report(run).read_text(encoding="utf-8")


def test_the_lead_of_a_tie_is_zero() -> None:
    from letheon.training.scoring import _leads

    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, -torch.inf]])
    assert _leads(logits, logits.argmax(-1)).tolist() == [0.0, 2.0]
