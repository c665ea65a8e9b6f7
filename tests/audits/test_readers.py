"""Answers that are read: right where the likeliest choice is the answer, and given prompts alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from letheon.audits.readers import Choices, Tokens, read_column
from letheon.errors import NotMeasured
from tests.audits.fakes import questions, sets

WORLD = sets(
    questions("forget_questions", [("Who is Ann?", "a cook"), ("Who is Bob?", "a poet"), ("Who is Cid?", "a monk")]),
    questions("holdout_held_out", [("Who is Dan?", "a cook")]),
)
COOK, POET, MONK = (example.answer_ids for example in WORLD["forget_questions"].examples)


def test_the_likeliest_choice_is_the_answer_and_the_prompts_are_all_that_is_given() -> None:
    given: list[Sequence[Tokens]] = []

    def reader(prompts: Sequence[Tokens]) -> Choices:
        given.append(prompts)
        return Choices([COOK, POET], np.array([[0.2, 0.1], [-3.0, -2.0], [0.9, 0.0]]))

    found = read_column("forget_accuracy", WORLD, reader, role="forget")
    assert found.values == [1.0, 1.0, 0.0], "an answer that is no choice is not known"
    assert found.items == WORLD["forget_questions"].items and found.units == WORLD["forget_questions"].units
    assert given == [[example.prompt_ids for example in WORLD["forget_questions"].examples]]


def test_what_a_reader_cannot_say_is_not_measured() -> None:
    def reader(prompts: Sequence[Tokens]) -> Choices:
        return Choices([COOK, POET], np.full((len(prompts), 2), np.nan))

    with pytest.raises(NotMeasured, match="one of several answers, and no text or probability"):
        read_column("forget_probability", WORLD, reader, role="forget")
    with pytest.raises(NotMeasured, match=r"nothing to ask for forget_accuracy \(holdout set\)"):
        read_column("forget_accuracy", WORLD, reader, role="holdout")
    with pytest.raises(NotMeasured, match="not one finite score a choice"):
        read_column("forget_accuracy_held_out", WORLD, reader, role="holdout")
    with pytest.raises(NotMeasured, match="not one finite score a choice"):
        read_column("forget_accuracy", WORLD, lambda prompts: Choices([COOK], np.zeros((1, 1))), role="forget")
