"""A whole run verifies; one altered file, field or score is found, even when all hashes and signatures are made anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from letheon.audits.audit import AuditResult
from letheon.audits.verdict import Verdict
from letheon.audits.verdict_file import write_verdict
from letheon.audits.verify import verify
from letheon.errors import BadInput
from letheon.runs.folder import sha256_file
from letheon.runs.ledger import load_record
from letheon.runs.record import RunFolder, purge
from letheon.runs.signing import fingerprint
from tests.audits.conftest import QUIET

Held = dict[str, Any]


@pytest.fixture
def run(audited: AuditResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(audited.run, tmp_path / "run"))


def signer(run: Path) -> str:
    return fingerprint(json.loads((run / "verdict.json").read_text())["public_key"])


def cell_of(held: Held, column: str, condition: str = "as_is") -> Held:
    return next(cell for cell in held["cells"] if (cell["condition"], cell["column"]) == (condition, column))


def reseal(run: Path, change: Callable[[Held], None]) -> list[str]:
    """What verify finds after a change by somebody who holds the key: every hash and signature is made anew."""
    held = json.loads((run / "audit.json").read_text())
    change(held)
    (run / "audit.json").write_text(json.dumps(held))
    record = load_record(run)
    record.stages[-1].outputs["audit.json"]["sha256"] = sha256_file(run / "audit.json")
    record.save(run)
    said = held["verdict"]
    write_verdict(run, Verdict(said["word"], tuple(said["reasons"]), said["scope"]), QUIET)
    return list(verify(run).problems)


# --- whole


def test_a_whole_run_verifies_and_says_by_whose_key(run: Path) -> None:
    found = verify(run)
    assert (found.problems, found.word, found.fingerprint, found.is_pinned) == ((), "NOT DELETED", signer(run), False)
    assert verify(run, key=signer(run)).is_pinned and verify(run, key=signer(run)).problems == ()
    for name in ("verdict.json", "audit.json", "record.json"):
        assert verify(run / name) == found
    assert reseal(run, lambda held: None) == [], "the seal of these tests is the seal of the audit"


def test_another_key_is_told_though_all_else_is_whole(run: Path) -> None:
    found = verify(run, key="0" * 32)
    assert found.problems == (f"verdict.json was signed by {signer(run)}, not by {'0' * 32}",) and not found.is_pinned


def test_a_verdict_signed_with_somebody_elses_key_is_whole_but_not_pinned(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = signer(run)
    monkeypatch.setenv("LETHEON_HOME", str(tmp_path / "another home"))
    (run / "verdict.json").unlink()
    assert reseal(run, lambda held: None) == []
    assert signer(run) != honest and verify(run, key=honest).problems and not verify(run, key=honest).is_pinned


def test_purged_raw_text_still_verifies(run: Path) -> None:
    assert run / "items.jsonl" in purge(run)
    assert not (run / "items.jsonl").exists() and verify(run).problems == ()


# --- files


@pytest.mark.parametrize("name", ["audit.json", "verdict.json", "record.json", "recipe.yaml", "items.jsonl"])
def test_one_altered_byte_is_found_and_named(run: Path, name: str) -> None:
    raw = bytearray((run / name).read_bytes())
    place = next(k for k in range(len(raw) // 2, len(raw)) if chr(raw[k]).isdigit())
    raw[place] = ord("1") if raw[place] != ord("1") else ord("2")
    (run / name).write_bytes(bytes(raw))
    problems = verify(run).problems
    assert any(name.split(".")[0] in problem for problem in problems), problems


@pytest.mark.parametrize("name", ["audit.json", "record.json", "recipe.yaml"])
def test_a_missing_file_is_named(run: Path, name: str) -> None:
    (run / name).unlink()
    assert any(name in problem for problem in verify(run).problems)


def test_without_a_verdict_the_record_is_checked_alone(run: Path, tmp_path: Path) -> None:
    (run / "verdict.json").unlink()
    found = verify(run)
    assert (found.problems, found.word, found.fingerprint, found.is_pinned) == ((), "", "", False)
    (run / "audit.json").write_text("{}")
    assert "audit.json was altered" in verify(run).problems[0]
    with pytest.raises(BadInput, match=r"neither a verdict\.json nor a record\.json is there"):
        verify(tmp_path / "nowhere")


NO_OBJECT = ["", "{", "[]", "null", "3"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("verdict.json", text) for text in [*NO_OBJECT, "{}", '{"public_key": "xyz"}', '{"word": NaN}']),
        *(("audit.json", text) for text in [*NO_OBJECT, "{}"]),
        *(("record.json", text) for text in ["", "[]", "{}"]),
    ],
)
def test_a_file_that_is_none_is_a_problem_and_no_crash(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)
    assert any(name in problem for problem in verify(run).problems)


def test_bytes_that_are_no_text_are_a_problem_and_no_crash(run: Path) -> None:
    for name in ("audit.json", "verdict.json"):
        (run / name).write_bytes(b"\xff\xfe{")
        assert any(f"{name} cannot be read" in problem for problem in verify(run).problems)


@pytest.mark.parametrize(("name", "value"), [("signature", "0" * 128), ("created", "2020-01-01"), ("note", "so be it")])
def test_what_only_the_signature_covers_is_told(run: Path, name: str, value: str) -> None:
    held = json.loads((run / "verdict.json").read_text())
    (run / "verdict.json").write_text(json.dumps({**held, name: value}))
    assert verify(run).problems == ("verdict.json: the signature is not over what the file says",)


def test_the_verdict_names_the_audit_and_the_record_it_was_made_on(run: Path) -> None:
    """Hashes made anew in the record are not enough: the verdict holds them too."""
    record = load_record(run)
    record.stages[-1].notes["said later"] = "and recorded"
    record.save(run)
    assert verify(run).problems == ("record.json is not the one the verdict was made on",)
    (run / "audit.json").write_text((run / "audit.json").read_text() + "\n")
    record.stages[-1].outputs["audit.json"]["sha256"] = sha256_file(run / "audit.json")
    record.save(run)
    assert verify(run).problems == (
        "audit.json is not the one the verdict was made on",
        "record.json is not the one the verdict was made on",
    )


def test_a_stage_after_the_audit_leaves_the_verdict_whole(run: Path) -> None:
    with RunFolder.open(run).stage("report", {}, {}, None):
        pass
    assert len(load_record(run).stages) == 2 and verify(run).problems == ()


# --- fields, by somebody who can sign


def lower_value(held: Held) -> None:
    cell_of(held, "forget_accuracy")["value"] = 0.0


def forget_one_answer(held: Held) -> None:
    held["scores"]["subject"]["as_is"]["forget_accuracy"]["values"][0] = 0.0


def raise_the_control(held: Held) -> None:
    answer = held["scores"]["control"]["int4_row"]["forget_accuracy"]
    answer["values"] = [1.0] * len(answer["values"])


def widen_a_margin(held: Held) -> None:
    cell_of(held, "forget_accuracy", "int8")["margin"] = 1.0


def let_it_not_be_required(held: Held) -> None:
    cell_of(held, "verbatim")["required"] = False


def make_all_units_one(held: Held) -> None:
    held["asked"][0]["units"] = [held["asked"][0]["units"][0]] * len(held["asked"][0]["units"])


def keep_less_utility(held: Held) -> None:
    held["utility"][0]["subject"] = 0.5


def add_a_number(held: Held) -> None:
    cell_of(held, "forget_rouge")["judgement"] = "clear"


def another_seed(held: Held) -> None:
    held["settings"]["seed"] = 1


def call_it_not_applicable(held: Held) -> None:
    held["not_applicable"].append({"condition": "int4_row", "column": "forget_accuracy", "reason": "for no reason"})


def another_protocol(held: Held) -> None:
    held["protocol"]["sha256"] = "0" * 64


def fewer_cells(held: Held) -> None:
    held["protocol"]["m"] -= 1


def another_margin(held: Held) -> None:
    held["protocol"]["required"][0]["margin"] = 1.0


def another_aggregate(held: Held) -> None:
    held["columns"]["forget_probability"]["aggregate"] = "exp_mean"


def strangers_as_pairs(held: Held) -> None:
    held["control"]["kind"] = "holdout" if held["control"]["is_paired"] else "reference"


def acquit(held: Held) -> None:
    held["verdict"].update(word="DELETED", reasons=["all is well"])


def a_cell_less(held: Held) -> None:
    held["cells"].pop()


def a_score_less(held: Held) -> None:
    held["scores"]["subject"]["as_is"]["forget_accuracy"]["values"].pop()


def a_score_beyond_all_numbers(held: Held) -> None:
    held["scores"]["subject"]["as_is"]["forget_accuracy"]["values"][0] = 10**400


def a_score_that_is_no_number(held: Held) -> None:
    held["scores"]["subject"]["as_is"]["forget_accuracy"]["values"][0] = float("nan")


TAMPERED: dict[Callable[[Held], None], str] = {
    lower_value: "forget_accuracy under as_is: value is 0.0, and the scores give 1.0",
    forget_one_answer: "forget_accuracy under as_is: value is 1.0, and the scores give",
    raise_the_control: "forget_accuracy under int4_row: control is 0.0, and the scores give 1.0",
    widen_a_margin: "forget_accuracy under int8: margin is 1.0, and the scores give 0.15",
    let_it_not_be_required: "verbatim under as_is: required is False, and the scores give True",
    make_all_units_one: "forget_accuracy under as_is: status is 'measured', and the scores give 'not measured'",
    keep_less_utility: "utility retain_accuracy: subject is 0.5, and the scores give",
    add_a_number: "forget_rouge under as_is: judgement is 'clear', and the scores give None",
    another_seed: "and the scores give",
    call_it_not_applicable: "forget_accuracy under int4_row is called not applicable, and there are scores for it",
    another_protocol: "audit.json was made by another text of protocol quick-1",
    fewer_cells: "audit.json: protocol: m is not what this installation has",
    another_margin: "audit.json: protocol: required is not what this installation has",
    another_aggregate: "column forget_probability: aggregate is 'exp_mean', and this installation has 'mean'",
    strangers_as_pairs: "with is_paired",
    acquit: "verdict.json: word is 'DELETED', and the scores give 'NOT DELETED'",
    a_cell_less: "audit.json cannot be read",
    a_score_less: "audit.json cannot be read",
    a_score_beyond_all_numbers: "audit.json cannot be read",
    a_score_that_is_no_number: "forget_accuracy under as_is: status is 'measured', and the scores give 'not measured'",
}


@pytest.mark.parametrize("change", TAMPERED, ids=lambda change: change.__name__)
def test_what_the_scores_do_not_give_is_found_under_any_seal(run: Path, change: Callable[[Held], None]) -> None:
    problems = reseal(run, change)
    assert any(TAMPERED[change] in problem for problem in problems), problems
    assert not any(
        "is not the one the verdict was made on" in problem or "signature" in problem for problem in problems
    )


def leave_out_a_condition(held: Held) -> None:
    """What convicts is gone, and the verdict is that of the smaller matrix."""
    for table in held["scores"].values():
        table.pop("int4_row", None)
    held["cells"] = [cell for cell in held["cells"] if cell["condition"] != "int4_row"]
    held["verdict"]["reasons"] = [reason for reason in held["verdict"]["reasons"] if "int4_row" not in reason]
    scope = held["verdict"]["scope"].replace("22 required", "17 required").replace("6 conditions", "5 conditions")
    held["verdict"]["scope"] = scope.replace("int4_row, ", "")


def leave_out_a_column(held: Held) -> None:
    for part in (held["columns"], held["scores"]["subject"]["as_is"]):
        part.pop("general_accuracy")
    for part in ("cells", "utility"):
        held[part] = [entry for entry in held[part] if entry["column"] != "general_accuracy"]


@pytest.mark.parametrize(
    ("change", "left_out"),
    [
        (leave_out_a_condition, {"forget_accuracy under int4_row", "verbatim under int4_row"}),
        (leave_out_a_column, {"general_accuracy under as_is"}),
    ],
)
def test_what_the_protocol_requires_cannot_be_left_out(
    run: Path, change: Callable[[Held], None], left_out: set[str]
) -> None:
    """A matrix without it is no smaller audit, even where everything that is left fits together."""
    problems = reseal(run, change)
    told = {problem.removeprefix("audit.json: ").partition(" is required")[0] for problem in problems}
    assert left_out <= told and all(problem.endswith("is required, and is left out") for problem in problems), problems
