"""Accuracy, probability and ROUGE of answers: by hand, on a model that knows nothing, whatever the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from letheon.audits.probes.knowledge import Knowledge
from letheon.training.losses import Body
from letheon.training.scoring import score_examples
from tests.audits.fakes import ScriptedScorer, asked, questions, scorer_of, sets, uniform_model
from tests.toys import llama, random_examples

PROBE = Knowledge()


def test_each_column_asks_the_set_of_its_role_and_kind() -> None:
    names = ("forget_questions", "forget_held_out", "holdout_questions", "holdout_held_out")
    four = sets(*(asked(name, random_examples(count, seed=count)) for count, name in enumerate(names, start=3)))
    scorer = ScriptedScorer(exact={name: [True] * count for count, name in enumerate(names, start=3)})
    for role, first in (("forget", 0), ("holdout", 2)):
        trained = PROBE.score("forget_accuracy", four, scorer, role=role)
        held_out = PROBE.score("forget_accuracy_held_out", four, scorer, role=role)
        assert trained.items == four[names[first]].items and held_out.items == four[names[first + 1]].items
        assert set(trained.values) == {1.0}


def test_probability_is_the_geometric_mean_of_the_answers_tokens() -> None:
    two = sets(asked("forget_questions", random_examples(2)))
    scorer = ScriptedScorer(log_probs={"forget_questions": [[-1.0, -3.0], [-0.5]]})
    values = PROBE.score("forget_probability", two, scorer).values
    assert values == pytest.approx([math.exp(-2.0), math.exp(-0.5)])


def test_a_uniform_model_gives_every_token_one_over_v() -> None:
    several = sets(asked("forget_questions", random_examples(7)))
    scorer = scorer_of(uniform_model())
    assert PROBE.score("forget_probability", several, scorer).values == pytest.approx([1 / 768] * 7, rel=1e-5)
    assert PROBE.score("forget_accuracy", several, scorer).values == [0.0] * 7


def test_rouge_is_recall_of_the_held_out_wordings() -> None:
    pairs = [("Where?", "the red house"), ("Who?", "Bru"), ("When?", "never")]
    held_out = sets(questions("forget_held_out", pairs), questions("forget_questions", pairs[:1]))
    scorer = ScriptedScorer(answers={"forget_held_out": ["the house is blue", "it was bru.", ""]})
    scores = PROBE.score("forget_rouge", held_out, scorer)
    assert scores.values == pytest.approx([2 / 3, 1.0, 0.0]) and scores.items == held_out["forget_held_out"].items


def test_without_held_out_wordings_rouge_asks_the_trained_ones() -> None:
    trained = sets(questions("forget_questions", [("Who?", "Bru")]))
    scorer = ScriptedScorer(answers={"forget_questions": ["bru"]})
    assert PROBE.score("forget_rouge", trained, scorer).values == [1.0]


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_neither_batch_nor_order_nor_padding_matters(batch_tokens: int) -> None:
    body, examples = Body(llama(2)), random_examples(25, longest=30)
    whole = score_examples(body, examples, pad=0)
    order = np.random.default_rng(0).permutation(25)
    turned = score_examples(body, [examples[k] for k in order], pad=7, batch_tokens=batch_tokens)
    assert turned.log_probs("mean") == pytest.approx(whole.log_probs("mean")[order], rel=1e-5)
    assert turned.exact.tolist() == whole.exact[order].tolist()
