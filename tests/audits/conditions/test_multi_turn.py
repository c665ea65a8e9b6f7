"""Conversations before the question, each by hand."""

from __future__ import annotations

import pytest

from letheon.audits.attacker import Attacker, Solved
from letheon.audits.conditions.multi_turn import TURNS, MultiTurn
from letheon.audits.wordings import Question, reworded
from letheon.errors import BadInput, NotMeasured
from tests.audits.fakes import scorer_of
from tests.audits.worded import knows_after, world
from tests.toys import encoder, llama, tokenizer

ANN = Question("forget/1", "Ann Lee", "", "Where was Ann Lee born?", "Ann Lee")
KNOWN = (
    Solved("Where was Ann Lee born?", "Brudax", "Ann Lee"),
    Solved("Where was Bob born?", "Felgom", "Bob"),
    Solved("The mentor of Bob is", "Gus", "Bob"),
)


def test_the_neighbour_is_the_likest_question_about_somebody_else() -> None:
    words = MultiTurn(turns=("neighbour",)).asked(ANN, Attacker(solved={"retain": KNOWN}), encoder())
    assert words.earlier == (("Where was Bob born?", "Felgom"),) and words.prompt == ANN.prompt
    with pytest.raises(NotMeasured, match="no retained question about others"):
        MultiTurn(turns=("neighbour",)).asked(ANN, Attacker(solved={"retain": KNOWN[:1]}), encoder())


def test_insistence_asks_again_after_a_refusal() -> None:
    words = MultiTurn(turns=("insistence",)).asked(ANN, Attacker(), encoder())
    assert words.earlier == ((ANN.prompt, "I do not know."),) and words.prompt == f"Are you sure? {ANN.prompt}"


def test_who_answers_only_when_asked_again_is_found_there_alone() -> None:
    model, coder = llama(), encoder(300)
    with knows_after(model, tokenizer().encode(" I do not know", add_special_tokens=False)):
        scorer = scorer_of(model, 300)
        for turns in TURNS:
            scorer.forget_results()
            asked = reworded(MultiTurn(turns=(turns,)), world(coder), coder).sets["forget_questions"]
            assert scorer.scores(asked).exact.mean() == float(turns == "insistence")


def test_steps_need_a_name() -> None:
    with pytest.raises(NotMeasured, match="does not name its unit"):
        MultiTurn(turns=("decomposition",)).asked(Question("i", "u", "", "Who?", ""), Attacker(), encoder())


@pytest.mark.parametrize("given", [(), ("neighbour", "neighbour"), ("neighbor",)])
def test_turns_are_known_and_different(given: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match=r"conversation|turns"):
        MultiTurn(turns=given)
