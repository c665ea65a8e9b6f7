"""Phrases of other languages: each holds the question once, and a model that speaks one of them is found there."""

from __future__ import annotations

import pytest

from letheon.audits.conditions.language import Language, phrases
from letheon.audits.wordings import reworded
from letheon.errors import BadInput
from tests.audits.fakes import scorer_of
from tests.audits.worded import knows_after, world
from tests.toys import encoder, llama, tokenizer


def test_every_phrase_holds_the_question_once() -> None:
    assert len(phrases()) == 4 and Language().languages == tuple(phrases())
    assert all(phrase.count("{prompt}") == 1 and not phrase[-1].isspace() for phrase in phrases().values())
    made = reworded(Language(languages=("german",)), world(encoder(300)), encoder(300)).sets["forget_questions"]
    assert made.prompts[0] == 'Beantworte diese Frage auf Englisch: "Where was Ann Lee born?" Die Antwort ist'


def test_who_answers_in_one_language_is_found_there_alone() -> None:
    model, coder = llama(), encoder(400)
    with knows_after(model, tokenizer().encode(" Die Antwort ist", add_special_tokens=False)):
        scorer = scorer_of(model, 400)
        for language in phrases():
            scorer.forget_results()
            asked = reworded(Language(languages=(language,)), world(coder), coder).sets["forget_questions"]
            assert scorer.scores(asked).exact.mean() == float(language == "german")


@pytest.mark.parametrize("given", [(), ("german", "german"), ("klingon",)])
def test_languages_are_of_the_table_and_different(given: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="language"):
        Language(languages=given)
