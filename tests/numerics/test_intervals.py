"""Intervals against closed forms, a slow loop over resamples, and simulated coverage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from letheon.errors import BadInput, NotMeasured
from letheon.numerics.intervals import (
    bounds_of_auc,
    bounds_of_auc_difference,
    bounds_of_mean,
    bounds_of_mean_difference,
    exact_binomial_bounds,
)
from letheon.numerics.scores import auc

LEVEL = 0.05


def clustered_rates(generator: np.random.Generator, n_units: int, per_unit: int, rate: float) -> NDArray[Any]:
    """(n_units, per_unit) hits; items of a unit hang together (intraclass correlation 1/3)."""
    rates = generator.beta(2 * rate, 2 * (1 - rate), n_units)
    return (generator.random((n_units, per_unit)) < rates[:, None]).astype(float)


# Exact bounds.


@pytest.mark.parametrize("level", [0.05, 0.004])
def test_exact_bounds_solve_the_binomial_tails(level: float) -> None:
    for n in (1, 7, 24):
        for hits in range(n + 1):
            lower, upper = exact_binomial_bounds(hits, n, level)
            if hits:
                assert stats.binom.sf(hits - 1, n, lower) == pytest.approx(level, rel=1e-9)
            else:
                assert lower == 0.0
            if hits < n:
                assert stats.binom.cdf(hits, n, upper) == pytest.approx(level, rel=1e-9)
            else:
                assert upper == 1.0


def test_exact_bounds_refuse_what_is_not_a_rate() -> None:
    with pytest.raises(BadInput, match="5 hits of 4 are not a rate"):
        exact_binomial_bounds(5, 4, LEVEL)
    with pytest.raises(BadInput, match=r"level 0\.5 is not usable"):
        exact_binomial_bounds(1, 4, 0.5)


# Means.


def test_a_rate_of_0_or_1_gets_exact_bounds_with_units_for_n() -> None:
    units = np.repeat(np.arange(24), 8)
    upper = 1 - LEVEL ** (1 / 24)
    assert bounds_of_mean(np.zeros(192), units, level=LEVEL, seed=0) == pytest.approx((0.0, upper))
    assert bounds_of_mean(np.ones(192), units, level=LEVEL, seed=0) == pytest.approx((1 - upper, 1.0))


def test_one_hit_does_not_give_a_tighter_bound_than_none() -> None:
    units = np.repeat(np.arange(24), 8)
    one = np.zeros(192)
    one[5] = 1
    for level in (0.05, 0.05 / 13):
        assert (
            bounds_of_mean(one, units, level=level, seed=0)[1] >= bounds_of_mean(one * 0, units, level=level, seed=0)[1]
        )
        assert (
            bounds_of_mean(1 - one, units, level=level, seed=0)[0]
            <= bounds_of_mean(one * 0 + 1, units, level=level, seed=0)[0]
        )


def test_numbers_that_are_not_rates_never_use_the_binomial() -> None:
    units = np.arange(30)
    assert bounds_of_mean(np.zeros(30), units, level=LEVEL, seed=0, is_rate=False) == (0.0, 0.0)
    values = np.random.default_rng(0).normal(-50, 1, 30)
    lower, upper = bounds_of_mean(values, units, level=LEVEL, seed=0)
    assert -51 < lower < values.mean() < upper < -49
    # The guard of rates near 0 must not touch small positive losses.
    small = np.random.default_rng(0).random(30) * 1e-3
    assert bounds_of_mean(small, units, level=LEVEL, seed=0, is_rate=False)[1] < 1e-3


def test_bounds_approach_the_normal_ones_for_many_units() -> None:
    generator = np.random.default_rng(2)
    values = generator.normal(3, 2, 2000)
    lower, upper = bounds_of_mean(values, np.arange(2000), level=LEVEL, seed=1, resamples=4000)
    half = 1.645 * values.std() / math.sqrt(2000)
    assert lower == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert upper == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_few_units_are_widened_as_by_students_t() -> None:
    generator = np.random.default_rng(3)
    values = np.tile(generator.normal(0, 1, 12), 1)
    lower, upper = bounds_of_mean(values, np.arange(12), level=LEVEL, seed=1, is_rate=False)
    with_t = stats.t.ppf(1 - LEVEL, 11) * values.std(ddof=1) / math.sqrt(12)
    assert (upper - lower) / 2 == pytest.approx(with_t, rel=0.06)
    assert (upper - lower) / 2 > 1.06 * 1.645 * values.std() / math.sqrt(12)


def test_repeating_every_item_changes_nothing_and_neither_does_order_or_naming() -> None:
    generator = np.random.default_rng(4)
    values, units = generator.random(60), np.repeat(np.arange(12), 5)
    bounds = bounds_of_mean(values, units, level=LEVEL, seed=7)
    assert bounds_of_mean(np.repeat(values, 3), np.repeat(units, 3), level=LEVEL, seed=7) == pytest.approx(bounds)
    order = generator.permutation(60)
    assert bounds_of_mean(values[order], units[order], level=LEVEL, seed=7) == pytest.approx(bounds)
    assert bounds_of_mean(values.tolist(), (units * 1000 - 5).tolist(), level=LEVEL, seed=7) == pytest.approx(bounds)


def test_units_of_unequal_size_weigh_by_their_items() -> None:
    # One large unit of ones among small units of zeros: the mean over items is 0.5, over units 0.1.
    values = np.concatenate([np.ones(9), np.zeros(9)])
    units = np.concatenate([np.zeros(9, dtype=int), np.arange(1, 10)])
    lower, upper = bounds_of_mean(values, units, level=0.2, seed=0)
    # c ones-units drawn of 10 give 9c / (9c + 10 - c); the upper percentile has c = 2 or 3.
    allowed = [9 * c / (9 * c + 10 - c) for c in range(5)]
    assert min(abs(upper - value) for value in allowed[2:4]) < 1e-12
    assert lower == 0.0


def test_same_seed_same_bounds_other_seed_others() -> None:
    values, units = np.random.default_rng(5).random(40), np.arange(40)
    first = bounds_of_mean(values, units, level=LEVEL, seed=0)
    assert bounds_of_mean(values, units, level=LEVEL, seed=0) == first
    assert bounds_of_mean(values, units, level=LEVEL, seed=1) != first


def test_drawing_in_chunks_draws_the_same_kind_of_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    values, units = np.random.default_rng(6).random(40), np.arange(40)
    whole = bounds_of_mean(values, units, level=LEVEL, seed=0)
    monkeypatch.setattr("letheon.numerics.intervals._CHUNK", 40 * 999)
    assert bounds_of_mean(values, units, level=LEVEL, seed=0) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("n_units", [24])
def test_bounds_are_wrong_about_as_often_as_they_say_and_item_resampling_much_more(n_units: int) -> None:
    generator = np.random.default_rng(7)
    runs, per_unit = 500, 8
    units, items = np.repeat(np.arange(n_units), per_unit), np.arange(n_units * per_unit)
    missed = {"units": [0, 0], "items": [0, 0]}
    for run in range(runs):
        values = clustered_rates(generator, n_units, per_unit, 0.5).ravel()
        for how, codes in (("units", units), ("items", items)):
            lower, upper = bounds_of_mean(values, codes, level=LEVEL, seed=run, resamples=800)
            missed[how][0] += lower > 0.5
            missed[how][1] += upper < 0.5
    # Standard error of a share of 0.05 in 500 runs: 0.01.
    assert all(0.02 < share / runs < 0.08 for share in missed["units"])
    assert all(share / runs > 0.12 for share in missed["items"])


def test_upper_bound_of_a_low_clustered_rate_holds() -> None:
    # Rate 0.1, 24 units, level 0.05 / 13: the plain percentile is wrong here in 5 %, 14 times what it says.
    generator = np.random.default_rng(8)
    units = np.repeat(np.arange(24), 8)
    missed = 0
    for run in range(200):
        values = clustered_rates(generator, 24, 8, 0.1).ravel()
        missed += bounds_of_mean(values, units, level=0.05 / 13, seed=run, resamples=1000)[1] < 0.1
    assert missed / 200 <= 0.01


# Differences of means.


def test_a_paired_difference_of_equal_answers_has_no_width_and_an_unpaired_one_has() -> None:
    values, units = clustered_rates(np.random.default_rng(9), 30, 4, 0.5).ravel(), np.repeat(np.arange(30), 4)
    assert bounds_of_mean_difference(values, units, values, units, paired=True, level=LEVEL, seed=0) == (
        0.0,
        0.0,
    )
    lower, upper = bounds_of_mean_difference(values, units, values, units, paired=False, level=LEVEL, seed=0)
    own = bounds_of_mean(values, units, level=LEVEL, seed=0)
    # Two independent sides: sqrt(2) times the width of one. The same stream for both would give 0.
    assert (upper - lower) == pytest.approx(math.sqrt(2) * (own[1] - own[0]), rel=0.1)
    assert lower < 0 < upper


def test_pairing_uses_what_both_sides_share() -> None:
    generator = np.random.default_rng(10)
    base = generator.normal(0, 1, 40)
    a, b, units = base + 0.1, base + generator.normal(0, 0.1, 40), np.arange(40)
    paired = bounds_of_mean_difference(a, units, b, units, paired=True, level=LEVEL, seed=0)
    unpaired = bounds_of_mean_difference(a, units, b, units, paired=False, level=LEVEL, seed=0)
    assert unpaired[1] - unpaired[0] > 5 * (paired[1] - paired[0])
    of_differences = bounds_of_mean(a - b, units, level=LEVEL, seed=0, is_rate=False)
    assert paired == pytest.approx(of_differences)


def test_swapping_the_sides_mirrors_the_bounds() -> None:
    generator = np.random.default_rng(11)
    a, b, units = generator.random(50), generator.random(50) * 0.5, np.arange(50) // 2
    lower, upper = bounds_of_mean_difference(a, units, b, units, paired=True, level=LEVEL, seed=0)
    swapped = bounds_of_mean_difference(b, units, a, units, paired=True, level=LEVEL, seed=0)
    assert swapped == pytest.approx((-upper, -lower), abs=2e-3)
    assert 0 < lower < upper


def test_a_side_at_0_brings_in_the_exact_bounds_of_both() -> None:
    units = np.repeat(np.arange(24), 4)
    zeros, ones = np.zeros(96), np.ones(96)
    some = clustered_rates(np.random.default_rng(12), 24, 4, 0.5).ravel()
    tail = 1 - LEVEL ** (1 / 24)
    for paired in (True, False):
        both = bounds_of_mean_difference(zeros, units, zeros, units, paired=paired, level=LEVEL, seed=0)
        assert both == pytest.approx((-tail, tail))
        apart = bounds_of_mean_difference(ones, units, zeros, units, paired=paired, level=LEVEL, seed=0)
        assert apart == pytest.approx((1 - math.hypot(tail, tail), 1.0))
    own = bounds_of_mean(some, units, level=LEVEL, seed=0)
    lower, upper = bounds_of_mean_difference(some, units, zeros, units, paired=True, level=LEVEL, seed=0)
    assert upper == pytest.approx(own[1])
    assert lower == pytest.approx(some.mean() - math.hypot(some.mean() - own[0], tail))
    # Newcombe's arrangement is not symmetric: with sides exchanged the ends exchange too.
    lower, upper = bounds_of_mean_difference(zeros, units, some, units, paired=True, level=LEVEL, seed=0)
    assert lower == pytest.approx(-own[1]) and upper == pytest.approx(
        math.hypot(tail, some.mean() - own[0]) - some.mean()
    )


def test_log_probabilities_of_0_do_not_bring_in_exact_bounds() -> None:
    units = np.arange(20)
    values = np.random.default_rng(13).normal(-2, 1, 20)
    lower, upper = bounds_of_mean_difference(np.zeros(20), units, values, units, paired=True, level=LEVEL, seed=0)
    own = bounds_of_mean(-values, units, level=LEVEL, seed=0)
    assert (lower, upper) == pytest.approx(own)
    # By chance inside [0, 1]: only the caller knows that it is no rate.
    zeros, small = np.zeros(20), np.abs(values) / 10
    inside = bounds_of_mean_difference(zeros, units, small, units, paired=True, level=LEVEL, seed=0, is_rate=False)
    assert inside == pytest.approx(bounds_of_mean(-small, units, level=LEVEL, seed=0))


# AUC.


def members_and_others(
    seed: int, n_units: int, per_unit: int, shift: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    generator = np.random.default_rng(seed)
    units = np.repeat(np.arange(2 * n_units), per_unit)
    member = (units < n_units).astype(int)
    unit_effect = generator.normal(0, 1, 2 * n_units)[units]
    values = unit_effect + generator.normal(0, 1, units.size) + shift * member
    return np.round(values, 1), units, member


def test_auc_resamples_equal_a_slow_loop_that_copies_scores() -> None:
    values, units, member = members_and_others(0, 6, 3, 0.5)
    level, resamples = 0.1, 400
    # The same draws, counted the obvious way: members by stream 0, others by stream 1.
    draws = [np.random.default_rng([5, stream]).integers(0, 6, (resamples, 6)) for stream in (0, 1)]
    slow = []
    for mine, theirs in zip(*draws, strict=True):
        chosen = np.concatenate([values[units == unit] for unit in mine])
        others = np.concatenate([values[units == 6 + unit] for unit in theirs])
        slow.append(auc(chosen, others))
    widened = stats.norm.cdf(-math.sqrt(6 / 5) * stats.t.ppf(1 - level, 5))
    ordered = np.sort(slow)
    expected = ordered[int(np.floor(widened * 399))], ordered[int(np.ceil((1 - widened) * 399))]
    assert bounds_of_auc(values, units, member, level=level, seed=5, resamples=resamples) == pytest.approx(expected)


def test_auc_bounds_hold_the_value_and_mirror() -> None:
    values, units, member = members_and_others(1, 40, 2, 0.6)
    value = auc(values[member == 1], values[member == 0])
    lower, upper = bounds_of_auc(values, units, member, level=LEVEL, seed=0)
    assert 0.5 < lower < value < upper < 0.9
    mirrored = bounds_of_auc(-values, units, member, level=LEVEL, seed=0)
    assert mirrored == pytest.approx((1 - upper, 1 - lower), abs=1e-3)
    assert bounds_of_auc(np.exp(values), units, member, level=LEVEL, seed=0) == pytest.approx((lower, upper))


def test_auc_resamples_units_and_not_items() -> None:
    values, units, member = members_and_others(2, 30, 1, 0.4)
    once = bounds_of_auc(values, units, member, level=LEVEL, seed=0)
    copied = bounds_of_auc(np.repeat(values, 10), np.repeat(units, 10), np.repeat(member, 10), level=LEVEL, seed=0)
    assert copied == pytest.approx(once)


def test_auc_bounds_cover_chance() -> None:
    missed = [0, 0]
    for run in range(300):
        values, units, member = members_and_others(100 + run, 20, 4, 0.0)
        lower, upper = bounds_of_auc(values, units, member, level=LEVEL, seed=run, resamples=500)
        missed[0] += lower > 0.5
        missed[1] += upper < 0.5
    assert all(0.01 < share / 300 < 0.10 for share in missed)


def test_perfect_separation_gets_exact_bounds_with_the_smaller_number_of_units() -> None:
    values = np.concatenate([np.full(40, 2.0), np.full(15, 1.0)])
    units, member = np.arange(55) // 2, np.concatenate([np.ones(40), np.zeros(15)])
    n = 8  # units 20 .. 27 hold the non-members
    assert bounds_of_auc(values, units, member, level=LEVEL, seed=0) == pytest.approx((LEVEL ** (1 / n), 1.0))
    assert bounds_of_auc(-values, units, member, level=LEVEL, seed=0) == pytest.approx((0.0, 1 - LEVEL ** (1 / n)))


def test_auc_difference_from_a_constant_is_a_shift() -> None:
    values, units, member = members_and_others(3, 20, 2, 0.5)
    lower, upper = bounds_of_auc(values, units, member, level=LEVEL, seed=0)
    shifted = bounds_of_auc_difference(values, units, member, 0.5, paired=False, level=LEVEL, seed=0)
    assert shifted == pytest.approx((lower - 0.5, upper - 0.5))


def test_auc_difference_paired_unpaired_and_at_the_ends() -> None:
    values, units, member = members_and_others(4, 30, 2, 0.5)
    args = (values, units, member)
    assert bounds_of_auc_difference(*args, *args, paired=True, level=LEVEL, seed=0) == (0.0, 0.0)
    lower, upper = bounds_of_auc_difference(*args, *args, paired=False, level=LEVEL, seed=0)
    own = bounds_of_auc(*args, level=LEVEL, seed=0)
    assert (upper - lower) == pytest.approx(math.sqrt(2) * (own[1] - own[0]), rel=0.1)
    memorised = member * 10.0 + values * 0
    lower, upper = bounds_of_auc_difference(memorised, units, member, *args, paired=True, level=LEVEL, seed=0)
    value = auc(values[member == 1], values[member == 0])
    assert lower == pytest.approx(1 - value - math.hypot(1 - LEVEL ** (1 / 30), own[1] - value))
    assert upper == pytest.approx(1 - value + (value - own[0]))


# Refusals.


def test_fewer_than_three_units_are_not_measured() -> None:
    with pytest.raises(NotMeasured, match="needs at least 3 units, has 2"):
        bounds_of_mean([0.0, 1.0, 1.0], [0, 1, 1], level=LEVEL, seed=0)
    with pytest.raises(NotMeasured, match="needs at least 3 units of non-members, has 1"):
        bounds_of_auc([1.0, 2.0, 3.0, 0.0], [0, 1, 2, 3], [1, 1, 1, 0], level=LEVEL, seed=0)
    with pytest.raises(NotMeasured, match="has 0"):
        bounds_of_mean([], [], level=LEVEL, seed=0)


def test_values_that_are_no_numbers_are_not_measured() -> None:
    with pytest.raises(NotMeasured, match="1 of 3 values are NaN or infinite"):
        bounds_of_mean([0.0, math.nan, 1.0], [0, 1, 2], level=LEVEL, seed=0)
    with pytest.raises(NotMeasured, match="1 of 6 scores are NaN"):
        bounds_of_auc([0.0, math.nan, 1.0, 0, 0, 0], range(6), [1, 1, 1, 0, 0, 0], level=LEVEL, seed=0)


def test_arguments_that_do_not_fit_are_refused() -> None:
    values, units = [0.1, 0.2, 0.4], [0, 1, 2]
    with pytest.raises(BadInput, match="2 units do not match"):
        bounds_of_mean(values, [0, 1], level=LEVEL, seed=0)
    with pytest.raises(BadInput, match=r"10 resamples have none beyond level 0\.05\. Use at least 20"):
        bounds_of_mean(values, units, level=LEVEL, seed=0, resamples=10)
    with pytest.raises(BadInput, match=r"different units \(2 occur on one side only\). Use paired=False"):
        bounds_of_mean_difference(values, units, values, [0, 1, 3], paired=True, level=LEVEL, seed=0)
    with pytest.raises(BadInput, match="or others than 0 and 1"):
        bounds_of_auc(values, units, [1, 0, 2], level=LEVEL, seed=0)
    values, units, member = [0.0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [1, 0, 1, 0, 1, 0]
    with pytest.raises(BadInput, match="without their units or members"):
        bounds_of_auc_difference(values, units, member, values, paired=True, level=LEVEL, seed=0)
    with pytest.raises(BadInput, match="cannot be paired with a constant"):
        bounds_of_auc_difference(values, units, member, 0.5, paired=True, level=LEVEL, seed=0)


@pytest.mark.parametrize("units", [6, 10, 24])
def test_one_hit_on_each_side_says_no_more_than_none(units: int) -> None:
    def upper(hits: int) -> float:
        values = [float(item < hits) for item in range(8 * units)]
        people = [item // 8 for item in range(8 * units)]
        found = bounds_of_mean_difference(values, people, values, people, paired=True, level=0.05 / 22, seed=0)
        mirrored = [1 - value for value in values]
        other = bounds_of_mean_difference(mirrored, people, mirrored, people, paired=True, level=0.05 / 22, seed=0)
        assert other[0] == pytest.approx(-found[1], abs=0.02)  # so many units: percentiles round outwards
        return found[1]

    assert upper(1) >= 0.95 * upper(0)


def test_a_share_left_is_still_told_from_a_control_that_hardly_knows() -> None:
    people = [item // 20 for item in range(800)]
    left = [float(item % 10 == 0) for item in range(800)]  # 0.1 of everybody
    control = [float(item % 50 == 0) for item in range(800)]
    lower, _ = bounds_of_mean_difference(left, people, control, people, paired=True, level=0.05 / 22, seed=0)
    assert lower > 0.03
