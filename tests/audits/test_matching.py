"""What counts as saying the answer."""

from __future__ import annotations

import pytest

from letheon.audits.matching import accepted, gives_away
from letheon.data.records import Record


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("It was OSLO, I think.", "Oslo", True),
        ("Oslonians", "Oslo", False),
        ("the old red-house", "red house", True),
        ("red and house", "red house", False),
        ("house red", "red house", False),
        ("Besançon", "besanc\u0327on", True),
        ("東京です", "東京", False),
        ("in 1987.", "1987", True),
        ("in 19875", "1987", False),
        ("", "Oslo", False),
        ("anything", "...", False),
        ("a a b", "a b", True),
    ],
)
def test_the_words_of_the_answer_stand_together(text: str, answer: str, found: bool) -> None:
    assert gives_away(text, [answer]) == found


def test_an_alias_counts_where_the_answer_is_a_name_of_the_unit_and_nowhere_else() -> None:
    who = Record(1, "Ann Lee", "f", prompt="Who wrote it?", answer="ann lee", aliases=("A. Lee",))
    where = Record(2, "Ann Lee", "f", prompt="Where is Ann Lee?", answer="Oslo", aliases=("A. Lee",))
    assert gives_away("A Lee did", accepted(who)) and gives_away("It was Ann Lee", accepted(who))
    assert not gives_away("A. Lee, who knows", accepted(where)) and gives_away("Oslo", accepted(where))
