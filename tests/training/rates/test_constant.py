"""The constant rate, by hand."""

from __future__ import annotations

import pytest

from letheon.errors import BadInput
from letheon.training.rates.constant import Constant


def test_it_is_one_everywhere() -> None:
    assert [Constant().factor(step, 5) for step in range(5)] == [1.0] * 5


def test_it_rises_over_the_warm_up() -> None:
    factors = [Constant(warmup=0.4).factor(step, 10) for step in range(10)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert [Constant(warmup=0.05).factor(step, 10) for step in range(3)] == [1.0, 1.0, 1.0]  # under a step: none


@pytest.mark.parametrize("warmup", [-0.1, 1.0])
def test_an_impossible_warm_up_is_refused(warmup: float) -> None:
    with pytest.raises(BadInput, match=rf"constant needs 0 <= warmup < 1, got {warmup}"):
        Constant(warmup=warmup)
