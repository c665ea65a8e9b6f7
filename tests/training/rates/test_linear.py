"""The linear rate, by hand."""

from __future__ import annotations

import pytest

from letheon.errors import BadInput
from letheon.training.rates.linear import Linear


def test_it_falls_to_the_last_share_and_never_to_nothing() -> None:
    assert [Linear().factor(step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_it_rises_first() -> None:
    factors = [Linear(warmup=0.5).factor(step, 8) for step in range(8)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.33, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_it_stays_above_nothing_and_at_most_one(warmup: float, steps: int) -> None:
    factors = [Linear(warmup=warmup).factor(step, steps) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)


@pytest.mark.parametrize("warmup", [-0.1, 1.0])
def test_an_impossible_warm_up_is_refused(warmup: float) -> None:
    with pytest.raises(BadInput, match=rf"linear needs 0 <= warmup < 1, got {warmup}"):
        Linear(warmup=warmup)
