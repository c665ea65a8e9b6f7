"""Whole audits of a small world: what is found, what is refused, what can be checked again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from letheon.audits.audit import AuditResult, audit
from letheon.audits.verify import verify
from letheon.errors import BadInput
from letheon.quantization.pipeline import quantize
from letheon.recipes.tiny_models import TinyModels, tiny_models
from letheon.runs.progress import Progress
from letheon.runs.record import purge
from letheon.runs.signing import fingerprint
from letheon.tiny.world import WorldSize
from letheon.unlearning.forget import forget

QUIET = Progress(quiet=True)
SIZE = WorldSize(forget=6, retain=16, holdout=12, attributes=2, countries=4)


@pytest.fixture(scope="module")
def small() -> TinyModels:
    return tiny_models(0, SIZE, steps=260, progress=QUIET)


@pytest.fixture(scope="module")
def audited(small: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    """The target itself, audited as if it had forgotten."""
    return audit_of(small, small.target, tmp_path_factory.mktemp("audited") / "run")


def audit_of(small: TinyModels, model: Path, out: Path, **changes: object) -> AuditResult:
    """An audit with everything given, but for the changes."""
    given: dict[str, object] = {
        "original": small.target,
        "reference": small.reference,
        "forget_data": small.files["forget"],
        "retain_data": small.files["retain"],
        "holdout_data": small.files["holdout"],
        "general_data": small.files["general"],
        **changes,
    }
    return audit(model, out=out, progress=QUIET, **{name: value for name, value in given.items() if value is not None})


def cell(result: AuditResult, column: str, condition: str = "as_is") -> dict[str, Any]:
    cells = result.audit["cells"]
    return next(one for one in cells if (one["condition"], one["column"]) == (condition, column))


def test_a_model_that_knows_is_not_deleted(audited: AuditResult) -> None:
    assert audited.verdict.word == "NOT DELETED"
    assert cell(audited, "forget_accuracy")["value"] >= 0.9
    assert cell(audited, "forget_accuracy")["control"] <= 0.3
    assert cell(audited, "membership_texts")["value"] >= 0.9
    assert any("forget_accuracy under int4_row" in reason for reason in audited.verdict.reasons)


def test_a_model_that_never_knew_is_not_convicted(small: TinyModels, tmp_path: Path) -> None:
    result = audit_of(small, small.reference, tmp_path / "run")
    assert result.verdict.word != "NOT DELETED"
    for column in ("forget_accuracy", "membership_questions", "verbatim"):
        assert cell(result, column)["d"] == 0.0


def test_the_same_audit_twice_gives_the_same_bytes(small: TinyModels, tmp_path: Path, audited: AuditResult) -> None:
    again = audit_of(small, small.target, tmp_path / "run")
    first, second = json.loads(audited.audit_path.read_text()), json.loads(again.audit_path.read_text())
    assert first["cells"] == second["cells"]
    assert first["verdict"] == second["verdict"]
    before = audited.audit_path.read_bytes()
    audit_of(small, small.target, audited.run)
    assert audited.audit_path.read_bytes() == before


def test_without_a_reference_holdout_units_are_the_control(small: TinyModels, tmp_path: Path) -> None:
    result = audit_of(small, small.target, tmp_path / "run", reference=None)
    assert result.audit["control"]["kind"] == "holdout"
    assert cell(result, "membership_questions")["control"] == 0.5
    assert result.verdict.word == "NOT DELETED"


def test_without_either_invented_names_are_the_control(small: TinyModels, tmp_path: Path) -> None:
    result = audit_of(small, small.target, tmp_path / "run", reference=None, holdout_data=None)
    assert result.audit["control"]["kind"] == "lookalike"
    assert cell(result, "forget_accuracy")["control"] < 0.5
    assert cell(result, "membership_texts")["status"] == "not measured"
    inputs = "".join(small.files[name].read_text() for name in ("forget", "retain", "general"))
    items = [json.loads(line) for line in (result.run / "items.jsonl").read_text().splitlines()]
    assert all(item["unit"] in inputs for item in items)


def test_no_general_knowledge_given_is_not_a_pass(small: TinyModels, tmp_path: Path) -> None:
    result = audit_of(small, small.reference, tmp_path / "run", general_data=None)
    assert result.verdict.word == "INCONCLUSIVE"
    assert any("general_accuracy: not measured" in reason for reason in result.verdict.reasons)


def test_a_holdout_that_was_trained_on_is_refused(small: TinyModels, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holdout and retain overlap: \d+ records are equal"):
        audit_of(small, small.target, tmp_path / "run", holdout_data=small.files["retain"])


def test_what_the_forget_run_knows_need_not_be_given(small: TinyModels, tmp_path: Path) -> None:
    made = forget(
        small.target,
        forget_data=small.files["forget"],
        retain_data=small.files["retain"],
        holdout_data=small.files["holdout"],
        method={"name": "npo", "until": "holdout"},
        learning_rate=1e-3,
        steps=4,
        stop={"every": 0},
        out=tmp_path / "run",
        progress=QUIET,
    )
    low = quantize(made.folder, out=tmp_path / "low", progress=QUIET)
    result = audit(
        made.folder, reference=small.reference, general_data=small.files["general"], shipped=low.folder, progress=QUIET
    )
    assert result.run == tmp_path / "run"
    assert result.audit["models"]["original"]["path"].endswith("1-train")
    members = result.audit["data"]["holdout"]["units"]
    assert len(made.notes["gate_units"]) * 2 == members == 12
    assert cell(result, "membership_questions")["n_units"] == 6 + 6
    assert cell(result, "forget_accuracy", "shipped")["value"] == cell(result, "forget_accuracy", "int4_row")["value"]
    assert verify(result.run).problems == ()


def test_a_whole_run_verifies_and_says_by_whose_key(audited: AuditResult) -> None:
    held = json.loads((audited.run / "verdict.json").read_text())
    who = fingerprint(held["public_key"])
    found = verify(audited.run)
    assert (found.problems, found.word, found.fingerprint, found.is_pinned) == ((), "NOT DELETED", who, False)
    assert verify(audited.run, key=who).is_pinned
    assert verify(audited.run, key="0" * 32).problems


@pytest.mark.parametrize("name", ["audit.json", "verdict.json", "record.json", "recipe.yaml", "items.jsonl"])
def test_one_altered_byte_is_found_and_named(audited: AuditResult, tmp_path: Path, name: str) -> None:
    run = shutil.copytree(audited.run, tmp_path / "run")
    raw = bytearray((run / name).read_bytes())
    place = next(k for k in range(len(raw) // 2, len(raw)) if chr(raw[k]).isdigit())
    raw[place] = ord("1") if raw[place] != ord("1") else ord("2")
    (run / name).write_bytes(bytes(raw))
    problems = verify(run).problems
    assert any(name.split(".")[0] in problem for problem in problems), problems


def test_a_cell_changed_together_with_its_hashes_is_found_by_making_it_again(
    audited: AuditResult, tmp_path: Path
) -> None:
    run = shutil.copytree(audited.run, tmp_path / "run")
    found = json.loads((run / "audit.json").read_text())
    changed = next(one for one in found["cells"] if one["column"] == "forget_accuracy" and one["condition"] == "as_is")
    changed["value"] = 0.0
    (run / "audit.json").write_text(json.dumps(found))
    assert any("forget_accuracy under as_is" in problem and "value" in problem for problem in verify(run).problems)


def test_purged_raw_text_still_verifies(audited: AuditResult, tmp_path: Path) -> None:
    run = shutil.copytree(audited.run, tmp_path / "run")
    purge(run)
    assert not (run / "items.jsonl").exists()
    assert verify(run).problems == ()
