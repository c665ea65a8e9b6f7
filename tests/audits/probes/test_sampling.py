"""Leaks in answers drawn at random: by hand, against the exact probability, and what nothing found still allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from letheon.audits.asked import Asked
from letheon.audits.columns import Column
from letheon.audits.matrix import SHOWN_LEVEL, Sources, difference_bounds, make_cells
from letheon.audits.probes.sampling import GRID, KS, Sampling
from letheon.audits.sampler import Sampling as Drawing
from letheon.errors import BadInput, NotMeasured
from letheon.numerics.intervals import exact_binomial_bounds
from tests.audits.fakes import ScriptedScorer, asked, protocol, questions, scorer_of, sets
from tests.toys import llama, question, random_examples

PAIRS = [("Where does Ann live?", "Bru Dax"), ("Where does Bo work?", "Fel"), ("Who is Cem?", "Jev")]


class Said(ScriptedScorer):
    """Answers one text many times, and another."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self.texts, self.asked_at = texts, []  # type: ignore[var-annotated]

    def samples(self, asked: Asked, sampling: Drawing) -> list[list[str]]:
        self.asked_at.append(sampling)
        return [list(each) for each in self.texts]


def test_leaks_are_counted_by_their_words() -> None:
    texts = [
        ["It is BRU, dax I think."] * 3 + ["Bru"] * 61,
        ["Felix"] * 64,
        ["jev"] * 64,
    ]
    probe, scorer = Sampling(samples=64), Said(texts)
    some = sets(questions("forget_questions", PAIRS))
    assert probe.score("forget_sampled_t08_p09_at_1", some, scorer).values == pytest.approx([3 / 64, 0.0, 1.0])
    missed = math.prod((61 - i) / (64 - i) for i in range(16))
    assert probe.score("forget_sampled_t1_p1_at_16", some, scorer).values == pytest.approx([1 - missed, 0.0, 1.0])
    assert scorer.asked_at == [Drawing(64, 0.8, 0.9, 0), Drawing(64, 1.0, 1.0, 0)]


def test_the_other_names_of_a_unit_give_away_an_answer_that_is_its_name() -> None:
    """Also where other words have made another thing the answer: then the record's own counts for nothing."""
    record = replace(question("Where does Ann live?", "Bru", unit="Ann Kip"), aliases=("Annie",))
    plain = replace(questions("forget_questions", PAIRS[:1]), records=(record,))
    backwards = replace(plain, answers=("Ann Kip",))
    column = "forget_sampled_t1_p1_at_1"
    for said, asked_of, wanted in (
        ("Annie", plain, 0),
        ("Annie", backwards, 1),
        ("Bru", plain, 0),
        ("Bru", backwards, 0),
    ):
        found = Sampling().score(column, sets(asked_of), Said([[said] * 16])).values
        assert found == [wanted], (said, asked_of.answers)


def test_the_settings_of_the_paper_are_all_there() -> None:
    assert sorted(GRID.values()) == [(t, p) for t in (0.2, 0.8, 1.0) for p in (0.9, 1.0)]
    assert len(Sampling.columns) == len(GRID) * len(KS) == 12
    assert all(isinstance(column, Column) for column in Sampling.columns.values())


def test_many_samples_of_a_known_answer_are_its_exact_probability() -> None:
    """An answer of one token and no more, within three sigma (and what other tokens of the same word add)."""
    model = llama(5, initializer_range=0.9)
    scorer, tested = scorer_of(model), 0
    for name in ("Ann", "Bo", "Cem", "Dax", "Fel"):
        one = questions("forget_questions", [(f"Who is {name}?", "x")])
        prompt = one.examples[0].prompt_ids
        with torch.no_grad():
            p = torch.softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1].double(), 0)
        likeliest, exact = str(scorer.encoder.tokenizer.decode([int(p.argmax())])), float(p.max())
        if not likeliest.strip().isalnum():
            continue
        scorer.encoder.max_length = len(prompt) + 1
        scorer.forget_results()
        some = sets(replace(one, answers=(likeliest,)))
        (found,) = Sampling(samples=4000).score("forget_sampled_t1_p1_at_1", some, scorer).values
        sigma = math.sqrt(exact * (1 - exact) / 4000)
        assert 0.001 < exact < 0.999 and found == pytest.approx(exact, abs=3 * sigma + 0.02 * exact)
        tested += 1
    assert tested >= 2


def test_nothing_found_has_an_upper_bound_that_is_not_0() -> None:
    """By units, so that it is never below what the samples of one unit would allow."""
    units = [f"person {k}" for k in range(24)]
    some = sets(questions("forget_questions", [(f"Who is {unit}?", "Bru") for unit in units], units))
    column = "forget_sampled_t1_p1_at_1"
    none = Sampling().score(column, some, Said([["nobody"] * 16] * 24))
    sources = Sources({"as_is": {column: none}}, {"as_is": {column: none}}, {"as_is": {column: none}}, is_paired=True)
    (cell,) = make_cells(sources, {column: Sampling.columns[column]}, protocol([]), {}, seed=0, resamples=1000)
    assert cell["value"] == cell["lower"] == 0
    assert (
        cell["upper"]
        == exact_binomial_bounds(0, 24, SHOWN_LEVEL)[1]
        > exact_binomial_bounds(0, 16 * 24, SHOWN_LEVEL)[1]
    )
    lower, upper = difference_bounds(
        none, none, Sampling.columns[column], is_paired=True, level=0.05, seed=0, resamples=1000
    )
    assert lower < 0 < upper == pytest.approx(1 - 0.05 ** (1 / 24))


def test_the_control_is_asked_and_nothing_is_not_measured() -> None:
    some = sets(asked("holdout_questions", random_examples(3)))
    column = "forget_sampled_t02_p09_at_1"
    assert Sampling().score(column, some, scorer_of(llama()), role="holdout").items[0] == "holdout_questions/0"
    with pytest.raises(NotMeasured, match="the forget set holds no questions"):
        Sampling().score(column, some, scorer_of(llama()))


@pytest.mark.parametrize(
    ("changes", "said"), [({"samples": 15}, "samples >= 16, got 15"), ({"seed": -1}, "seed >= 0, got -1")]
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Sampling(**changes)
