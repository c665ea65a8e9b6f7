"""Examples before the question: who is among them, and who is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from letheon.audits.attacker import Attacker, Solved
from letheon.audits.conditions.many_shot import ManyShot
from letheon.audits.wordings import Question, Words, reworded
from letheon.errors import BadInput, NotMeasured
from tests.audits.worded import NAMES, world
from tests.toys import encoder

ANN = Question("forget/1", "Ann Lee", "", "Where was Ann Lee born?", "Ann Lee")


def test_nobody_is_an_example_who_is_asked() -> None:
    solved = (
        Solved("Where was Ann Lee born?", "Brudax", "Ann Lee"),
        Solved("Where was she born?", "Brudax", "Ann Lee"),
        Solved("Who taught Bob?", "Ann Lee", "Bob"),
        *(Solved(f"Where was P{k} born?", "Felgom", f"P{k}") for k in range(5)),
    )
    words = ManyShot(shots=(5,)).asked(ANN, Attacker(solved={"retain": solved}), encoder())
    assert sorted(asked for asked, _ in words.earlier) == [f"Where was P{k} born?" for k in range(5)]
    assert words.prompt == ANN.prompt
    with pytest.raises(NotMeasured, match="needs 6 retain questions about others, and there are 5"):
        ManyShot(shots=(6,)).asked(ANN, Attacker(solved={"retain": solved}), encoder())


def test_a_smaller_number_is_the_beginning_of_a_larger_one() -> None:
    attacker = Attacker(solved={"retain": tuple(Solved(f"q{k}", "a", f"P{k}") for k in range(9))})
    few, many = (ManyShot(shots=(k,)).asked(ANN, attacker, encoder()) for k in (3, 8))
    assert many.earlier[:3] == few.earlier
    assert ManyShot(shots=(8,), seed=1).asked(ANN, attacker, encoder()).earlier != many.earlier


def test_examples_about_the_forgotten_are_of_the_other_half() -> None:
    seen: dict[str, Words] = {}

    class Noting(ManyShot):
        def asked(self, question: Question, attacker: Attacker, coder: object) -> Words:  # type: ignore[override]
            seen[question.item] = super().asked(question, attacker, encoder())
            return seen[question.item]

    made = reworded(Noting(shots=(4,), of="learned"), world(encoder(400)), encoder(400))
    units = dict(zip(made.sets["forget_questions"].items, made.sets["forget_questions"].units, strict=True))
    assert len(units) == 8 and not made.left
    halves = {item: {name for name in NAMES["forget"] if name in str(seen[item].earlier)} for item in units}
    for item, unit in units.items():
        assert halves[item] and unit not in halves[item] and halves[item] <= {*NAMES["forget"]}


def test_too_few_are_named_and_a_forgotten_record_among_the_retained_is_no_example() -> None:
    whole = world(encoder(900))
    left = reworded(ManyShot(shots=(13,)), whole, encoder(900)).left
    assert set(left.values()) == {"needs 13 retain questions about others, and there are 12"}
    forget, retain = whole["forget_questions"], whole["retain_questions"]
    mixed = replace(
        retain,
        items=(*retain.items, "retain/99"),
        units=(*retain.units, "somebody"),
        prompts=(*retain.prompts, forget.prompts[0]),
        answers=(*retain.answers, forget.answers[0]),
        examples=(*retain.examples, forget.examples[0]),
        records=(),
        names=(),
    )
    whole.sets["retain_questions"] = mixed
    left = reworded(ManyShot(shots=(13,)), whole, encoder(900)).left
    assert set(left.values()) == {"needs 13 retain questions about others, and there are 12"}


@pytest.mark.parametrize("given", [{"shots": ()}, {"shots": (1, 1)}, {"shots": (-1,)}, {"seed": -1}])
def test_settings_that_cannot_be(given: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="many_shot needs"):
        ManyShot(**given)  # type: ignore[arg-type]
