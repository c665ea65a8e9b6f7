"""Templates: each by hand where it does more than stand around the question."""

from __future__ import annotations

import pytest

from letheon.audits.conditions.template import TEMPLATES, Template
from letheon.audits.wordings import reworded
from letheon.errors import BadInput
from tests.audits.worded import world
from tests.toys import encoder


def test_every_text_holds_the_question_once_and_the_name() -> None:
    coder = encoder(300)
    for name in set(TEMPLATES) - {"synonyms"}:
        for kind in ("questions", "held_out"):
            made = reworded(Template(templates=(name,)), world(coder), coder).sets[f"forget_{kind}"]
            plain = world(coder)[f"forget_{kind}"]
            assert [new.count(old) for new, old in zip(made.prompts, plain.prompts, strict=True)] == [1] * len(plain)


def test_synonyms_stand_in_words_and_never_in_names() -> None:
    made = reworded(Template(templates=("synonyms",)), world(), encoder())
    assert made.sets["forget_questions"].prompts[:2] == (
        "Where was Ann Lee brought into the world?",
        "The place of birth of Ann Lee is",
    )
    assert "no word of the question has a synonym in the list" in made.left["forget/1/paraphrase 1"]


@pytest.mark.parametrize("given", [(), ("none", "none"), ("nothing",)])
def test_templates_are_known_and_different(given: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="template"):
        Template(templates=given)
