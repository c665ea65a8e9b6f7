"""Figures and their intervals, against loops."""

from __future__ import annotations

import numpy as np
import pytest

from letheon.audits.itemized import Resampling, Table, auc_figure, mean_figure, percentiles, resampled_means
from letheon.errors import NotMeasured
from letheon.numerics.scores import auc
from letheon.settings import plain

HOW = Resampling(seed=3, resamples=2000)


def table(units: int = 12, each: int = 3) -> Table:
    values = np.random.default_rng(0).uniform(0.2, 0.8, units * each)
    names = [f"u{at // each}" for at in range(units * each)]
    return Table(tuple(f"i/{at}" for at in range(len(names))), tuple(names), {"x": tuple(values)})


def test_a_mean_has_its_interval_over_units() -> None:
    given = table()
    figure = mean_figure("x", given, given.column("x"), HOW)
    assert figure.value == pytest.approx(float(np.mean(given.columns["x"]))) and figure.n == 36
    assert figure.low is not None and figure.high is not None and figure.low < figure.value < figure.high
    two = table(units=2)
    assert mean_figure("x", two, two.column("x"), HOW).low is None


def test_resampled_means_draw_whole_units() -> None:
    """Against a loop with the same draws; a unit of unlike size weighs by its items."""
    values = np.arange(14, dtype=np.float64).reshape(7, 2)
    units = ["a", "b", "b", "c", "a", "c", "c"]
    found = resampled_means(values, units, Resampling(seed=1, resamples=50), stream=4)
    drawn = np.random.default_rng([1, 4]).multinomial(3, [1 / 3] * 3, size=50)
    for row, counts in zip(found, drawn, strict=True):
        pool = [values[at] for at in range(7) for _ in range(counts["abc".index(units[at])])]
        assert row == pytest.approx(np.mean(pool, axis=0))
    with pytest.raises(NotMeasured, match="3 units or more"):
        resampled_means(values, ["a"] * 7, HOW, stream=0)
    assert percentiles(np.arange(1001.0)) == (25.0, 975.0)


def test_a_turned_auc_is_one_less_the_auc_and_so_is_its_interval() -> None:
    rng = np.random.default_rng(2)
    members = (rng.normal(0.5, 1, 20), [f"m{at}" for at in range(20)])
    others = (rng.normal(0, 1, 25), [f"o{at}" for at in range(25)])
    value = auc(members[0], others[0])
    straight = auc_figure("a", members, others, value, HOW)
    turned = auc_figure("b", members, others, 1 - value, HOW, is_turned=True)
    assert straight.low is not None and straight.high is not None
    assert (turned.low, turned.high) == (1 - straight.high, 1 - straight.low)
    assert straight.low < value < straight.high and straight.n == 45


def test_a_table_goes_through_a_file_and_is_rounded_first() -> None:
    given = Table(("a", "b"), ("u", "u"), {"x": (1 / 3, 2e-11 / 3)}).rounded()
    assert given.columns["x"] == (0.33333333, 6.6666667e-12)
    assert Table.of(plain(given)) == given == given.rounded()
