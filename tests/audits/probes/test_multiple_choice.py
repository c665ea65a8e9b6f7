"""Picked by text and by letter: a model that knows nothing, one that says one letter, one that lost the letters alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from letheon.audits.asked import AskedSets, make_sets
from letheon.audits.probes.multiple_choice import MultipleChoice, picked
from letheon.errors import NotMeasured
from tests.audits.fakes import scorer_of, sets, uniform_model
from tests.audits.test_asked import data
from tests.toys import encoder, llama, question

PROBE = MultipleChoice()
LETTERS = ("A", "B")
"""Those that are one token to the tests' tokenizer."""


def asked(choices: tuple[str, ...] = ("Bru", "Dax Mol"), count: int = 5, role: str = "forget") -> AskedSets:
    records = [
        replace(question(f"Where is number {k}?", choices[k % len(choices)], line=k, unit=f"u{k}"), choices=choices)
        for k in range(count)
    ]
    files = {role: data(role, *records)}
    return make_sets(files, encoder=encoder(), limits={}, only_units={}, also=("answers", "letters"))


def values(column: str, some: AskedSets, model: Any) -> list[float]:
    return list(PROBE.score(f"forget_choice_{column}", some, scorer_of(model)).values)


def test_a_uniform_model_is_at_chance_and_not_at_the_first_letter() -> None:
    some = asked(("Bru", "Dax Mol"))
    for column in ("text", "letters", "letters_mean", "letters_worst"):
        assert values(column, some, uniform_model()) == [0.5] * 5
    assert values("entropy", some, uniform_model()) == pytest.approx([1.0] * 5)
    assert values("text", asked(("Bru", "Dax Mol", "Fel", "Gom Hus")), uniform_model()) == [0.25] * 5


def one_letter(letter: str) -> Any:
    """Whatever it is asked, it says the letter."""
    model = llama(2)
    token = encoder().question("Who?", letter).answer_ids[0]
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[token] = model.model.norm.weight
    # The sign of the bare logit depends on the state, so that the state is made positive.
    model.model.norm.register_forward_hook(lambda module, given, made: made.abs())
    return model


@pytest.mark.parametrize("letter", LETTERS)
def test_a_model_of_one_letter_is_seen_by_its_entropy(letter: str) -> None:
    """Half right by letter, which is chance, and never in every order."""
    some = asked(count=4)
    assert values("entropy", some, one_letter(letter)) == [0.0] * 4
    assert values("letters", some, one_letter(letter)) == [float((k % 2) == LETTERS.index(letter)) for k in range(4)]
    assert values("letters_mean", some, one_letter(letter)) == [0.5] * 4
    assert values("letters_worst", some, one_letter(letter)) == [0.0] * 4


@torch.no_grad()
def test_letters_and_texts_are_picked_as_by_hand() -> None:
    model, some = llama(11, initializer_range=0.4), asked(count=9)
    tokens = [encoder().question("Who?", letter).answer_ids[0] for letter in LETTERS]
    by_letter, by_text = [], []
    for k in range(9):
        truth = ("Bru", "Dax Mol")[k % 2]
        hits = []
        for shown in (("Bru", "Dax Mol"), ("Dax Mol", "Bru")):
            prompt = f"Where is number {k}?\nA. {shown[0]}\nB. {shown[1]}\nAnswer:"
            ids = torch.tensor([encoder().prompt_ids(prompt)])
            best = int(model(input_ids=ids).logits[0, -1, tokens].argmax())
            hits.append(float(shown[best] == truth))
        by_letter.append(hits)
        means = []
        for answer in ("Bru", "Dax Mol"):
            example = encoder().question(f"Where is number {k}?", answer)
            log_p = model(input_ids=torch.tensor([example.ids])).logits[0].log_softmax(-1)
            places = range(example.labelled_from, len(example.ids))
            means.append(float(np.mean([float(log_p[place - 1, example.ids[place]]) for place in places])))
        by_text.append(float(("Bru", "Dax Mol")[int(np.argmax(means))] == truth))
    assert values("letters", some, model) == [hits[0] for hits in by_letter]
    assert values("letters_mean", some, model) == [sum(hits) / 2 for hits in by_letter]
    assert values("letters_worst", some, model) == [min(hits) for hits in by_letter]
    assert values("text", some, model) == by_text
    assert 0 < sum(by_text) < 9, "both kinds occur"


def test_the_mean_of_surprises_is_the_entropy() -> None:
    model, some = llama(11, initializer_range=0.4), asked(count=9)
    found = values("entropy", some, model)
    log_probs = scorer_of(model).first_log_probs(
        some["forget_letters"], [encoder().question("Who?", letter).answer_ids[0] for letter in LETTERS]
    )
    often = np.bincount(log_probs.argmax(1), minlength=2) / len(log_probs)
    entropy = -sum(share * math.log2(share) for share in often if share)
    assert np.mean(found) == pytest.approx(entropy) and 0 < entropy < 1


def test_ties_are_shared() -> None:
    assert picked(np.array([-1.0, -2.0, -1.0 - 1e-8])).tolist() == [0.5, 0.0, 0.5]
    assert picked(np.array([-1.0, -1.1])).tolist() == [1.0, 0.0]


def test_letters_that_are_not_one_token_are_refused_and_texts_are_not() -> None:
    some = asked(("Bru", "Dax Mol", "Fel"))
    for column in ("letters", "letters_mean", "letters_worst", "entropy"):
        with pytest.raises(NotMeasured, match="the letter C is 2 tokens to this tokenizer"):
            values(column, some, llama())
    assert len(values("text", some, llama())) == 5


def test_questions_of_unlike_many_choices_are_asked_together() -> None:
    records = [
        replace(question("Where is it?", "Bru", line=1), choices=("Bru", "Dax", "Fel")),
        replace(question("Where is it?", "Dax", line=2), wrong=("Bru",)),
    ]
    some = make_sets(
        {"forget": data("forget", *records)}, encoder=encoder(), limits={}, only_units={}, also=("answers", "letters")
    )
    assert values("text", some, uniform_model()) == pytest.approx([1 / 3, 1 / 2])


@pytest.mark.parametrize("of", ["retain", "general"])
def test_usefulness_asks_its_own_questions(of: str) -> None:
    some = asked(role=of)
    for column in (f"{of}_choice_text", f"{of}_choice_letters_mean"):
        found = PROBE.score(column, some, scorer_of(uniform_model()))
        assert found.values == [0.5] * 5 and found.items[0] == f"{of}/0"
    with pytest.raises(NotMeasured, match=f"no question of the {of} set has wrong answers"):
        PROBE.score(f"{of}_choice_text", sets(), scorer_of(llama()))
    with pytest.raises(NotMeasured, match="of the holdout set"):
        PROBE.score("forget_choice_text", some, scorer_of(llama()), role="holdout")
