"""The cosine rate, by hand."""

from __future__ import annotations

import math

import pytest

from letheon.errors import BadInput
from letheon.training.rates.cosine import Cosine


def test_half_a_cosine_to_the_floor() -> None:
    cosine = Cosine(warmup=0.0, floor=0.2)
    found = [cosine.factor(step, 4) for step in range(4)]
    half = math.sqrt(0.5)
    assert found == pytest.approx([1.0, 0.2 + 0.4 * (1 + half), 0.6, 0.2 + 0.4 * (1 - half)])


def test_it_rises_first() -> None:
    cosine = Cosine(warmup=0.5, floor=0.0)
    found = [cosine.factor(step, 8) for step in range(8)]
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[4:] == pytest.approx([1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])


@pytest.mark.parametrize("warmup", [0.0, 0.06, 0.33, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_it_stays_between_nothing_and_one(warmup: float, steps: int) -> None:
    cosine = Cosine(warmup=warmup)
    factors = [cosine.factor(step, steps) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    falling = factors[math.ceil(warmup * steps) :]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("setting", [{"warmup": 1.0}, {"warmup": -0.1}, {"floor": -0.1}, {"floor": 1.1}])
def test_impossible_settings_are_refused(setting: dict[str, float]) -> None:
    [name] = setting
    with pytest.raises(BadInput, match=rf"cosine needs 0 <= {name} .* got {setting[name]}"):
        Cosine(**setting)
