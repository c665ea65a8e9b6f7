"""What is left of usefulness: each column asks its set, and says what is missing."""

from __future__ import annotations

import math

import pytest

from letheon.audits.probes.utility import Utility
from letheon.errors import NotMeasured
from tests.audits.fakes import ScriptedScorer, asked, scorer_of, sets, uniform_model
from tests.toys import random_examples

SETS = {
    "retain_accuracy": "retain_questions",
    "retain_accuracy_held_out": "retain_held_out",
    "general_accuracy": "general_questions",
    "general_accuracy_held_out": "general_held_out",
}


@pytest.mark.parametrize(("column", "name"), SETS.items())
def test_each_accuracy_asks_its_own_set(column: str, name: str) -> None:
    all_sets = sets(*(asked(one, random_examples(3, seed=k)) for k, one in enumerate(SETS.values())))
    scorer = ScriptedScorer(exact={name: [True, False, True]})
    scores = Utility().score(column, all_sets, scorer)
    assert scores.values == [1.0, 0.0, 1.0] and scores.items == all_sets[name].items


def test_perplexity_is_the_exponential_of_the_mean_loss_of_texts() -> None:
    texts = sets(asked("retain_texts", random_examples(2)))
    scorer = ScriptedScorer(log_probs={"retain_texts": [[-1.0, -3.0], [-4.0]]})
    scores = Utility().score("retain_perplexity", texts, scorer)
    assert list(scores.values) == pytest.approx([2.0, 4.0])
    assert scores.aggregate("exp_mean") == pytest.approx(math.exp(3.0))


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    texts = sets(asked("retain_texts", random_examples(5)))
    assert Utility().score("retain_perplexity", texts, scorer_of(uniform_model())).aggregate(
        "exp_mean"
    ) == pytest.approx(768, rel=1e-5)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("retain_accuracy", "no retain questions were given"),
        ("retain_accuracy_held_out", "no retain paraphrases were given"),
        ("general_accuracy", r"no general questions were given \(--general g.jsonl\)"),
        ("retain_perplexity", "the retain set holds no texts"),
    ],
)
def test_what_is_missing_is_named(column: str, said: str) -> None:
    with pytest.raises(NotMeasured, match=said):
        Utility().score(column, sets(), ScriptedScorer())


def test_only_better_for_users_is_called_better() -> None:
    better = {name: column.better for name, column in Utility.columns.items()}
    assert better.pop("retain_perplexity") == "low" and set(better.values()) == {"high"}
