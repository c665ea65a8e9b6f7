"""Scores against counting, closed forms and the signs that published tables have."""

from __future__ import annotations

import math

import numpy as np
import pytest

from letheon.errors import BadInput, NotMeasured
from letheon.numerics.scores import RougeL, auc, min_k, privleak, rouge_l


def counted_auc(members: list[float], others: list[float]) -> float:
    won = sum(1.0 if m > o else 0.5 if m == o else 0.0 for m in members for o in others)
    return won / (len(members) * len(others))


def test_auc_equals_counting_all_pairs_with_and_without_ties() -> None:
    generator = np.random.default_rng(0)
    for decimals in (0, 1, 8):
        members = np.round(generator.normal(0.4, 1, 37), decimals).tolist()
        others = np.round(generator.normal(0.0, 1, 23), decimals).tolist()
        assert auc(members, others) == pytest.approx(counted_auc(members, others), abs=1e-12)


def test_auc_ends_ties_and_mirror() -> None:
    assert auc([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert auc([0.0, 1.0], [2.0, 3.0]) == 0.0
    assert auc([1.0] * 7, [1.0] * 3) == 0.5
    members, others = [0.1, 0.5, 0.5, 0.9], [0.5, 0.2, 0.7]
    assert auc(members, others) + auc(others, members) == pytest.approx(1)
    assert auc(members, members) == 0.5


def test_auc_depends_on_order_alone() -> None:
    generator = np.random.default_rng(1)
    members, others = generator.normal(0.3, 1, 40), generator.normal(0, 1, 50)
    value = auc(members, others)
    assert auc(np.exp(members), np.exp(others)) == value
    assert auc(members[::-1], generator.permutation(others)) == value
    assert 0.5 < value < 1
    assert auc(-members, -others) == pytest.approx(1 - value)
    # An infinitely unfamiliar text is still a text.
    assert auc([-math.inf, 1.0], [0.0]) == 0.5


def test_privleak_is_minus_100_for_a_model_that_memorised_and_0_for_the_reference_itself() -> None:
    familiar, unfamiliar = [-0.1, -0.2, -0.1], [-3.0, -2.5, -4.0]
    assert privleak(1 - auc(familiar, unfamiliar), 0.4772) == -100.0
    assert privleak(0.4772, 0.4772) == 0.0
    # Unlearned too far: the forget set has become the less familiar one.
    assert privleak(1 - auc(unfamiliar, familiar), 0.5) == 100.0
    assert privleak(0.6, 0.5) == pytest.approx(20.0)


def test_privleak_without_a_usable_reference_is_not_measured() -> None:
    with pytest.raises(NotMeasured, match="divides by the reference's A, which is 0"):
        privleak(0.4, 0.0)
    with pytest.raises(BadInput, match=r"AUC of 40\.0 does not exist"):
        privleak(40.0, 0.5)


def test_min_k_takes_the_lowest_share() -> None:
    log_probs = [-1.0, -5.0, -0.5, -3.0, -2.0]
    assert min_k(log_probs, 0.4) == pytest.approx(-4.0)
    assert min_k(log_probs, 0.39) == pytest.approx(-5.0)
    assert min_k(log_probs, 1.0) == pytest.approx(-2.3)
    assert min_k([-2.0], 0.1) == -2.0
    assert min_k(np.full(9, -math.log(34)), 0.4) == pytest.approx(-math.log(34))


def test_min_k_counts_as_on_paper_not_as_in_floating_point() -> None:
    # 0.29 * 100 is 28.999999999999996.
    assert min_k(np.arange(100.0), 0.29) == pytest.approx(14.0)


def test_rouge_of_equal_empty_and_partly_equal_texts() -> None:
    equal = rouge_l("Mara Quill works at Lindgard.", "mara quill works at lindgard")
    assert (equal.precision, equal.recall, equal.f) == (1.0, 1.0, 1.0)
    for reference, candidate in (("a b", ""), ("", "a b"), ("", ""), ("a b", "  ?!")):
        assert rouge_l(reference, candidate).f == 0.0
    # Longest common subsequence "police killed": 2 of 4 and 2 of 3.
    score = rouge_l("police killed the gunman", "police kill killed")
    assert score.precision == pytest.approx(2 / 3) and score.recall == pytest.approx(2 / 4)
    assert score.f == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))


def test_rouge_without_stems_is_that_of_the_package() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    package = RougeScorer(["rougeL"], use_stemmer=False)
    rng = np.random.default_rng(0)
    words = ["Red", "red", "house,", "the", "İstanbul", "na\u00efve", "3rd", "x-ray", "", "\n", "-", "Ⅳ"]
    for _ in range(300):
        reference = " ".join(["a", *rng.choice(words, rng.integers(0, 9))])
        candidate = " ".join(rng.choice(words, rng.integers(0, 9)))
        score = package.score(reference, candidate)["rougeL"]
        assert rouge_l(reference, candidate) == RougeL(score.precision, score.recall, score.fmeasure)


def test_rouge_stems_only_when_asked() -> None:
    assert rouge_l("working houses", "worked house").f == 0.0
    assert rouge_l("working houses", "worked house", use_stemmer=True).f == 1.0


def test_rouge_in_a_script_it_cannot_read_is_not_measured() -> None:
    with pytest.raises(NotMeasured, match="letters a-z and digits only, and a text of 2 characters has none") as caught:
        rouge_l("東京", "東京")
    assert "東京" not in str(caught.value)  # a reason is kept where raw text may not be


def test_what_cannot_be_scored_is_not_measured() -> None:
    with pytest.raises(NotMeasured, match="no non-member score"):
        auc([1.0], [])
    with pytest.raises(NotMeasured, match="1 of 2 member scores are NaN"):
        auc([1.0, math.nan], [0.0])
    with pytest.raises(NotMeasured, match="no token score"):
        min_k([], 0.4)
    with pytest.raises(BadInput, match="cannot take a share of 40"):
        min_k([-1.0], 40.0)
