"""What every condition that changes what is asked promises, run over the folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from letheon.audits.asked import AskedSets
from letheon.audits.attacked import rows_of
from letheon.audits.attacker import AskedOfNobody, Attacker
from letheon.audits.tables import Asker
from letheon.audits.wordings import ROLES, Question, Reworded, Wording, Words, reworded
from letheon.errors import NotMeasured
from letheon.methods import build, load, names
from letheon.models import inspect_model, load_model
from tests.architectures.models import saved
from tests.audits.worded import NAMES, plan_of, world
from tests.contract.register import every_variation
from tests.toys import bits, encoder

WORDINGS = [name for name in names("condition") if hasattr(load("condition", name), "asked")]
VARIED = [
    pytest.param(param.values[1], id=param.id)
    for param in every_variation("condition")
    if param.values[1]["name"] in WORDINGS  # type: ignore[index,call-overload]
]
WIDE = 512


def rows(spec: Any) -> dict[str, Any]:
    return rows_of("row", build("condition", spec))


def put(spec: Any, sets: AskedSets | None = None) -> Mapping[str, Reworded]:
    sets = sets or world(encoder(WIDE))
    return {name: reworded(row, sets, encoder(WIDE)) for name, row in rows(spec).items()}


@pytest.mark.parametrize("spec", VARIED)
def test_every_question_is_asked_once_or_named(spec: dict[str, Any]) -> None:
    whole = world(encoder(WIDE))
    for made in put(spec, whole).values():
        for name in (f"{role}_{kind}" for role in ROLES for kind in ("questions", "held_out")):
            items = [*made.sets[name].items, *(item for item in made.left if item in whole[name].items)]
            assert sorted(items) == sorted(whole[name].items)
        assert all(reason and not reason.endswith(".") for reason in made.left.values())


@pytest.mark.parametrize("spec", VARIED)
def test_it_is_the_same_twice_and_each_item_by_itself(spec: dict[str, Any]) -> None:
    first, second = put(spec), put(spec)
    for name, made in first.items():
        assert {key: one.examples for key, one in made.sets.sets.items()} == {
            key: one.examples for key, one in second[name].sets.sets.items()
        }


@pytest.mark.parametrize("spec", VARIED)
def test_rows_of_one_wording_are_told_apart(spec: dict[str, Any]) -> None:
    said = [row.provenance for row in rows(spec).values()]
    assert len(set(said)) == len(said)
    assert all(len(one) > 15 and "\n" not in one and not one.endswith(".") for one in said)


@pytest.mark.parametrize("name", WORDINGS)
def test_the_control_is_asked_in_the_same_words(name: str) -> None:
    """Names and towns of both sides put aside, the words of the forgotten are those of the strangers."""
    for made in put({"name": name}).values():
        sides = []
        for role in ("forget", "holdout"):
            asked = made.sets[f"{role}_questions"]
            sides.append(len(asked))
        assert sides[0] == sides[1], made.left


@pytest.mark.parametrize("name", WORDINGS)
def test_no_weight_is_touched_and_the_rest_of_the_row_says_why(name: str) -> None:
    conditions = rows({"name": name})
    folder = inspect_model(saved("llama_tied"))
    before = {key: bits(value) for key, value in load_model(folder.path).state_dict().items()}
    sets = world(encoder())
    asker = Asker(plan_of(sets, conditions), encoder(), "cpu", {}, lambda text: None)
    own, control, scorer = asker.table(folder, conditions, self_control="holdout")
    assert list(own) == list(control) == list(conditions)
    assert {key: bits(value) for key, value in scorer.model.state_dict().items()} == before
    for row in own:
        if (sentence := asker.left.get(row)) is not None:
            assert (sentence.startswith(f"row {row} leaves out ") and "forget/" in sentence) or "holdout/" in sentence


@pytest.mark.parametrize("name", WORDINGS)
def test_what_does_not_fit_is_named_and_never_cut(name: str) -> None:
    sets = world(encoder())
    longest = max(len(example.ids) for one in sets.sets.values() for example in one.examples)
    small = encoder(longest)
    for row in rows({"name": name}).values():
        made = reworded(row, sets, small)
        for one in made.sets.sets.values():
            assert all(len(example.ids) <= longest and not example.cut for example in one.examples)


@pytest.mark.parametrize("name", WORDINGS)
def test_a_wording_is_told_no_answer(name: str) -> None:
    """Neither the question nor the attacker holds the answer of a person who is asked about."""
    seen: list[str] = []
    towns = {name: sorted(set(one.answers)) for name, one in world().sets.items()}

    class Looking:
        def __init__(self, inner: Any) -> None:
            self.along, self.folds, self.inner = inner.along, inner.folds, inner

        def asked(self, question: Question, attacker: Attacker, coder: Any) -> Words:
            if question.item.startswith("forget"):
                held = repr(question) + repr([getattr(attacker, slot) for slot in Attacker.__slots__])
                seen.append(f"{question.unit}|{held}")
            words: Words = self.inner.asked(question, attacker, coder)
            return words

    whole = world(encoder(WIDE))
    answer_of = dict(zip(whole["forget_questions"].units, whole["forget_questions"].answers, strict=True))
    for row in rows({"name": name}).values():
        reworded(Looking(row), whole, encoder(WIDE))
    assert seen and towns
    for one in seen:
        unit, _, held = one.partition("|")
        assert answer_of[unit] not in held


class Reaching:
    """Reads what it may not."""

    along, folds = "", 2

    def asked(self, question: Question, attacker: Attacker, coder: Any) -> Words:
        return Words(attacker.sets)


def test_a_wording_that_reaches_for_what_is_asked_ends_the_audit() -> None:
    assert isinstance(Reaching(), Wording)
    with pytest.raises(AskedOfNobody, match="reached for 'sets'"):
        reworded(Reaching(), world(), encoder())


def test_both_halves_know_the_others_alone() -> None:
    found: dict[str, set[str]] = {}

    class Learning(Reaching):
        def asked(self, question: Question, attacker: Attacker, coder: Any) -> Words:
            if question.item.startswith("forget"):
                found[question.unit] = {one.unit for one in attacker.solved("learned")}
            return Words(question.prompt)

    made = reworded(Learning(), world(), encoder())
    assert sorted(found) == sorted(NAMES["forget"]) and not made.left
    assert all(known and unit not in known for unit, known in found.items())


def test_one_person_is_not_enough_to_know_and_to_ask() -> None:
    sets = world()
    sets.sets["forget_questions"] = sets["forget_questions"].only([0])
    sets.sets["forget_held_out"] = sets["forget_held_out"].only([0])
    sets.sets["forget_texts"] = sets["forget_texts"].only([0])
    with pytest.raises(NotMeasured, match="the forget set has 1"):
        reworded(Reaching(), sets, encoder())
