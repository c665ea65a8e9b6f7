"""Other words for the same questions: the encoder's own tokens, and nothing that is not a question."""

from __future__ import annotations

import pytest

from letheon.audits.attacker import Attacker
from letheon.audits.rewording import Beside, reworded
from letheon.audits.wordings import Question, Words
from letheon.audits.wordings import reworded as as_wording
from letheon.data.encode import Encoder
from letheon.errors import NotMeasured
from tests.audits.fakes import asked, questions, sets
from tests.audits.worded import world
from tests.toys import encoder, random_examples

PAIRS = [("Who is Ann?", "a baker"), ("Where does Bo live?", "Oslo")]


@pytest.mark.parametrize(
    ("text", "place", "whole"),
    [
        ("now", "suffix", "Q? now"),
        (" now", "suffix", "Q? now"),
        ("now", "prefix", "now Q?"),
        ("now\n", "prefix", "now\nQ?"),
        ("", "suffix", "Q?"),
        ("", "prefix", "Q?"),
    ],
)
def test_a_text_stands_apart_from_the_prompt(text: str, place: str, whole: str) -> None:
    assert Beside(text, place)("Q?") == whole  # type: ignore[arg-type]


def test_questions_are_encoded_anew_and_texts_are_not_asked() -> None:
    held = sets(questions("forget_questions", PAIRS), asked("forget_texts", random_examples(3)))
    now = reworded(held, Beside("please", "suffix"), encoder())
    found = now["forget_questions"]
    assert found.examples == tuple(encoder().question(f"{prompt} please", answer) for prompt, answer in PAIRS)
    assert (found.items, found.units, found.answers) == tuple(
        getattr(held["forget_questions"], name) for name in ("items", "units", "answers")
    )
    assert len(now["forget_texts"]) == 0
    same = reworded(held, Beside("", "suffix"), encoder())["forget_questions"]
    assert same.examples == held["forget_questions"].examples


def test_words_for_which_there_is_no_room_are_not_measured() -> None:
    held = sets(questions("forget_questions", PAIRS))
    with pytest.raises(NotMeasured, match="no room for a question of forget_questions in a window of 12 tokens"):
        reworded(held, Beside("please " * 5, "prefix"), encoder(window=12))


class _Politely:
    """A wording that says what the string says."""

    along, folds = "", 0

    def asked(self, question: Question, attacker: Attacker, coder: Encoder) -> Words:
        return Words(Beside("please", "suffix")(question.prompt))


def test_an_attacks_words_and_a_wordings_are_put_in_the_same_way() -> None:
    whole = world(encoder(256))
    by_attack = reworded(whole, Beside("please", "suffix"), encoder(256))
    by_wording = as_wording(_Politely(), whole, encoder(256)).sets
    for name in ("forget_questions", "forget_held_out", "holdout_questions"):
        assert by_attack[name] == by_wording[name] and len(by_attack[name])
