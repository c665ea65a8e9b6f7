"""Texts before the question: the unit's own, and none that holds the answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from letheon.audits.conditions.in_context import InContext
from letheon.audits.wordings import reworded
from letheon.errors import BadInput
from tests.audits.worded import TOWNS, world
from tests.toys import encoder


def test_the_units_own_texts_stand_first_for_strangers_too() -> None:
    made = reworded(InContext(), world(), encoder()).sets
    assert (
        made["forget_questions"].prompts[0] == "One day Ann Lee sold a red lamp by the mill.\nWhere was Ann Lee born?"
    )
    assert made["holdout_questions"].prompts[0].startswith("One day Kit Page sold")


def test_a_text_with_the_answer_is_no_context() -> None:
    whole = world()
    texts = whole["forget_texts"]
    whole.sets["forget_texts"] = replace(texts, answers=(f"She left {TOWNS[0].lower()}.", *texts.answers[1:]))
    left = reworded(InContext(), whole, encoder()).left
    assert set(left) == {"forget/1", "forget/2", "forget/1/paraphrase 1"}
    assert set(left.values()) == {
        "every text about the unit holds the answer, so that no context can be given without it"
    }
    del whole.sets["holdout_texts"]
    left = reworded(InContext(), whole, encoder(), roles=["holdout"]).left
    assert set(left.values()) == {"there is no text, so that no context can be given without it"}


def test_look_alikes_have_the_texts_under_their_names() -> None:
    whole = world()
    asked = whole["forget_questions"]
    swapped = tuple(prompt.replace(unit, "Zed Zoo") for prompt, unit in zip(asked.prompts, asked.units, strict=True))
    whole.sets["lookalike_questions"] = replace(
        asked,
        name="lookalike_questions",
        items=tuple(f"lookalike/{item}" for item in asked.items),
        prompts=swapped,
        names=("Zed Zoo",) * len(asked),
    )
    made = reworded(InContext(), whole, encoder()).sets["lookalike_questions"]
    assert made.prompts[0] == "One day Zed Zoo sold a red lamp by the mill.\nWhere was Zed Zoo born?"


@pytest.mark.parametrize("given", [(), (0,), (1, 1)])
def test_numbers_that_cannot_be(given: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="in_context needs"):
        InContext(texts=given)
