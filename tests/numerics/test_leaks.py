"""Leakage over k answers: enumerated, at both ends, and where 1 - p is no number any more."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from letheon.errors import BadInput, NotMeasured
from letheon.numerics.intervals import exact_binomial_bounds
from letheon.numerics.leaks import exact_leak, hoeffding_upper, sampled_leak


def test_sampled_leaks_are_those_of_all_draws() -> None:
    for n in range(1, 9):
        for hits in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([1] * hits + [0] * (n - hits), k))
                wanted = sum(any(draw) for draw in draws) / len(draws)
                assert sampled_leak(hits, n, k) == pytest.approx(wanted, abs=1e-14), (n, hits, k)


def test_the_ends_of_sampled_leaks_are_exact() -> None:
    for n, hits in ((1, 0), (7, 0), (7, 1), (7, 7), (200, 3)):
        assert sampled_leak(hits, n, 1) == pytest.approx(hits / n, abs=1e-15)
        assert sampled_leak(hits, n, n) == float(hits > 0)
    leaks = [sampled_leak(3, 200, k) for k in range(1, 201)]
    assert leaks == sorted(leaks)


@pytest.mark.parametrize("p", [Fraction(1, 2), Fraction(99, 100), Fraction(1, 10**4), Fraction(1, 10**12)])
@pytest.mark.parametrize("k", [1, 2, 7, 128])
def test_exact_leaks_are_those_of_fractions(p: Fraction, k: int) -> None:
    wanted = float(1 - (1 - p) ** k)
    assert float(exact_leak(math.log(p), k)) == pytest.approx(wanted, rel=1e-11, abs=0)


def test_no_probability_is_too_small_or_too_near_to_one() -> None:
    assert float(exact_leak(-600.0, 128)) == pytest.approx(128 * math.exp(-600), rel=1e-10, abs=0)
    assert float(exact_leak(-50.0, 1)) == pytest.approx(math.exp(-50), rel=1e-12, abs=0)
    assert exact_leak([0.0, -math.inf], 5).tolist() == [1.0, 0.0]
    assert 1 - float(exact_leak(-1e-9, 1)) == pytest.approx(1e-9, rel=1e-6)
    at = [float(exact_leak(-3.0, k)) for k in range(1, 129)]
    assert at == sorted(at) and at[0] == pytest.approx(math.exp(-3))


def test_samples_agree_with_the_exact_number() -> None:
    """Within three standard errors, at several k."""
    p, n, rounds = 0.02, 50, 4000
    hits = np.random.default_rng(0).binomial(n, p, rounds)
    for k in (1, 8, 32):
        found = [sampled_leak(int(count), n, k) for count in hits]
        error = np.std(found) / math.sqrt(rounds)
        assert abs(np.mean(found) - float(exact_leak(math.log(p), k))) < 3 * error


def test_nothing_found_is_not_nothing_there() -> None:
    assert exact_binomial_bounds(0, 200, 0.05)[1] == pytest.approx(1 - 0.05 ** (1 / 200))
    assert hoeffding_upper(0.0, 200, 0.05) == pytest.approx(math.sqrt(math.log(20) / 400))
    assert hoeffding_upper(0.9, 5, 0.05) == 1.0


def test_hoeffdings_bound_is_wrong_no_more_often_than_it_says() -> None:
    means = np.random.default_rng(1).binomial(40, 0.5, 4000) / 40
    wrong = np.mean([hoeffding_upper(float(mean), 40, 0.05) < 0.5 for mean in means])
    assert wrong <= 0.05


@pytest.mark.parametrize(("hits", "n", "k"), [(-1, 4, 1), (5, 4, 1), (1, 0, 1), (1, 4, 0), (1, 4, 5)])
def test_counts_that_cannot_be_are_refused(hits: int, n: int, k: int) -> None:
    with pytest.raises(BadInput):
        sampled_leak(hits, n, k)


def test_log_probabilities_that_are_none_are_refused() -> None:
    with pytest.raises(BadInput, match="above 0"):
        exact_leak([0.1], 1)
    with pytest.raises(NotMeasured, match="NaN"):
        exact_leak([math.nan], 1)
    with pytest.raises(BadInput, match="leak@0"):
        exact_leak([-1.0], 0)
    with pytest.raises(BadInput):
        hoeffding_upper(1.2, 5, 0.05)
