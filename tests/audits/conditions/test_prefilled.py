"""A reply that has begun: what is shown, what is scored, and a model that refuses at the first token alone."""

from __future__ import annotations

import pytest

from letheon.audits.conditions.prefilled import Prefilled
from letheon.audits.wordings import reworded
from letheon.errors import BadInput
from tests.audits.fakes import scorer_of
from tests.audits.worded import knows_after, world
from tests.toys import encoder, llama, tokenizer


@pytest.mark.parametrize(
    ("start", "shown"),
    [
        ("sure", "Where was Ann Lee born? Sure, the answer is"),
        ("restated", "Where was Ann Lee born? You ask: Where was Ann Lee born? The answer is"),
    ],
)
def test_what_is_shown(start: str, shown: str) -> None:
    example = reworded(Prefilled(starts=(start,)), world(), encoder()).sets["forget_questions"].examples[0]
    assert tokenizer().decode(example.prompt_ids) == shown


def test_j_tokens_move_the_border_and_no_token() -> None:
    whole = world()
    made = reworded(Prefilled(starts=("1",)), whole, encoder()).sets["forget_questions"]
    for example, plain in zip(made.examples, whole["forget_questions"].examples, strict=True):
        assert (example.ids, example.labelled_from) == (plain.ids, plain.labelled_from + 1)


def test_who_refuses_first_is_found_behind_the_beginning() -> None:
    model, coder = llama(), encoder(300)
    with knows_after(model, tokenizer().encode(" Sure, the", add_special_tokens=False)):
        scorer = scorer_of(model, 300)
        for start, found in (("0", 0.0), ("1", 0.0), ("restated", 0.0), ("sure", 1.0)):
            scorer.forget_results()
            asked = reworded(Prefilled(starts=(start,)), world(coder), coder).sets["forget_questions"]
            assert scorer.scores(asked).exact.mean() == found


@pytest.mark.parametrize("given", [(), ("1", "1"), ("-1",), ("never",), ("½",)])
def test_starts_are_known_and_different(given: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="prefilled needs different starts"):
        Prefilled(starts=given)
