"""Scores of a benchmark, item by item, and the figures that are made of them and of nothing else.

A figure is a pure function of tables: whoever has the tables of a log can make every printed number again. So tables
are rounded to what a file keeps before any figure is made.

Source: this project.  Checked against: figures made again from a written log, a loop over resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from letheon.errors import NotMeasured
from letheon.numerics.intervals import bounds_of_auc, bounds_of_mean

LEVEL = 0.025
"""Chance of each bound to be wrong: together a 95 % interval, as MUSE prints it."""
FEWEST = 20
"""Items below which a mean is printed with its interval and no p-value is given."""


Better = Literal["low", "high", "reference", ""]
"""For a model that has forgotten and is still useful; "reference": like a retrained one."""


@dataclass(frozen=True)
class Table:
    """Some items of one set, with one number an item in each column."""

    items: tuple[str, ...]
    """Such as "forget10_perturbed/12": set and place in it, counted from 0 as published logs do."""
    units: tuple[str, ...]
    """What items belong to (an author): intervals are over units."""
    columns: dict[str, tuple[float, ...]]

    def rounded(self) -> Table:
        """Eight digits a number: what a file keeps."""
        kept = {name: tuple(float(f"{value:.8g}") for value in values) for name, values in self.columns.items()}
        return Table(self.items, self.units, kept)

    def column(self, name: str) -> NDArray[np.float64]:
        """(items,) one column."""
        return np.asarray(self.columns[name], dtype=np.float64)

    @staticmethod
    def of(plain: Mapping[str, Any]) -> Table:
        """From what JSON gives back."""
        columns = {str(name): tuple(map(float, values)) for name, values in plain["columns"].items()}
        return Table(tuple(plain["items"]), tuple(plain["units"]), columns)


Tables = Mapping[str, Table]
"""Set -> its table."""


@dataclass(frozen=True)
class Measured:
    """One set asked of one model: the table, and the raw text, which may be purged."""

    table: Table
    said: tuple[dict[str, str], ...] = ()
    """For each item that was answered in words: item, prompt, answer, said."""


@dataclass(frozen=True)
class Figure:
    """One number of a benchmark, under the exact name of its variant."""

    name: str
    """Such as "forget.rougeL_recall.stem"."""
    value: float | None
    """None: not measured, and `note` says why."""
    low: float | None = None
    high: float | None = None
    """A 95 % interval over units; None where there is none."""
    n: int = 0
    """Items."""
    better: Better = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How intervals are made."""

    seed: int = 0
    resamples: int = 10_000


def mean_figure(
    name: str,
    table: Table,
    values: NDArray[np.float64],
    how: Resampling,
    *,
    better: Better = "",
    note: str = "",
    is_rate: bool = True,
) -> Figure:
    """The mean over items with its interval over units; without one below three units."""
    bounds = _bounds(
        lambda: bounds_of_mean(
            values, table.units, level=LEVEL, seed=how.seed, resamples=how.resamples, is_rate=is_rate
        )
    )
    return Figure(name, float(values.mean()), *bounds, len(values), better, note)


def auc_figure(
    name: str,
    members: tuple[NDArray[np.float64], Sequence[str]],
    others: tuple[NDArray[np.float64], Sequence[str]],
    value: float,
    how: Resampling,
    *,
    is_turned: bool = False,
    note: str = "",
) -> Figure:
    """An AUC (or, turned, 1 - AUC) with its interval; `members`, `others`: familiarity, and the unit of each item."""
    values = np.concatenate([members[0], others[0]])
    units = [*members[1], *others[1]]
    is_member = [1] * len(members[0]) + [0] * len(others[0])
    low, high = _bounds(
        lambda: bounds_of_auc(values, units, is_member, level=LEVEL, seed=how.seed, resamples=how.resamples)
    )
    if is_turned and low is not None and high is not None:
        low, high = 1 - high, 1 - low
    return Figure(name, value, low, high, len(values), "reference", note)


def not_measured(name: str, reason: str, *, n: int = 0) -> Figure:
    """A figure that is no number: what is missing, and what to run."""
    return Figure(name, None, n=n, note=reason)


def resampled_means(
    values: NDArray[np.float64], units: Sequence[str], how: Resampling, *, stream: int
) -> NDArray[np.float64]:
    """(resamples, columns) means over items of (items, columns) values, with whole units drawn again.

    Streams of one seed are independent. Raises NotMeasured below three units, whose resamples say nothing.
    """
    names, codes = np.unique(np.asarray(units), return_inverse=True)
    if len(names) < 3:
        raise NotMeasured(f"an interval needs 3 units or more, and there are {len(names)}")
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, codes, values)
    sizes = np.bincount(codes).astype(np.float64)
    generator = np.random.default_rng([how.seed, stream])
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=how.resamples)
    means: NDArray[np.float64] = (drawn @ sums) / (drawn @ sizes)[:, None]
    return means


def percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of resampled numbers."""
    low, high = np.quantile(values, [LEVEL, 1 - LEVEL])
    return float(low), float(high)


def _bounds(make: Callable[[], tuple[float, float]]) -> tuple[float | None, float | None]:
    """An interval, or none where there are too few units for one."""
    try:
        return make()
    except NotMeasured:
        return None, None
