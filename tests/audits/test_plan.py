"""What is asked, of whom, under which conditions: one plan for each kind of control."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from letheon.audits.plan import Plan, make_plan, not_applicable
from letheon.audits.protocol import read_protocol
from letheon.data.records import DataFile
from letheon.errors import BadInput
from tests.toys import encoder, question, text

FORGET = [
    question(f"Where does {name} work?", "Bru", line=k, unit=name)
    for k, name in enumerate(("Mara Quill", "Tobin Fay", "Lena Voss"), start=1)
]
TEXTS = [text(f"{record.unit} ran home.", line=20 + record.line, unit=record.unit) for record in FORGET]
STRANGERS = [
    question(f"Where does {name} work?", "Dax", line=k, unit=name)
    for k, name in enumerate(("Ansa", "Bolo", "Cerin", "Deka"), start=1)
]


def data(role: str, records: list[Any]) -> DataFile:
    return DataFile(Path(f"{role}.jsonl"), role, tuple(records), unit_is_line=False)


def plan_of(*, forget: list[Any] = FORGET, strangers: list[Any] = STRANGERS, window: int = 128, **changes: Any) -> Plan:
    files = {"forget": data("forget", forget), "holdout": data("holdout", strangers)}
    settings: dict[str, Any] = {"has_reference": True, "shipped": None, "gate_units": frozenset(), "seed": 0, **changes}
    if settings.pop("without_holdout", False):
        del files["holdout"]
    probes = settings.pop("probes", None)
    protocol = read_protocol("quick-1")
    protocol = replace(protocol, probes=[*protocol.probes, *probes]) if probes else protocol
    return make_plan(protocol, files, encoder=encoder(window), **settings)


def test_every_column_has_the_probe_that_fills_it() -> None:
    plan = plan_of()
    assert list(plan.columns) == list(plan.probe_of) and len(plan.columns) == 12
    for name, probe in plan.probe_of.items():
        assert probe.columns[name] == plan.columns[name]
    assert list(plan.conditions) == ["as_is", "int8", "int4_row", "int4_group32", "fp4", "nf4"]
    assert plan.is_made("verbatim", "int4_row") and not plan.is_made("verbatim", "int8")
    assert plan.is_made("forget_accuracy", "int8")


def test_the_folder_that_ships_is_one_condition_more() -> None:
    plan = plan_of(shipped=Path("some/where"))
    assert plan.conditions["shipped"].path == Path("some/where")
    assert "the folder that ships" in plan.control.sentence and "ships" not in plan_of().control.sentence


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "reference"),
        ({"has_reference": False}, "holdout"),
        ({"has_reference": False, "gate_units": frozenset({"Ansa", "Deka"})}, "lookalike"),
        ({"has_reference": False, "without_holdout": True}, "lookalike"),
        ({"has_reference": True, "without_holdout": True}, "reference"),
    ],
)
def test_the_control_and_its_questions(changes: dict[str, Any], kind: str) -> None:
    plan = plan_of(**changes)
    assert plan.control.kind == kind
    assert ("lookalike_questions" in plan.sets.sets) == (kind == "lookalike")


def test_units_that_the_gate_has_seen_are_not_asked() -> None:
    plan = plan_of(gate_units=frozenset({"Ansa"}), has_reference=False)
    assert set(plan.sets["holdout_questions"].units) == {"Bolo", "Cerin", "Deka"}
    assert plan.control.sentence.startswith("3 units") and "lookalike_questions" not in plan.sets.sets


def test_invented_names_stand_in_no_input() -> None:
    """A name that is invented for these inputs is not invented once another input holds it."""
    few: dict[str, Any] = {"has_reference": False, "gate_units": frozenset({"Ansa", "Deka"})}
    prompt = plan_of(**few).sets["lookalike_questions"].prompts[0]
    name = prompt.removeprefix("Where does ").removesuffix(" work?")
    known = plan_of(strangers=[*STRANGERS[:3], question(f"Is {name} here?", "Dax", line=4, unit="Deka")], **few)
    words = " ".join(known.sets["lookalike_questions"].prompts).split()
    assert not set(name.split()) & set(words) and len(known.sets["lookalike_questions"]) == 3


def test_look_alikes_are_asked_what_is_asked_about_real_names() -> None:
    """As many, in the same order, trained and held-out wordings apart, and nothing real in any of their prompts."""
    records = [*FORGET, question("Who?", "Bru", line=9, unit="Mara Quill")]
    records[0] = type(records[0])(**{**vars(records[0]), "paraphrase": ("Mara Quill works at", "At whose firm is it?")})
    plan = plan_of(forget=records, has_reference=False, without_holdout=True)
    mine, theirs = plan.sets["forget_questions"], plan.sets["lookalike_questions"]
    assert theirs.items == tuple(f"lookalike/{item}" for item in mine.items[:3]) and theirs.units == mine.units[:3]
    assert theirs.answers == mine.answers[:3]
    (held_out,) = plan.sets["lookalike_held_out"].prompts
    assert held_out.endswith(" works at") and plan.sets["lookalike_held_out"].items == (
        "lookalike/forget/1/paraphrase 1",
    )
    assert held_out.removesuffix(" works at") == theirs.prompts[0].removeprefix("Where does ").removesuffix(" work?")
    for prompt in (*theirs.prompts, held_out):
        assert not any(word in prompt for record in FORGET for word in record.unit.split())


def test_what_does_not_apply_says_why() -> None:
    plan = plan_of()
    absent = not_applicable(plan, data("forget", FORGET))
    assert absent["as_is", "verbatim"] == absent["as_is", "membership_texts"] == "the forget set holds no texts"
    assert absent["int8", "forget_accuracy_held_out"] == "the forget set has no paraphrases"
    assert "generation" in absent["int8", "forget_rouge"] and ("as_is", "forget_rouge") not in absent
    assert {column for condition, column in absent if condition == "shipped"} == set(plan.columns)
    assert ("as_is", "forget_accuracy") not in absent and ("nf4", "membership_questions") not in absent
    assert not any(column == "retain_accuracy" for condition, column in absent if condition != "shipped")
    only_texts = not_applicable(plan_of(forget=TEXTS), data("forget", TEXTS))
    assert (
        only_texts["nf4", "forget_accuracy"]
        == only_texts["as_is", "membership_questions"]
        == "the forget set holds no questions"
    )
    assert ("as_is", "verbatim") not in only_texts
    assert ("as_is", "retain_accuracy") not in only_texts, "usefulness is asked whatever is to be forgotten"


def test_what_is_cut_off_is_told() -> None:
    assert plan_of().warnings == []
    (warning,) = plan_of(forget=[*FORGET, text("so it was, " * 40, line=30, unit="Mara Quill")], window=60).warnings
    assert warning.startswith("forget texts set: 1 of 1 records are longer than the context window")


def test_texts_of_other_lengths_than_the_strangers_are_told() -> None:
    """Membership by texts would tell long from short."""
    strangers = [replace(theirs, unit=record.unit) for theirs, record in zip(TEXTS, STRANGERS, strict=False)]
    assert plan_of(forget=[*FORGET, *TEXTS], strangers=[*STRANGERS, *strangers]).warnings == []
    longer = [replace(record, text=record.text * 3) for record in strangers]
    (warning,) = plan_of(forget=[*FORGET, *TEXTS], strangers=[*STRANGERS, *longer]).warnings
    assert warning.startswith("half of the forget set's texts have at most ") and "membership may measure" in warning


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(BadInput, match=r"forget set forget\.jsonl, line 5: answer"):
        plan_of(forget=[question("Who?", "bru " * 90, line=5)], window=60)


# --- probes that a protocol may name beside the shipped ones

OFFERED = [replace(record, wrong=("Dax", "Fel"), paraphrase=(f"{record.unit} works at",)) for record in FORGET]


def test_a_probe_that_is_named_brings_its_columns_and_what_it_asks() -> None:
    plan = plan_of(forget=OFFERED, probes=["multiple_choice"])
    assert "forget_choice_text" in plan.columns and len(plan.sets["forget_letters"]) == 9
    assert plan.sets["forget_answers"].items[0] == "forget/1/paraphrase 1/answer 0"
    assert "forget_letters" not in plan_of(forget=OFFERED).sets.sets
    assert "forget_letters" not in plan_of(forget=OFFERED, probes=["truth_ratio"]).sets.sets


def test_look_alikes_are_offered_the_same_answers() -> None:
    plan = plan_of(forget=OFFERED, probes=["multiple_choice"], has_reference=False, without_holdout=True)
    for kind in ("answers", "letters"):
        mine, theirs = plan.sets[f"forget_{kind}"], plan.sets[f"lookalike_{kind}"]
        assert theirs.items == tuple(f"lookalike/{item}" for item in mine.items)
        assert theirs.answers == mine.answers and theirs.units == mine.units
        invented = {prompt.split(" works at")[0] for prompt in theirs.prompts}
        assert len(invented) == 3 and not invented & {record.unit for record in FORGET}
        tails = [prompt.split(" works at")[1] for prompt in mine.prompts]
        assert [prompt.split(" works at")[1] for prompt in theirs.prompts] == tails


def test_questions_without_wrong_answers_have_no_such_columns() -> None:
    plan = plan_of(probes=["truth_ratio", "multiple_choice", "membership_scores"])
    absent = not_applicable(plan, data("forget", FORGET))
    reason = "the forget set holds no wrong answers"
    assert absent["as_is", "forget_truth_ratio_geometric"] == absent["nf4", "forget_choice_letters"] == reason
    assert absent["as_is", "membership_zlib"] == "the forget set holds no texts"
    assert ("as_is", "retain_truth_ratio_geometric") not in absent
    offered = not_applicable(plan_of(forget=OFFERED, probes=["truth_ratio"]), data("forget", OFFERED))
    assert ("as_is", "forget_truth_ratio_geometric") not in offered
