"""Every probe that a protocol can name, in whole tables and a whole audit: each control, rounded, and poor data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from letheon.audits import request as request_module
from letheon.audits import verify as verify_module
from letheon.audits.audit import audit
from letheon.audits.columns import Scores
from letheon.audits.matrix import HALF, Answer
from letheon.audits.plan import Plan, make_plan
from letheon.audits.protocol import Protocol, read_protocol
from letheon.audits.stored import Rows
from letheon.audits.tables import Asker
from letheon.audits.verify import verify
from letheon.data.records import DataFile
from letheon.methods import names
from letheon.models import inspect_model
from letheon.recipes.audit_notes import notes_of
from letheon.reports.page import report
from tests.audits.conftest import QUICKLY
from tests.audits.mini import Mini
from tests.toys import write_lines

CONDITIONS = ("as_is", "int4_row")
BY_LETTER = ("letters", "letters_mean", "letters_worst", "entropy")
MANY_TOKENS = "the letter C is 2 tokens to this tokenizer"
"""What the tiny tokenizer makes of the third choice."""
HELD_STRONGER = (
    "exact_memorisation_texts", "exact_memorisation_questions", "extraction_strength_texts",
    "extraction_strength_questions", "forget_choice_text", "forget_leak_at_1", "forget_leak_at_128",
)  # fmt: skip


def every_probe() -> Protocol:
    """quick-1 under two conditions, with every probe there is."""
    quick = read_protocol("quick-1")
    return replace(
        quick,
        probes=names("probe"),
        conditions={name: quick.conditions[name] for name in CONDITIONS},
        cells={cell: rule for cell, rule in quick.cells.items() if cell[0] in CONDITIONS},
    )


def plan_of(mini: Mini, *, reference: bool = True, **files: DataFile | None) -> Plan:
    data = {role: mini.data(role) for role in ("forget", "retain", "holdout", "general")} | files
    given = {role: file for role, file in data.items() if file is not None}
    return make_plan(
        every_probe(), given, encoder=mini.encoder, has_reference=reference, shipped=None, gate_units=frozenset(), seed=0
    )  # fmt: skip


def rows_of(mini: Mini, plan: Plan, *, role: str = "", model: Path | None = None) -> tuple[Rows, Rows]:
    asker = Asker(plan, mini.encoder, "cpu", {}, lambda _: None)
    own, control, _ = asker.table(inspect_model(model or mini.target), plan.conditions, self_control=role)
    return own, control


def number(row: Mapping[str, Answer], column: str, plan: Plan) -> float:
    answer = row[column]
    assert isinstance(answer, Scores), f"{column}: {answer}"
    return answer.aggregate(plan.columns[column].aggregate)


@pytest.fixture(scope="module")
def plan(mini: Mini) -> Plan:
    return plan_of(mini, reference=False)


@pytest.fixture(scope="module")
def tables(mini: Mini, plan: Plan) -> tuple[Rows, Rows]:
    """The target, and strangers asked of it."""
    return rows_of(mini, plan, role="holdout")


def test_every_column_is_a_number_or_says_why_it_is_none(plan: Plan, tables: tuple[Rows, Rows]) -> None:
    own, _ = tables
    for condition in CONDITIONS:
        assert list(own[condition]) == list(plan.columns)
        for column, answer in own[condition].items():
            if not isinstance(answer, Scores):
                assert column.split("choice_")[-1] in BY_LETTER and MANY_TOKENS in str(answer), f"{column}: {answer}"
    rounded = [c for c in own["as_is"] if isinstance(own["as_is"][c], Scores) and own["as_is"][c] != own["int4_row"][c]]
    assert len(rounded) > 20, "rounding changes what is measured"


def test_a_model_that_knows_is_seen_by_every_new_column(plan: Plan, tables: tuple[Rows, Rows]) -> None:
    own, control = (table["as_is"] for table in tables)
    for column in HELD_STRONGER:
        assert number(own, column, plan) > number(control, column, plan) + 0.1, column
    for column in plan.columns:
        if column.startswith("membership"):
            assert number(own, column, plan) > 0.8 and control[column] is HALF, column
    # Strangers' answers are confidently wrong here, and min(R, 1 / R) is low for that as well: no order is asserted.
    for kind in ("geometric", "arithmetic"):
        assert number(own, f"retain_truth_ratio_{kind}", plan) > 0.7 > number(own, f"forget_truth_ratio_{kind}", plan)


def test_the_reference_is_at_chance(mini: Mini, plan: Plan) -> None:
    own = rows_of(mini, plan, model=mini.reference)[0]["as_is"]
    assert number(own, "forget_choice_text", plan) < 0.6 and number(own, "extraction_strength_questions", plan) < 0.4
    assert number(own, "forget_leak_at_1", plan) < 0.1 < number(own, "retain_choice_text", plan)
    for column in ("membership_loss", "membership_min_k_plus_40", "membership_gradient"):
        assert 0.1 < number(own, column, plan) < 0.9, column


def test_invented_names_are_asked_everything_but_texts(mini: Mini) -> None:
    plan = plan_of(mini, reference=False, holdout=None)
    own, control = rows_of(mini, plan, role="lookalike")
    for column in (
        "forget_choice_text",
        "forget_truth_ratio_geometric",
        "forget_leak_at_8",
        "extraction_strength_questions",
    ):
        assert number(control["as_is"], column, plan) >= 0.0
        items = control["as_is"][column].items  # type: ignore[union-attr]
        assert all(item.startswith("lookalike/forget/") for item in items)
    assert number(own["as_is"], "forget_choice_text", plan) > number(control["as_is"], "forget_choice_text", plan)
    assert "the lookalike set holds no texts" in str(control["as_is"]["exact_memorisation_texts"])
    assert "--holdout" in str(own["as_is"]["membership_zlib"])


def test_a_whole_audit_with_every_probe_can_be_verified(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data without wrong answers: such columns are not applicable, and utilities say what is missing."""
    for module in (request_module, verify_module):
        monkeypatch.setattr(module, "read_protocol", lambda _: every_probe())
    files = {}
    for role in ("forget", "retain", "holdout", "general"):
        lines = [json.loads(line) for line in mini.files[role].read_text(encoding="utf-8").splitlines()]
        bare = [{key: value for key, value in line.items() if key != "wrong"} for line in lines]
        files[f"{role}_data"] = write_lines(tmp_path / f"{role}.jsonl", bare)
    found = audit(mini.reference, original=mini.target, out=tmp_path / "run", **files, **QUICKLY)
    cells = {(one["condition"], one["column"]): one for one in found.audit["cells"]}
    assert cells["as_is", "forget_choice_text"]["status"] == "not applicable"
    assert cells["int4_row", "forget_truth_ratio_geometric"]["reason"] == "the forget set holds no wrong answers"
    retained = cells["as_is", "retain_truth_ratio_geometric"]
    assert retained["status"] == "not measured" and "no question of the retain set" in retained["reason"]
    for column in (*HELD_STRONGER, "membership_min_k_plus_20", "membership_gradient", "forget_entropy"):
        if column != "forget_choice_text":
            cell: Any = cells["int4_row", column]
            assert cell["status"] == "measured" and cell["d_lower"] <= cell["d"] <= cell["d_upper"], column
    assert verify(tmp_path / "run").problems == ()
    page = report(tmp_path / "run").read_text(encoding="utf-8")
    for column in HELD_STRONGER:
        assert found.audit["columns"][column]["label"] in page, "a column that the page has no words for has its label"


