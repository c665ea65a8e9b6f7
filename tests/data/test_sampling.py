"""A sample must keep every unit, and must not follow the order of the file."""

from __future__ import annotations

from collections import Counter

import pytest

from letheon.data.sampling import sample

WORDINGS = 4
ITEMS = [(person, fact, wording) for person in range(40) for fact in range(5) for wording in range(WORDINGS)]
UNITS = [f"person {person}" for person, _, _ in ITEMS]
NAMES = [f"line {line}" for line in range(len(ITEMS))]


def test_what_fits_is_taken_whole() -> None:
    assert sample(UNITS, NAMES, 800) == list(range(800))
    assert sample([], [], 5) == []


@pytest.mark.parametrize("limit", [1, 39, 40, 41, 200, 799])
def test_it_is_as_large_as_it_may_be_and_fair_to_units(limit: int) -> None:
    chosen = sample(UNITS, NAMES, limit)
    assert len(set(chosen)) == limit and chosen == sorted(chosen)
    counts = Counter(UNITS[item] for item in chosen)
    assert max(counts.values()) - min(counts.values()) <= 1 or len(counts) < 40
    assert len(counts) == min(limit, 40)


@pytest.mark.parametrize("limit", [200, 400])  # a quarter and a half: every fourth line would be one wording
def test_the_mix_of_wordings_is_that_of_the_whole(limit: int) -> None:
    counts = Counter(ITEMS[item][2] for item in sample(UNITS, NAMES, limit))
    for wording in range(WORDINGS):
        assert counts[wording] / limit == pytest.approx(1 / WORDINGS, abs=0.08)


def test_the_same_names_give_the_same_sample_and_others_another() -> None:
    assert sample(UNITS, NAMES, 100) == sample(UNITS, NAMES, 100)
    assert sample(UNITS, NAMES, 100) != sample(UNITS, [f"other {name}" for name in NAMES], 100)


def test_units_with_few_items_are_used_up_first() -> None:
    chosen = sample(["a", "b", "b", "b"], ["1", "2", "3", "4"], 3)
    assert 0 in chosen and len(chosen) == 3
