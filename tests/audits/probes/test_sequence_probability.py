"""The probability of the whole answer, and of one among k samples: by hand, by sampling, on a model that knows nothing."""

from __future__ import annotations

import math

import pytest
import torch

from letheon.audits.probes.sequence_probability import KS, SequenceProbability
from letheon.data.encode import Example
from letheon.errors import NotMeasured
from tests.audits.fakes import ScriptedScorer, asked, scorer_of, sets, uniform_model
from tests.toys import llama, random_examples

PROBE = SequenceProbability()


def test_leaks_by_hand_with_the_end_of_text_counted() -> None:
    some = sets(asked("forget_questions", random_examples(2)))
    scorer = ScriptedScorer(log_probs={"forget_questions": [[-1.0, -3.0, -0.5], [-0.25]]})
    for k in KS:
        wanted = [1 - (1 - math.exp(-4.5)) ** k, 1 - (1 - math.exp(-0.25)) ** k]
        assert PROBE.score(f"forget_leak_at_{k}", some, scorer).values == pytest.approx(wanted, rel=1e-9)


def test_a_uniform_model_leaks_by_chance_alone() -> None:
    some = sets(asked("forget_questions", random_examples(6)))
    found = PROBE.score("forget_leak_at_1", some, scorer_of(uniform_model())).values
    wanted = [768.0 ** -len(one.answer_ids) for one in some["forget_questions"].examples]
    assert found == pytest.approx(wanted, rel=1e-4, abs=0)


@torch.no_grad()
def test_sampled_answers_are_the_true_one_as_often_as_it_says() -> None:
    """One token and the end, drawn from the model 4,000 times."""
    model = llama(5, initializer_range=0.6)
    prompt = (5, 90, 33)
    first = torch.softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1], 0)
    token = int(first.argmax())
    second = torch.softmax(model(input_ids=torch.tensor([(*prompt, token)])).logits[0, -1], 0)
    end = int(second.argmax())
    some = sets(asked("forget_questions", [Example((*prompt, token, end), 3)]))
    (p,) = PROBE.score("forget_leak_at_1", some, scorer_of(model)).values
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(first, 4000, replacement=True, generator=generator) == token
    ended = torch.multinomial(second, 4000, replacement=True, generator=generator) == end
    often = float((drawn & ended).double().mean())
    assert 0.01 < p < 0.99 and abs(often - p) < 3 * math.sqrt(p * (1 - p) / 4000)


def test_an_answer_that_rounding_leaves_above_certain_is_certain() -> None:
    some = sets(asked("forget_questions", random_examples(1)))
    scorer = ScriptedScorer(log_probs={"forget_questions": [[1e-9]]})
    assert PROBE.score("forget_leak_at_128", some, scorer).values == [1.0]


def test_the_control_is_asked_and_nothing_is_not_measured() -> None:
    some = sets(asked("holdout_questions", random_examples(3)))
    assert PROBE.score("forget_leak_at_8", some, scorer_of(llama()), role="holdout").items[0] == "holdout_questions/0"
    with pytest.raises(NotMeasured, match="the forget set holds no questions"):
        PROBE.score("forget_leak_at_8", some, scorer_of(llama()))
