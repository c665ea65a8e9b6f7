"""TOFU's aggregates against slow second implementations, and forget quality against counting all paths."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from letheon.audits.truth_ratio import (
    floor_log10,
    forget_quality,
    forget_truth_ratio,
    harmonic_mean,
    log_ratios,
    normalised_probability,
    right_share,
    utility_truth_ratio,
)
from letheon.errors import BadInput, NotMeasured


def statistic(a: list[float], b: list[float]) -> Fraction:
    """D: the greatest distance of the two step functions, at every step."""
    return max(
        abs(Fraction(sum(x <= at for x in a), len(a)) - Fraction(sum(x <= at for x in b), len(b))) for at in [*a, *b]
    )


def exact_p(n: int, d: Fraction) -> Fraction:
    """P(D >= d) for two samples of n: one less the share of orders whose step functions stay nearer than d."""
    inside = {0: 1}
    for _ in range(2 * n):
        moved: dict[int, int] = {}
        for ups, count in inside.items():
            for step in (0, 1):
                moved[ups + step] = moved.get(ups + step, 0) + count
        inside = moved
        total = _ + 1
        inside = {
            ups: count
            for ups, count in inside.items()
            if ups <= n and total - ups <= n and abs(Fraction(2 * ups - total, n)) < d
        }
    return 1 - Fraction(inside.get(n, 0), math.comb(2 * n, n))


def sample(seed: int, n: int = 30, shift: float = 0.0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(shift, 1, n)


@pytest.mark.parametrize("shift", [0.0, 0.4, 1.0, 9.0])
def test_forget_quality_is_the_share_of_orders_that_are_as_far_apart(shift: float) -> None:
    a, b = sample(1), sample(2, shift=shift)
    found = forget_quality(a, b, fewest=20)
    d = statistic(a.tolist(), b.tolist())
    assert found.statistic == pytest.approx(float(d), abs=1e-12)
    assert found.p == pytest.approx(float(exact_p(30, d)), rel=1e-9)
    assert 10**found.log10_p == pytest.approx(found.p, rel=1e-9)
    assert (found.p, found.statistic) == (ks_2samp(a, b).pvalue, ks_2samp(a, b).statistic)


def test_a_model_against_itself_is_one() -> None:
    found = forget_quality(sample(1), sample(1), fewest=20)
    assert (found.p, found.statistic, found.log10_p, found.n) == (1.0, 0.0, 0.0, (30, 30))


def test_forget_quality_does_not_see_which_way_round_the_ratio_is() -> None:
    """R, 1 / R and log R are monotone maps of one another."""
    a, b = np.exp(sample(1)), np.exp(sample(2, shift=0.7))
    ways = [forget_quality(f(a), f(b), fewest=20).p for f in (lambda r: r, lambda r: 1 / r, np.log)]
    assert ways == pytest.approx([ways[0]] * 3, rel=1e-12)


@pytest.mark.parametrize(("n", "floor"), [(40, 1.86e-23), (200, 1.94e-119), (300, 1.48e-179), (400, 1.06e-239)])
def test_the_floor_is_what_samples_apart_give(n: int, floor: float) -> None:
    found = forget_quality(np.arange(n) + 0.5, np.arange(n) + 1000.0, fewest=20)
    assert found.statistic == 1
    assert found.p == pytest.approx(floor, rel=3e-3)
    assert found.log10_p == pytest.approx(found.floor_log10, rel=1e-9)
    assert found.floor_log10 == pytest.approx(math.log10(2) - math.log10(math.comb(2 * n, n)), rel=1e-12)


def test_below_the_least_float_the_floor_is_known_and_nothing_else() -> None:
    n = 700
    apart = forget_quality(np.arange(n) + 0.5, np.arange(n) + 9000.0, fewest=20)
    assert (apart.p, apart.statistic) == (0.0, 1.0)
    assert apart.log10_p == apart.floor_log10 == floor_log10(n, n) < -400
    nearly = np.arange(n) + 9000.0
    nearly[0] = 0.0
    with pytest.raises(NotMeasured, match="below the least float"):
        forget_quality(np.arange(n) + 0.5, nearly, fewest=20)


def test_too_few_or_unlike_samples_have_no_p_value() -> None:
    with pytest.raises(NotMeasured, match="19 items are too few"):
        forget_quality(sample(1, 19), sample(2, 19), fewest=20)
    with pytest.raises(BadInput, match="40 of the model and 30 of the reference"):
        forget_quality(sample(1, 40), sample(2, 30), fewest=20)
    with pytest.raises(NotMeasured, match="NaN or infinite"):
        forget_quality(np.full(30, np.nan), sample(2), fewest=20)


def test_truth_ratios_by_hand_and_jensen() -> None:
    right = np.log([0.5, 0.1, 0.2])
    wrong = [np.log([0.1, 0.4]), np.log([0.2, 0.05, 0.5]), np.log([0.2])]
    geometric, arithmetic = (np.exp(each) for each in log_ratios(right, wrong))
    assert geometric == pytest.approx([math.sqrt(0.1 * 0.4) / 0.5, (0.2 * 0.05 * 0.5) ** (1 / 3) / 0.1, 1.0])
    assert arithmetic == pytest.approx([0.25 / 0.5, 0.25 / 0.1, 1.0])
    assert (geometric <= arithmetic + 1e-12).all()
    assert normalised_probability(right, wrong) == pytest.approx([0.5 / 1.0, 0.1 / 0.85, 0.5])
    log_ratio = np.log(geometric)
    assert forget_truth_ratio(log_ratio) == pytest.approx([min(r, 1 / r) for r in geometric])
    assert utility_truth_ratio(log_ratio) == pytest.approx([max(0.0, 1 - r) for r in geometric])


def test_a_collapsed_model_has_ratios_and_no_overflow() -> None:
    geometric, arithmetic = log_ratios(
        np.array([-2000.0, -1.0]), [np.array([-1.0, -3.0]), np.array([-2000.0, -1999.0])]
    )
    assert forget_truth_ratio(geometric).tolist() == [0.0, 0.0]
    assert utility_truth_ratio(arithmetic).tolist() == [0.0, 1.0]
    assert np.isfinite(geometric).all() and np.isfinite(arithmetic).all()


def test_an_item_without_wrong_answers_has_no_ratio() -> None:
    with pytest.raises(BadInput, match="needs wrong answers"):
        log_ratios(np.array([-1.0]), [np.array([])])


def test_harmonic_mean() -> None:
    assert harmonic_mean([0.3] * 9) == pytest.approx(0.3, rel=1e-15)
    assert harmonic_mean([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert harmonic_mean([0.9] * 8 + [0.0]) == 0
    for wrong in ([], [0.5, -0.1]):
        with pytest.raises(BadInput, match="harmonic mean"):
            harmonic_mean(wrong)


def test_the_right_answers_share_is_that_of_probabilities_and_never_overflows() -> None:
    right, wrong = np.log([0.3, 0.02]), [np.log([0.1, 0.4]), np.log([0.5, 0.9, 0.7])]
    geometric, _ = log_ratios(right, wrong)
    means = [math.sqrt(0.1 * 0.4), (0.5 * 0.9 * 0.7) ** (1 / 3)]
    assert right_share(geometric) == pytest.approx([p / (p + w) for p, w in zip([0.3, 0.02], means, strict=True)])
    assert right_share(np.array([-5000.0, 0.0, 5000.0])).tolist() == [1.0, 0.5, 0.0]
