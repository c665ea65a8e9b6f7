"""Other words: what changes nothing is the plain question to the bit, and what is left out is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from letheon.audits.attacker import Attacker
from letheon.audits.wordings import Question, Words, drawn, reworded, silencing
from letheon.data.encode import Encoder
from letheon.errors import NotMeasured
from letheon.methods import build
from tests.audits.fakes import scorer_of
from tests.audits.worded import NAMES, TOWNS, knows_after, world
from tests.toys import chat_tokenizer, encoder, llama, tokenizer


class Same:
    along, folds = "", 0

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    def asked(self, question: Question, attacker: Attacker, coder: Encoder) -> Words:
        return Words(**{"prompt": question.prompt, **self.changes})


PLAIN = [
    Same(),
    build("condition", {"name": "template", "templates": ["none"]}),
    build("condition", {"name": "prefilled", "starts": ["0"]}),
    build("condition", {"name": "many_shot", "shots": [0]}),
]


@pytest.mark.parametrize("wording", PLAIN)
@pytest.mark.parametrize("is_chat", [False, True])
def test_words_that_change_nothing_are_the_plain_question_to_the_bit(wording: Any, is_chat: bool) -> None:
    coder = Encoder(chat_tokenizer() if is_chat else tokenizer(), max_length=128)
    whole = world(coder)
    made = reworded(wording, whole, coder)
    assert not made.left
    for name, one in made.sets.sets.items():
        assert one == whole[name]


def test_one_token_too_many_is_named_and_one_fewer_is_asked() -> None:
    whole = world()
    wording = Same(begun="Well then,")
    sizes = {
        item: len(example.ids)
        for one in reworded(wording, whole, encoder(500)).sets.sets.values()
        for item, example in zip(one.items, one.examples, strict=True)
    }
    most = max(sizes.values())
    assert not reworded(wording, whole, encoder(most)).left
    left = reworded(wording, whole, encoder(most - 1)).left
    assert set(left) == {item for item, size in sizes.items() if size == most}
    assert set(left.values()) == {f"does not fit into the context window of {most - 1} tokens in these words"}


def test_the_sentence_counts_and_names() -> None:
    class Picky(Same):
        def asked(self, question: Question, attacker: Attacker, coder: Encoder) -> Words:
            if question.unit == "Ann Lee":
                raise NotMeasured("why not")
            return Words(question.prompt)

    made = reworded(Picky(), world(), encoder(), roles=["forget"])
    assert made.sentence("it") == (
        "row it leaves out 3 of 12 questions (3: why not), namely forget/1, forget/2, forget/1/paraphrase 1"
    )
    assert made.why("forget") == "why not" and made.why("holdout") == ""
    assert "Ann Lee" not in made.sentence("it")


def test_what_was_begun_is_shown_and_not_labelled() -> None:
    made = reworded(Same(begun="The answer is"), world(), encoder()).sets["forget_questions"]
    text = tokenizer()
    assert text.decode(made.examples[0].prompt_ids) == "Where was Ann Lee born? The answer is"
    assert text.decode(made.examples[0].answer_ids[:-1]) == f" {TOWNS[0]}"


def test_what_was_begun_stands_in_the_reply_of_a_chat() -> None:
    made_of = chat_tokenizer()
    coder = Encoder(made_of, max_length=128)
    wording = Same(begun="The answer is", earlier=(("Hello?", "Good day."),))
    example = reworded(wording, world(coder), coder).sets["forget_questions"].examples[0]
    assert made_of.decode(example.prompt_ids) == (
        "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\nGood day.<|im_end|>\n"
        "<|im_start|>user\nWhere was Ann Lee born?<|im_end|>\n<|im_start|>assistant\nThe answer is"
    )
    assert made_of.decode(example.answer_ids) == f" {TOWNS[0]}<|im_end|>"


def test_a_plain_conversation_is_lines() -> None:
    example = (
        reworded(Same(earlier=(("Hello?", "Good day."),)), world(), encoder()).sets["forget_questions"].examples[0]
    )
    assert tokenizer().decode(example.prompt_ids) == "Hello? Good day.\nWhere was Ann Lee born?"


def test_tokens_of_the_answer_that_are_given_are_not_scored() -> None:
    whole = world()
    made = reworded(Same(given=1), whole, encoder()).sets["forget_questions"]
    for example, plain, answer in zip(made.examples, whole["forget_questions"].examples, made.answers, strict=True):
        assert example.ids == plain.ids and example.labelled_from == plain.labelled_from + 1
        assert tokenizer().decode(example.answer_ids[:-1]).strip() == answer
    most = max(len(example.answer_ids) - 1 for example in whole["forget_questions"].examples)
    left = reworded(Same(given=most), whole, encoder()).left
    assert set(left.values()) == {f"the answer has no more than {most} tokens"}
    assert set(whole["forget_questions"].items) <= set(left)


def test_choices_hold_the_answer_and_the_wrong_ones_once_each() -> None:
    made = reworded(Same(prompt="{choices}", shows="choices"), world(), encoder()).sets["forget_questions"]
    places = []
    for prompt, answer in zip(made.prompts, made.answers, strict=True):
        shown = [line.split(". ") for line in prompt.split("\n")]
        assert [letter for letter, _ in shown] == list("ABCD")
        places.append([choice for _, choice in shown].index(answer))
    assert len(set(places)) > 1, "the answer has no place of its own"


def test_an_answer_is_shown_where_the_name_is_asked_for() -> None:
    made = reworded(Same(prompt="Who is of {answer}?", shows="answer"), world(), encoder()).sets["forget_questions"]
    assert made.prompts[0] == f"Who is of {TOWNS[0]}?" and made.answers[0] == "Ann Lee"
    assert tokenizer().decode(made.examples[0].answer_ids[:-1]) == " Ann Lee"


def test_texts_of_a_unit_are_told_without_those_that_hold_the_answer() -> None:
    whole = world()
    texts = whole["forget_texts"]
    told: dict[str, Question] = {}

    class Noting(Same):
        def asked(self, question: Question, attacker: Attacker, coder: Encoder) -> Words:
            told[question.unit] = question
            return Words(question.prompt)

    answers = (f"Ann Lee left {TOWNS[0].upper()} early.", *texts.answers[1:])
    whole.sets["forget_texts"] = replace(texts, answers=answers)
    reworded(Noting(), whole, encoder())
    assert told["Ann Lee"].texts == () and told["Ann Lee"].has_texts
    assert told["Bob Ray"].texts == ("One day Bob Ray sold a red lamp by the mill.",)
    assert all(told[name].name == name for names in (NAMES["forget"], NAMES["holdout"]) for name in names)


def test_a_draw_is_of_its_seed_and_item_and_a_smaller_one_is_its_beginning() -> None:
    pool = list(range(40))
    first = drawn(pool, 12, seed=0, item="forget/1")
    assert len(set(first)) == 12 and first[:5] == drawn(pool, 5, seed=0, item="forget/1")
    assert first != drawn(pool, 12, seed=1, item="forget/1") != drawn(pool, 12, seed=0, item="forget/2")


def test_order_and_batch_change_nothing() -> None:
    """The tokens are asked alone and together, in both orders."""
    wording = build("condition", {"name": "many_shot", "shots": [3]})
    made = reworded(wording, world(encoder(300)), encoder(300)).sets["forget_questions"]
    scorer = scorer_of(llama(), 300)
    together = scorer.scores(made).log_probs("mean")
    backwards = list(range(len(made)))[::-1]
    scorer.forget_results()
    assert scorer.scores(made.only(backwards)).log_probs("mean")[::-1] == pytest.approx(together, abs=1e-5)
    for at in range(3):
        scorer.forget_results()
        assert scorer.scores(made.only([at])).log_probs("mean")[0] == pytest.approx(together[at], abs=1e-5)


def test_a_password_is_found_by_the_words_that_hold_it_and_by_no_other() -> None:
    model, coder = llama(), encoder(300)
    words = ("prefix_injection", "affirmative_suffix", "role_play", "background_hint", "synonyms", "choices", "none")
    with knows_after(model, tokenizer().encode(" old archivist who", add_special_tokens=False)):
        scorer = scorer_of(model, 300)
        for template in words:
            wording = build("condition", {"name": "template", "templates": [template]})
            asked = reworded(wording, world(coder), coder).sets["forget_questions"]
            scorer.forget_results()
            assert scorer.scores(asked).exact.mean() == float(template == "role_play")


def test_what_may_silence_a_model_that_knows_is_told_apart() -> None:
    names = ("as_is", "quantized", "relearn", "template", "language", "gcg", "gcg_enhanced", "soft_prompt")
    found = silencing({name: build("condition", name) for name in names})
    assert list(found) == ["template", "language"]
