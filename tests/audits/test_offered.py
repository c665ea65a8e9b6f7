"""Wrong answers as items to be asked, and back: what is shown, what is right, which faults are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from letheon.audits.offered import answers_of, by_question, has_wrong, letters_of, questions_with_wrong
from letheon.data.records import Record
from letheon.errors import BadInput
from tests.toys import question, text


def record(**changes: Any) -> Record:
    return replace(question("Who is it?", "Bru", line=7, unit="Ann"), **changes)


def test_wordings_that_were_not_trained_on_are_asked_where_there_are_some() -> None:
    offered = record(wrong=("Dax",))
    assert questions_with_wrong("forget", [offered, record(), text("so")]) == [("forget/7", offered, "Who is it?")]
    reworded = record(wrong=("Dax",), paraphrase=("Who?", "Tell:"))
    asked = [(item, prompt) for item, _, prompt in questions_with_wrong("forget", [reworded])]
    assert asked == [("forget/7/paraphrase 1", "Who?"), ("forget/7/paraphrase 2", "Tell:")]
    assert [has_wrong(one) for one in (offered, record(choices=("Bru", "Dax")), record(), text("so"))] == [
        True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("offer", [{"wrong": ("Dax", "Fel")}, {"choices": ("Dax", " Bru", "Fel")}])
def test_the_right_answer_is_number_0(offer: dict[str, Any]) -> None:
    items = answers_of("forget/7", record(**offer), "Who?")
    assert [(item, one.answer, prompt) for item, one, prompt in items] == [
        ("forget/7/answer 0", "Bru", "Who?"),
        ("forget/7/answer 1", "Dax", "Who?"),
        ("forget/7/answer 2", "Fel", "Who?"),
    ]


def test_letters_stand_in_the_order_of_the_file_and_in_every_shift_of_it() -> None:
    items = letters_of("forget/7", record(choices=("Dax", "Bru", "Fel")), "Who?")
    shown = [(item, prompt, one.answer) for item, one, prompt in items]
    assert shown == [
        ("forget/7/shift 0", "Who?\nA. Dax\nB. Bru\nC. Fel\nAnswer:", "B"),
        ("forget/7/shift 1", "Who?\nA. Bru\nB. Fel\nC. Dax\nAnswer:", "A"),
        ("forget/7/shift 2", "Who?\nA. Fel\nB. Dax\nC. Bru\nAnswer:", "C"),
    ]


def test_without_an_order_of_its_own_the_right_answer_may_stand_anywhere() -> None:
    """Else a model that says A would be right about every such question."""
    offered = record(wrong=("Dax", "Fel", "Gom"))
    first = [letters_of(f"forget/{line}", offered, "Who?")[0][1].answer for line in range(80)]
    assert {letter: first.count(letter) for letter in "ABCD"} == pytest.approx(dict.fromkeys("ABCD", 20), abs=12)
    again = [letters_of(f"forget/{line}", offered, "Who?")[0][1].answer for line in range(80)]
    assert first == again


def test_items_come_back_as_questions_whatever_their_order() -> None:
    items = ["f/7/answer 2", "f/8/answer 0", "f/7/answer 0", "f/8/answer 1", "f/7/answer 1", "f/8/answer 10"]
    units = ["Ann", "Bo", "Ann", "Bo", "Ann", "Bo"]
    found = by_question(items, units)
    assert [(one.item, one.unit, one.positions) for one in found] == [
        ("f/7", "Ann", (2, 4, 0)),
        ("f/8", "Bo", (1, 3, 5)),
    ]


@pytest.mark.parametrize(
    ("offer", "said"),
    [
        ({"wrong": ("Dax", "Bru ")}, "the right answer stands in 'wrong'"),
        ({"choices": ("Dax", "Fel")}, "the right answer is none of 'choices'"),
        ({"choices": ("Bru",)}, "offers the right answer alone"),
    ],
)
def test_answers_that_do_not_fit_together_are_refused(offer: dict[str, Any], said: str) -> None:
    for way in (answers_of, letters_of):
        with pytest.raises(BadInput, match=said):
            way("forget/7", record(**offer), "Who?")


def test_more_choices_than_letters_are_refused() -> None:
    with pytest.raises(BadInput, match="27 choices are more than there are letters"):
        letters_of("f/7", record(wrong=tuple(f"w{number}" for number in range(26))), "Who?")
