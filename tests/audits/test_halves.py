"""What an attacker learns and what is asked: nobody on both sides, everybody asked once."""

from __future__ import annotations

import pytest

from letheon.audits.asked import AskedSets
from letheon.audits.halves import halves, parts
from letheon.errors import NotMeasured
from tests.audits.fakes import asked, questions, sets

PEOPLE = [f"person {k}" for k in range(5)]
STRANGERS = [f"stranger {k}" for k in range(3)]


def about(name: str, units: list[str], times: int = 2) -> AskedSets:
    return sets(questions(name, [(f"{unit} {k}", "answer") for unit in units for k in range(times)], [unit for unit in units for _ in range(times)]))  # fmt: skip


def world(*names: str) -> AskedSets:
    given = {"forget_questions": PEOPLE, "forget_held_out": PEOPLE, "lookalike_questions": PEOPLE, "holdout_questions": STRANGERS, "retain_questions": ["kept"]}  # fmt: skip
    parts = [about(name, given[name]) for name in names or given]
    return AskedSets({name: one for part in parts for name, one in part.sets.items()})


def test_nobody_who_was_learned_is_asked() -> None:
    whole = world()
    learned_of = {
        example.ids: unit
        for example, unit in zip(
            whole["forget_questions"].examples, whole["forget_questions"].units, strict=True
        )
    }  # fmt: skip
    for half in halves(whole):
        learned = {learned_of[example.ids] for example in half.attacker.learned}
        for name in ("forget_questions", "forget_held_out", "lookalike_questions"):
            assert learned.isdisjoint(half.sets[name].units), name
            assert learned.union(half.sets[name].units) == set(PEOPLE), "an attacker learns all that is not asked"


def test_every_item_is_asked_once_and_strangers_too() -> None:
    whole = world()
    both = halves(whole)
    for name in ("forget_questions", "forget_held_out", "lookalike_questions", "holdout_questions"):
        found = [item for half in both for item in half.sets[name].items]
        assert sorted(found) == sorted(whole[name].items)
        for half in both:
            one = half.sets[name]
            rows = list(zip(one.items, one.units, one.prompts, one.answers, one.examples, strict=True))
            of = whole[name]
            assert set(rows) <= set(zip(of.items, of.units, of.prompts, of.answers, of.examples, strict=True))


def test_what_is_kept_is_not_asked_of_an_attacked_model() -> None:
    assert all("retain_questions" not in half.sets.sets for half in halves(world()))


def test_texts_are_learned_where_there_are_no_questions() -> None:
    examples = world()["forget_questions"].examples
    texts = sets(asked("forget_texts", examples, [unit for unit in PEOPLE for _ in range(2)]))
    first, second = halves(texts)
    assert len(first.attacker.learned) == 6 and len(second.attacker.learned) == 4
    both = AskedSets({**texts.sets, **world("forget_questions").sets})
    assert set(halves(both)[0].attacker.learned) <= set(both["forget_questions"].examples)


@pytest.mark.parametrize("count", [0, 1])
def test_one_person_cannot_be_cut_in_two(count: int) -> None:
    with pytest.raises(NotMeasured, match=f"the forget set has {count}"):
        halves(about("forget_questions", PEOPLE[:count]) if count else AskedSets({}))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_in_more_parts_everybody_is_asked_once_and_the_others_are_learned(count: int) -> None:
    whole = world()
    found = parts(whole, count)
    assert len(found) == count
    assert sorted(unit for part in found for unit in set(part.sets["forget_questions"].units)) == sorted(PEOPLE)
    for part in found:
        asked = set(part.sets["forget_questions"].examples)
        assert asked and set(part.attacker.learned) == set(whole["forget_questions"].examples) - asked
    strangers = [item for part in found for item in part.sets["holdout_questions"].items]
    assert sorted(strangers) == sorted(whole["holdout_questions"].items)


def test_more_parts_than_people_are_not_measured() -> None:
    with pytest.raises(NotMeasured, match=r"needs 5 units to learn from and another to be asked about.* has 5"):
        parts(world(), 6)


def test_records_that_are_to_be_forgotten_are_taken_out_of_what_is_kept() -> None:
    both = questions("retain_questions", [("person 0 0", "answer"), ("somebody else", "answer")])
    (only,) = parts(AskedSets({**world("forget_questions").sets, "retain_questions": both}), 0)
    assert only.attacker.kept("retain") == both.examples[1:]
    with pytest.raises(NotMeasured, match=r"needs general records \(--general FILE\), and there are none"):
        only.attacker.kept("general")
    with pytest.raises(NotMeasured, match=r"needs the original \(--original DIR\)"):
        _ = only.attacker.original
