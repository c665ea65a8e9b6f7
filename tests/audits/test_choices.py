"""Letters and texts against slow forwards, and ties that count what drawing one gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from letheon.audits.choices import (
    credits,
    entropy_bits,
    letter_example,
    letter_log_probs,
    letter_prompt,
    votes,
)
from letheon.data.encode import Encoder
from letheon.errors import BadInput, NotMeasured
from tests.audits.benchmarks.data import letter_tokenizer, scorer
from tests.toys import llama, tokenizer

CHOICES = ["red", "the blue one", "green", "old"]


def coder() -> Encoder:
    return Encoder(letter_tokenizer(), max_length=256)


def test_the_prompt_is_wmdps() -> None:
    expected = "Which hat?\nA. red\nB. the blue one\nC. green\nD. old\nAnswer:"
    assert letter_prompt(" Which hat? ", CHOICES) == expected


@torch.no_grad()
def test_letters_are_the_log_probs_behind_the_prompt() -> None:
    model = llama(3, vocab_size=len(letter_tokenizer()), max_position_embeddings=256)
    prompts = [letter_prompt(f"Which {what}?", CHOICES) for what in ("hat", "very old hat of them all", "cat")]
    made = [letter_example(coder(), prompt, 4) for prompt in prompts]
    found = letter_log_probs(scorer(model, coder=coder()), [one for one, _ in made], [ids for _, ids in made])
    for prompt, values in zip(prompts, found, strict=True):
        ids = coder().tokenizer.encode(prompt, add_special_tokens=False)
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        for letter, value in zip("ABCD", values, strict=True):
            (token,) = coder().tokenizer.encode(f" {letter}", add_special_tokens=False)
            assert value == pytest.approx(float(torch.log_softmax(logits, -1)[token]), rel=1e-5)


def test_a_letter_of_several_tokens_is_refused_with_the_way_out() -> None:
    with pytest.raises(BadInput, match=r"not one token .* --benchmark\.ask texts"):
        letter_example(Encoder(tokenizer(), max_length=256), letter_prompt("Which?", CHOICES), 4)


def test_nan_is_not_measured() -> None:
    model = llama(3, vocab_size=len(letter_tokenizer()), max_position_embeddings=256)
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan
    one, ids = letter_example(coder(), letter_prompt("Which?", CHOICES), 4)
    with pytest.raises(NotMeasured, match="not finite"):
        letter_log_probs(scorer(model, coder=coder()), [one], [ids])


def test_ties_earn_what_drawing_one_gives() -> None:
    assert [credits(np.array([-1.0, -2.0, -2.0, -3.0]), right) for right in range(4)] == [1, 0, 0, 0]
    assert [credits(np.array([-1.0, -1.0 - 1e-12, -2.0, -1.0]), right) for right in range(4)] == [
        1 / 3,
        1 / 3,
        0,
        1 / 3,
    ]
    assert votes(np.array([-1.0, -1.0, -2.0, -3.0])).tolist() == [0.5, 0.5, 0, 0]


def test_entropy_tells_a_collapsed_model() -> None:
    assert entropy_bits(np.array([1.0, 0, 0, 0])) == 0
    assert entropy_bits(np.full(4, 0.25)) == pytest.approx(2)
    assert entropy_bits(np.array([0.5, 0.25, 0.25, 0])) == pytest.approx(1.5)