def test_a_reference_is_asked_the_same_items(mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences are paired, and what the target knows beyond it is found in the columns that can be required."""
    monkeypatch.setattr(request_module, "read_protocol", lambda _: every_probe())
    found = audit(mini.target, reference=mini.reference, out=tmp_path / "run", **mini.inputs, **QUICKLY)
    cells = {one["column"]: one for one in found.audit["cells"] if one["condition"] == "int4_row"}
    assert found.audit["control"]["is_paired"]
    for column in HELD_STRONGER:
        assert cells[column]["d_lower"] > 0.1 and cells[column]["control"] < 0.6, column
    for column in ("membership_loss", "membership_min_k_plus_20", "membership_gradient"):
        assert cells[column]["value"] > 0.9 and 0.1 < cells[column]["control"] < 0.9, column
    for letters in ("forget_choice_letters", "retain_choice_letters_mean"):
        assert cells[letters]["status"] == "not measured" and MANY_TOKENS in cells[letters]["reason"]


def test_what_an_audit_with_every_probe_takes_can_be_told_before(mini: Mini, plan: Plan) -> None:
    """The rehearsal asks what the audit asks: every set that is passed through the model, once a condition and model."""
    notes = notes_of(plan, mini.encoder)
    for name in ("forget_texts", "forget_answers", "forget_lower_case", "holdout_texts", "retain_answers"):
        assert notes.scored[name] >= 1, name
    # A backward pass is two forward ones, for each of two rounded models and the original.
    assert notes.scored["forget_texts"] - notes.scored["forget_lower_case"] == 3 * 3
    assert notes.generated
