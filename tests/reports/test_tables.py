from __future__ import annotations

from types import ModuleType

import pytest

from letheon.reports.tables import Reasons, control_of, find, matrix, shade_of, shown_cell


def test_reasons_are_numbered_once_in_order() -> None:
    reasons = Reasons()
    given = [
        reasons.add("not measured", why, column, "int8")
        for why, column in (("a", "x"), ("b", "x"), ("a", "y"), ("a", "y"))
    ]
    assert given == [1, 2, 1, 1]
    assert [row["places"] for row in reasons.rows()] == [["x: int8", "y: int8; int8"], ["x: int8"]]


def test_forty_rows_of_twenty_probes_stand_in_groups_with_every_reason(fakes: ModuleType) -> None:
    audit, reasons = fakes.make_large(), Reasons()
    forget, utility = matrix(audit, reasons)
    assert len(forget["columns"]) + len(utility["columns"]) == 20 and forget["is_large"]
    assert sum(len(group["rows"]) for group in forget["groups"]) == 40 == len(audit["conditions"])
    assert [group["title"] for group in forget["groups"]] == [
        "As it is", "Rounded", "Attacks on weights", "Attacks on activations", "Attacks on prompts",
    ]  # fmt: skip
    # rows that would say nothing are named below the table, and their cells have their reason in the list all the same
    rows = [row["label"] for group in utility["groups"] for row in group["rows"]]
    assert len(rows) + len(utility["unasked"]) == 40 and not set(rows) & set(utility["unasked"])
    assert "relearn, 40" in rows and "relearn, 5" in utility["unasked"]
    (why,) = [row for row in reasons.rows() if row["reason"] == "asked about forgotten facts and texts only"]
    (place,) = [place for place in why["places"] if place.startswith("Retained facts, trained")]
    assert all(label in place for label in utility["unasked"])


def test_a_required_row_is_never_left_out(fakes: ModuleType) -> None:
    audit = fakes.with_attacks(fakes.make_audit())
    for cell in audit["cells"]:
        if (cell["condition"], cell["column"]) == ("prune_0.5", "retain_accuracy"):
            cell["required"] = True
    _, utility = matrix(audit, Reasons())
    assert "prune, 0.5" not in utility["unasked"] and "prune, 0.1" in utility["unasked"]


@pytest.mark.parametrize("reason", ["budget exhausted: the audit was given 60 s", "control: budget exhausted: 60 s"])
def test_what_was_not_begun_in_time_looks_different(fakes: ModuleType, reason: str) -> None:
    cell = {"condition": "int8", "column": "verbatim", "status": "not measured", "reason": reason, "required": True}
    reasons = Reasons()
    shown = shown_cell({}, cell, "int8", "verbatim", reasons)
    assert (shown.kind, shown.text, shown.note) == ("spent", "budget exhausted", 1)
    assert reasons.rows()[0]["reason"] == reason
    other = shown_cell({}, {**cell, "reason": "no texts"}, "int8", "verbatim", reasons)
    assert (other.kind, other.text, other.note) == ("missing", "not measured", 2)


def test_the_same_reason_for_another_status_is_another_one() -> None:
    reasons = Reasons()
    assert [reasons.add(status, "a", "x", "int8") for status in ("not measured", "not applicable")] == [1, 2]


@pytest.mark.parametrize(
    ("column", "changes", "shade", "hue"),
    [
        ("forget_accuracy", {"d": 0.5}, 0.5, "warm"),
        ("forget_accuracy", {"d": -0.5}, 0.0, "warm"),
        ("forget_accuracy", {"d": 1.7}, 1.0, "warm"),
        ("forget_accuracy", {"d": 0.01}, 0.0, "warm"),
        ("forget_accuracy", {"d": None}, 0.0, "warm"),
        ("membership_texts", {"d": 0.25}, 0.5, "warm"),
        ("membership_texts", {"d": -0.25}, 0.5, "cold"),
        ("retain_accuracy", {"value": 0.4, "original": 1.0}, 0.6, "warm"),
        ("retain_accuracy", {"value": 1.0, "original": 0.4}, 0.0, "warm"),
        ("retain_accuracy", {"value": 0.4, "original": None}, 0.0, "warm"),
        ("retain_perplexity", {"value": 20.0, "original": 2.0}, 1.0, "warm"),
        ("retain_perplexity", {"value": 2.0, "original": 20.0}, 0.0, "warm"),
    ],
)
def test_the_shade_is_the_distance_that_hurts(
    fakes: ModuleType, column: str, changes: dict[str, float | None], shade: float, hue: str
) -> None:
    audit = fakes.make_audit("gate")
    found = shade_of(audit, {**find(audit, column, "as_is"), **changes})
    assert found[0] == pytest.approx(shade) and found[1] == hue


def test_what_is_no_sign_of_knowledge_has_no_colour_and_a_share_that_grows_has_its_size(fakes: ModuleType) -> None:
    audit = fakes.make_audit("gate")
    audit["columns"]["ratio"] = {"about": "forget", "better": "high"}
    audit["columns"]["repetition"] = {"about": "utility", "better": "low", "aggregate": "mean"}
    assert shade_of(audit, {"column": "ratio", "d": 0.6}) == (0.0, "warm")
    assert shade_of(audit, {"column": "repetition", "value": 0.25, "original": 0.0}) == (0.25, "warm")
    assert shade_of(audit, {"column": "repetition", "value": 0.0, "original": 0.25}) == (0.0, "warm")


def test_the_ends_of_the_scale_stand_above_the_conditions(fakes: ModuleType) -> None:
    forget, utility = matrix(fakes.make_audit("gate"), Reasons())
    assert [row["cells"][0] for row in forget["before"]] == ["1.00", "0.02"]
    assert [row["cells"][0] for row in utility["before"]] == ["1.00", "1.00"]
    assert [row["label"] for group in forget["groups"] for row in group["rows"]][:3] == [
        "as is",
        "int8, per row",
        "int4, per row",
    ]


def test_the_controls_perplexity_is_made_of_its_losses(fakes: ModuleType) -> None:
    audit = fakes.make_audit("gate")
    audit["scores"]["control"]["as_is"]["retain_perplexity"] = {"values": [0.0, 2.0]}
    assert control_of(audit, find(audit, "retain_perplexity", "as_is")) == pytest.approx(2.718281828)


def test_a_value_whose_control_is_missing_carries_the_reason(fakes: ModuleType) -> None:
    audit = fakes.make_audit("gate")
    cell = next(cell for cell in audit["cells"] if cell["column"] == "forget_rouge")
    cell.update(reason="control: was not asked", d=None)
    reasons = Reasons()
    forget, _ = matrix(audit, reasons)
    shown = forget["groups"][0]["rows"][0]["cells"][3]
    assert shown.text == "0.06" and reasons.rows()[shown.note - 1]["reason"] == "control: was not asked"
