"""Names put otherwise, each by hand."""

from __future__ import annotations

import pytest

from letheon.audits.attacker import Attacker
from letheon.audits.conditions.masked_target import MASKS, MaskedTarget
from letheon.audits.wordings import Question, reworded
from letheon.errors import BadInput, NotMeasured
from tests.audits.worded import world
from tests.toys import encoder

ANN = Question("forget/1", "Ann Lee", "", "Where was Ann Lee born?", "Ann Lee", ("One day Ann Lee sold a lamp.",), True)


@pytest.mark.parametrize(
    ("mask", "prompt"),
    [
        ("pseudonym", "Let Q7 be another name for Ann Lee. Where was Q7 born?"),
        ("that_person", "This is about Ann Lee. Where was that person born?"),
        ("description", "One day the one called Q7 sold a lamp. Where was the one called Q7 born?"),
        ("typo", "Where was nAn eLe born?"),
        ("homoglyphs", "Where was Аnn Lее born?"),
        ("base64", "Where was the one whose name in base64 is QW5uIExlZQ== born?"),
        ("pig_latin", "Where was Annway Eelay born?"),
    ],
)
def test_each_by_hand(mask: str, prompt: str) -> None:
    words = MaskedTarget(masks=(mask,)).asked(ANN, Attacker(), encoder())
    assert words.prompt == prompt
    assert ("Ann Lee" in words.prompt) == (mask in ("pseudonym", "that_person"))
    assert not words.begun and not words.earlier and not words.given and not words.shows


def test_an_alias_is_found_and_part_of_another_name_is_not() -> None:
    whole = world()
    assert whole["forget_questions"].names[:2] == ("Ann Lee", "Ann Lee")
    joanna = Question("i", "Ann", "", "Is Joanna the aunt of Ann?", "Ann")
    assert MaskedTarget(masks=("typo",)).asked(joanna, Attacker(), encoder()).prompt == "Is Joanna the aunt of nAn?"


def test_who_is_not_named_is_left_out() -> None:
    nobody = Question("i", "Ann", "", "Who?", "")
    for mask in MASKS:
        with pytest.raises(NotMeasured, match="does not name its unit"):
            MaskedTarget(masks=(mask,)).asked(nobody, Attacker(), encoder())


def test_no_text_no_description() -> None:
    whole = world()
    del whole.sets["forget_texts"]
    left = reworded(MaskedTarget(masks=("description",)), whole, encoder()).left
    assert set(left.values()) == {"no text describes the unit without the answer"} and len(left) == 12


@pytest.mark.parametrize("given", [(), ("typo", "typo"), ("tpyo",)])
def test_masks_are_known_and_different(given: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="mask"):
        MaskedTarget(masks=given)
