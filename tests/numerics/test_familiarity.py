"""Scores of familiarity against slow loops, and thresholds against every threshold tried."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest

from letheon.errors import BadInput, NotMeasured
from letheon.numerics.familiarity import (
    auc_reading,
    balanced_accuracy,
    lower_case_familiarity,
    min_k_plus,
    reference_familiarity,
    tpr_at_fpr,
    zlib_familiarity,
)


def slowly(logits: np.ndarray, labels: list[int], share: float) -> float:
    """Min-K++ token by token and word by word in float64."""
    scores = []
    for row, label in zip(logits, labels, strict=True):
        total = math.log(sum(math.exp(value) for value in row))
        mean = sum(math.exp(value - total) * (value - total) for value in row)
        variance = sum(math.exp(value - total) * (value - total) ** 2 for value in row) - mean**2
        scores.append((row[label] - total - mean) / math.sqrt(max(variance, 1e-6)))
    lowest = sorted(scores)[: max(1, int(share * len(scores)))]
    return sum(lowest) / len(lowest)


def parts(logits: np.ndarray, labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    mean = (np.exp(log_p) * log_p).sum(1)
    deviation = np.sqrt((np.exp(log_p) * (log_p - mean[:, None]) ** 2).sum(1))
    return log_p[np.arange(len(labels)), labels], np.stack([mean, deviation])


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4, 1.0])
def test_min_k_plus_is_the_slow_loop(share: float) -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(0, 3, (17, 29)), generator.integers(0, 29, 17).tolist()
    log_probs, moments = parts(logits, labels)
    assert min_k_plus(log_probs, moments, share) == pytest.approx(slowly(logits, labels, share), rel=1e-9)


def test_min_k_plus_of_a_uniform_model_is_nothing_and_no_nan() -> None:
    log_probs, moments = parts(np.zeros((6, 29)), [0, 3, 3, 9, 28, 1])
    for noise in (0.0, 9e-7, -9e-7):
        assert min_k_plus(log_probs + noise, moments, 0.4) == 0.0


def test_a_surprise_to_a_model_that_is_certain_is_not_clamped_away() -> None:
    """The deviation is at least 1e-3 nats, so the surprise counts and stays finite."""
    assert min_k_plus([-20.0], [[-1e-9], [1e-8]], 1.0) == pytest.approx(-20.0 / 1e-3, rel=1e-6)


def test_familiarities_by_hand_rise_with_what_is_known() -> None:
    text = "abc " * 40
    assert zlib_familiarity(-2.0, text) == -2.0 / len(zlib.compress(text.encode()))
    assert zlib_familiarity(-1.0, text) > zlib_familiarity(-2.0, text) > zlib_familiarity(-2.0, "a")
    assert lower_case_familiarity(-1.0, -4.0) == -0.25 > lower_case_familiarity(-4.0, -4.0) == -1.0
    assert reference_familiarity([-1.0, -2.0], [-3.0, -3.0]) == 1.5
    assert reference_familiarity([-1.0, -2.0], [-1.0, -2.0]) == 0.0


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(NotMeasured, match="probability 1"):
        lower_case_familiarity(-1.0, 0.0)
    with pytest.raises(BadInput, match="2 and 3 log-probabilities"):
        reference_familiarity([-1.0, -2.0], [-1.0, -2.0, -1.0])
    with pytest.raises(NotMeasured):
        reference_familiarity([], [])


def every_threshold(members: list[float], strangers: list[float]) -> list[tuple[float, float]]:
    """(FPR, TPR) of all that are called members from some score on."""
    return [(0.0, 0.0)] + [
        (sum(s >= at for s in strangers) / len(strangers), sum(m >= at for m in members) / len(members))
        for at in {*members, *strangers}
    ]


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.05, 0.29, 0.5])
@pytest.mark.parametrize("strangers", [1, 20, 100])
def test_the_rate_at_few_false_positives_is_the_best_threshold_that_keeps_to_them(fpr: float, strangers: int) -> None:
    generator = np.random.default_rng(strangers)
    mine, others = generator.integers(0, 60, 30) + 8, generator.integers(0, 60, strangers)
    mine, others = mine.astype(float).tolist(), others.astype(float).tolist()
    curve = every_threshold(mine, others)
    assert tpr_at_fpr(mine, others, fpr) == pytest.approx(max(t for f, t in curve if f <= fpr + 1e-12))
    assert balanced_accuracy(mine, others) == pytest.approx(max(1 - (f + 1 - t) / 2 for f, t in curve))


def test_ends_of_the_rates() -> None:
    assert tpr_at_fpr([2.0, 3.0], [0.0, 1.0], 0.01) == balanced_accuracy([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert tpr_at_fpr([1.0, 1.0], [1.0, 1.0], 0.05) == 0.0, "ties are not found"
    assert balanced_accuracy([1.0, 1.0], [1.0, 1.0]) == 0.5
    assert tpr_at_fpr([0.0], [1.0], 0.05) == 0.0 and balanced_accuracy([0.0], [1.0]) == 0.5
    for rate in (-0.1, 1.0):
        with pytest.raises(BadInput, match="false-positive rate"):
            tpr_at_fpr([1.0], [0.0], rate)
    with pytest.raises(NotMeasured, match="no stranger"):
        tpr_at_fpr([1.0], [], 0.01)
    with pytest.raises(NotMeasured, match="NaN"):
        balanced_accuracy([math.nan], [0.0])


def test_an_auc_is_read_from_both_sides() -> None:
    assert auc_reading(0.8, 1.0).startswith("memorised")
    assert auc_reading(0.0, 0.3).startswith("over-unlearned")
    assert auc_reading(0.4, 0.6).startswith("not told apart")
    with pytest.raises(BadInput):
        auc_reading(0.6, 0.4)
