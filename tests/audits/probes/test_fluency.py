"""Speech and babble: entropies and repetitions by hand, one word for ever, what is continued."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from letheon.audits.probes.fluency import MOST, Fluency, gram_entropy, repetition, weighted_entropy
from letheon.errors import BadInput, NotMeasured
from tests.audits.fakes import ScriptedScorer, asked, scorer_of, sets, uniform_model
from tests.toys import encoder, llama, random_examples, text


class Babble(ScriptedScorer):
    """Goes on as it was told to."""

    def __init__(self, *given: list[int]) -> None:
        super().__init__()
        self.given = list(given)

    def continued_ids(
        self,
        prompts: Sequence[Sequence[int]],
        lengths: Sequence[int],
        *,
        stops: Iterable[int] = (),
        items: Sequence[str] = (),
    ) -> list[list[int]]:
        self.continued.append((prompts, lengths))
        return self.given


def test_entropy_by_hand() -> None:
    ids = [5, 6, 5, 6, 5, 7]
    pairs = Counter([(5, 6), (6, 5), (5, 6), (6, 5), (5, 7)])
    assert gram_entropy(ids, 2) == pytest.approx(-sum(n / 5 * math.log2(n / 5) for n in pairs.values()))
    assert weighted_entropy(ids) == pytest.approx((2 / 3 * gram_entropy(ids, 2) + 4 / 3 * gram_entropy(ids, 3)) / 2)
    assert repetition(ids, 2) == pytest.approx(2 / 5) and repetition(ids, 4) == 0.0


def test_all_different_is_the_most_and_one_word_for_ever_the_least() -> None:
    different, same = list(range(66)), [3] * 66
    assert gram_entropy(different, 3) == pytest.approx(6.0) and repetition(different, 4) == 0.0
    assert weighted_entropy(same) == 0.0 and math.copysign(1, weighted_entropy(same)) == 1
    assert repetition(same, 4) == pytest.approx(1 - 1 / 63)
    generator = np.random.default_rng(0)
    for _ in range(20):
        ids = generator.integers(0, 4, int(generator.integers(3, 40))).tolist()
        assert 0 <= gram_entropy(ids, 2) <= math.log2(len(ids) - 1) + 1e-9


def test_nothing_said_has_no_entropy_and_is_no_repetition() -> None:
    assert [weighted_entropy(ids) for ids in ([], [5])] == [0.0, 0.0]
    with pytest.raises(NotMeasured, match="3 tokens hold no 4-gram"):
        repetition([5, 6, 7], 4)
    three = sets(asked("forget_texts", random_examples(3)))
    babble = Babble([5, 5, 5, 5, 5], [], [1, 2, 3])
    assert Fluency().score("forget_entropy", three, babble).values == pytest.approx([0, 0, weighted_entropy([1, 2, 3])])
    found = Fluency().score("forget_repetition", three, babble)
    assert found.values == [0.5] and found.items == [three["forget_texts"].items[0]]
    with pytest.raises(NotMeasured, match="no continuation of the forget texts has 4 tokens"):
        Fluency().score("forget_repetition", three, Babble([], [1], [2]))


def test_the_beginning_is_shown_and_some_of_many_texts_are_continued() -> None:
    words = "In March the red lamp was lost by the mill, and six proud dogs found bread at noon near a cold well."
    long, short = encoder().encode(text(words)), encoder().encode(text("Bru"))
    babble = Babble([1, 2, 3], [1, 2, 3])
    Fluency().score("retain_entropy", sets(asked("retain_texts", [long, short])), babble)
    ((prompts, lengths),) = babble.continued
    assert [tuple(prompt) for prompt in prompts] == [long.ids[:13], short.ids[: 1 + (len(short.ids) - 2) // 2]]
    assert list(lengths) == [256, 256]
    many = sets(asked("forget_texts", random_examples(2 * MOST + 1)))
    found = Fluency().score("forget_entropy", many, Babble(*([[1, 2, 3]] * 41)))
    assert len(found.items) == 41 <= MOST and found.items[1] == "forget_texts/3"


def test_a_uniform_model_says_one_token_for_ever_and_one_at_random_does_not() -> None:
    some = sets(asked("retain_texts", random_examples(3)))
    probe = Fluency(longest=24)
    assert probe.score("retain_entropy", some, scorer_of(uniform_model())).values == [0.0] * 3
    assert min(probe.score("retain_repetition", some, scorer_of(uniform_model())).values) > 0.9
    assert min(probe.score("retain_entropy", some, scorer_of(llama(3, initializer_range=0.5))).values) > 1.0


def test_what_is_missing_or_too_short_is_told() -> None:
    for column in Fluency.columns:
        with pytest.raises(NotMeasured, match=f"the {column.split('_')[0]} set holds no texts"):
            Fluency().score(column, sets(), Babble())
    with pytest.raises(BadInput, match="longest of 4 or more, got 3"):
        Fluency(longest=3)
