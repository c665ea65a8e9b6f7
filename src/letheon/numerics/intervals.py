"""Bounds of means, of AUCs and of their differences, when items come in units (persons, documents).

Items of one unit are not independent: a person who is remembered is remembered in several questions. So units
are resampled, not items. `level` is the chance that one bound is wrong (0.05, or 0.05 / m for m judgements).
Each function gives a lower and an upper bound, each at that level: together an interval at 2 * level.

    resampled mean  = sum_u c_u S_u / sum_u c_u N_u    unit u: sum S_u, N_u items, drawn c_u times
    resampled AUC   = c W d / ((c N)(d M))             W_uv pairs won by members of u over non-members of v
    bounds          = the level' and 1 - level' percentiles, rounded outwards to a resample
    level'          = Phi(-sqrt(n / (n - 1)) * t(1 - level, n - 1))    n units (of two sides: the fewer)

The last line widens the plain percentile for few units (Hesterberg's expanded percentile; level' -> level).
Where resampling cannot see anything, exact bounds step in:
- a rate of exactly 0 or 1: Clopper-Pearson with n = units, because all items of a unit may stand or fall
  together; an AUC of exactly 0 or 1: the same with n = the smaller number of units (so many independent
  pairs there are);
- a rate near 0 or 1: its upper bound is never below that for 0 hits, its lower never above that for n hits.
  Without this a single hit would give a tighter bound than none;
- a difference with a side at exactly 0 or 1: the two sides' own bounds, by Newcombe's hybrid (MOVER),
  d - sqrt((a - La)^2 + (Ub - b)^2)  ..  d + sqrt((Ua - a)^2 + (b - Lb)^2). It takes no credit for pairing;
- a difference whose first side is a rate near 0 (or 1), so that its own upper (lower) bound is that for 0
  (n) hits: the difference's upper (lower) bound is never tighter than by that hybrid. One stray hit on each
  side would otherwise say more than none.

How good they are: share of wrong bounds in 1,500 simulations, 8 items a unit, correlation 1/3 inside a unit,
levels 0.05 and 0.0038 = 0.05 / 13 (standard errors 0.006 and 0.0016):
- rates near 0.5, differences of equal rates: 0.03-0.06 and 0.001-0.005 from 24 units on; up to 0.009 with 6;
- low rates, 0.05-0.2 (high ones mirrored): skew is not corrected. The upper bound is wrong in up to 0.10 and
  0.015 where the second rule does not reach (72 units, or 24 at 0.05), in none where it does;
- a rate of 0.2 less one of 0.05: the upper bound in 0.06 and 0.006 with 24 units, 0.09 and 0.04 with 6.
So with few units these bounds are a rough guide, and wrong more often than they say.

What to plan for: with 0 hits on both sides a difference is bounded by 1 - level^(1/n), which for 24 units is
0.117 at level 0.05 and 0.207 at 0.0038; a smaller margin cannot be met there, however clean the model.
Values all equal, but not 0 or 1, get bounds of no width: nothing in them says how far they could have fallen.

Source: Davison and Hinkley 1997 (cluster bootstrap); Hesterberg 2015, arXiv:1411.5279 (expanded percentile);
Clopper and Pearson 1934; Newcombe 1998, Zou and Donner 2008 (MOVER).
Checked against: simulated coverage, a loop over resamples, closed forms at 0 and n hits, invariances.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, stdtrit

from letheon.errors import BadInput, NotMeasured, require

Numbers = Sequence[Any] | NDArray[Any]
"""A list or a one-axis array."""

Bounds = tuple[float, float]
"""Lower and upper."""

_MIN_UNITS = 3
_CHUNK = 2**22
"""Entries of a count matrix held at once (32 MB)."""
_KEPT = 2**21
"""Entries of a count matrix that is kept for the next judgement: 160 strangers, 10,000 resamples (16 MB; at most 8)."""

_Stream = tuple[int, int]
"""(seed, number): streams of one seed are independent. Two sides drawn from one stream would move together."""


def exact_binomial_bounds(hits: int, n: int, level: float) -> Bounds:
    """Clopper-Pearson bounds of a rate: each wrong with at most the chance `level`, whatever the rate.

    lower = the p with P(X >= hits | p) = level, upper = the p with P(X <= hits | p) = level.

    >>> exact_binomial_bounds(0, 24, 0.05)[1] == 1 - 0.05 ** (1 / 24)
    True
    """
    require(n >= 1 and 0 <= hits <= n, f"{hits} hits of {n} are not a rate. Give 0 <= hits <= n with n from 1")
    _check_level(level)
    # Closed forms at the ends, exact to the last digit.
    if hits == 0:
        return 0.0, 1 - level ** (1 / n)
    if hits == n:
        return level ** (1 / n), 1.0
    return float(betaincinv(hits, n - hits + 1, level)), float(betaincinv(hits + 1, n - hits, 1 - level))


def bounds_of_mean(
    values: Numbers, units: Numbers, *, level: float, seed: int, resamples: int = 10_000, is_rate: bool = True
) -> Bounds:
    """Bounds of the mean over items.

    Args:
        values: one number an item.
        units: the unit of each item, as a code.
        level: in (0, 0.5), the chance of each bound to be wrong. At least one resample must lie beyond it.
        seed: of the resampling; the same seed gives the same bounds.
        resamples: 10,000 settle the 0.004 percentile to about 0.0006.
        is_rate: False for log-probabilities and the like, whose values may lie in [0, 1] by chance. Values
            outside [0, 1] are never taken for a rate.
    Raises:
        NotMeasured: fewer than 3 units, or a value that is NaN or infinite.
        BadInput: lengths that differ, or a level or number of resamples that cannot be used.
    """
    _check_resampling(level, resamples)
    sample = _Sample.of(values, units)
    return _own_bounds(sample, _means(sample, resamples, (seed, 0)), level, is_rate)


def bounds_of_mean_difference(
    values_a: Numbers,
    units_a: Numbers,
    values_b: Numbers,
    units_b: Numbers,
    *,
    paired: bool,
    level: float,
    seed: int,
    resamples: int = 10_000,
    is_rate: bool = True,
) -> Bounds:
    """Bounds of mean(values_a) - mean(values_b).

    Args:
        values_a, units_a, values_b, units_b: as in `bounds_of_mean`.
        paired: True when both sides are about the same units (one item scored by two models): a resample
            then draws the same units for both. False: each side is drawn by itself.
        level, seed, resamples, is_rate: as in `bounds_of_mean`.
    Raises:
        NotMeasured: fewer than 3 units on a side, or a value that is NaN or infinite.
        BadInput: paired sides with different units, and what `bounds_of_mean` raises.
    """
    _check_resampling(level, resamples)
    a, b = _Sample.of(values_a, units_a), _Sample.of(values_b, units_b)
    if paired:
        _check_paired(a.labels, b.labels)
    means_a = _means(a, resamples, (seed, 0))
    # The same stream and the same number of units draw the same units.
    means_b = _means(b, resamples, (seed, 0 if paired else 1))
    lower, upper = _percentiles(means_a - means_b, level, min(a.n_units, b.n_units))
    if not (is_rate and a.is_rate and b.is_rate):
        return lower, upper
    bounds_a, bounds_b = _own_bounds(a, means_a, level, True), _own_bounds(b, means_b, level, True)
    outer = _mover(a.mean, bounds_a, b.mean, bounds_b)
    if a.is_extreme or b.is_extreme:
        return outer
    plain = _percentiles(means_a, level, a.n_units)
    return (
        min(lower, outer[0]) if bounds_a[0] < plain[0] else lower,
        max(upper, outer[1]) if bounds_a[1] > plain[1] else upper,
    )


def bounds_of_auc(
    values: Numbers, units: Numbers, member: Numbers, *, level: float, seed: int, resamples: int = 10_000
) -> Bounds:
    """Bounds of P(a member scores above a non-member) + ties/2. Members' and non-members' units are drawn
    apart.

    Args:
        values: one score an item, higher = more familiar.
        units: the unit of each item, as a code.
        member: 1 for an item of the forget set, 0 for one never trained on.
        level, seed, resamples: as in `bounds_of_mean`.
    Raises:
        NotMeasured: fewer than 3 units among members or non-members, or a value that is NaN.
        BadInput: what `bounds_of_mean` raises, or a `member` other than 0 and 1.
    """
    _check_resampling(level, resamples)
    pairs = _Pairs.of(values, units, member)
    return _own_auc_bounds(pairs, _aucs(pairs, resamples, (seed, 0), (seed, 1)), level)


def bounds_of_auc_difference(
    values_a: Numbers,
    units_a: Numbers,
    member_a: Numbers,
    values_b: Numbers | float,
    units_b: Numbers | None = None,
    member_b: Numbers | None = None,
    *,
    paired: bool,
    level: float,
    seed: int,
    resamples: int = 10_000,
) -> Bounds:
    """Bounds of AUC(a) - AUC(b).

    Args:
        values_a, units_a, member_a: as in `bounds_of_auc`.
        values_b: the other model's scores, with `units_b` and `member_b`; or a constant such as 0.5, without
            them.
        paired: True when both models scored the same units, which a resample then draws alike.
        level, seed, resamples: as in `bounds_of_mean`.
    Raises:
        NotMeasured, BadInput: as in `bounds_of_auc` and `bounds_of_mean_difference`.
    """
    _check_resampling(level, resamples)
    a = _Pairs.of(values_a, units_a, member_a)
    aucs_a = _aucs(a, resamples, (seed, 0), (seed, 1))
    if isinstance(values_b, float | int):
        require(
            not paired,
            "an AUC cannot be paired with a constant. Use paired=False, or give the other model's scores",
        )
        lower, upper = _own_auc_bounds(a, aucs_a, level)
        return lower - values_b, upper - values_b
    if units_b is None or member_b is None:
        raise BadInput("scores to compare with come without their units or members. Give units_b and member_b as well")
    b = _Pairs.of(values_b, units_b, member_b)
    if paired:
        _check_paired(a.labels, b.labels)
        _check_paired(a.other_labels, b.other_labels)
    first = 0 if paired else 2
    aucs_b = _aucs(b, resamples, (seed, first), (seed, first + 1))
    if a.is_extreme or b.is_extreme:
        return _mover(a.auc, _own_auc_bounds(a, aucs_a, level), b.auc, _own_auc_bounds(b, aucs_b, level))
    return _percentiles(aucs_a - aucs_b, level, min(a.n_units, b.n_units))


@dataclass(frozen=True, eq=False)
class _Sample:
    """Items summed up by unit: all that the mean and its resamples need."""

    labels: NDArray[Any]
    sums: NDArray[np.float64]
    sizes: NDArray[np.float64]
    is_rate: bool
    is_extreme: bool

    @classmethod
    def of(cls, values: Numbers, units: Numbers) -> _Sample:
        numbers = _as_numbers(values, units)
        if not np.isfinite(numbers).all():
            raise NotMeasured(f"{int((~np.isfinite(numbers)).sum())} of {len(numbers)} values are NaN or infinite")
        labels, codes = _as_units(units, "")
        return cls(
            labels=labels,
            sums=np.bincount(codes, weights=numbers).astype(np.float64),
            sizes=np.bincount(codes).astype(np.float64),
            is_rate=bool((numbers >= 0).all() and (numbers <= 1).all()),
            is_extreme=bool((numbers == 0).all() or (numbers == 1).all()),
        )

    @property
    def n_units(self) -> int:
        return len(self.sums)

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.sizes.sum())


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Member against non-member pairs counted by pair of units."""

    labels: NDArray[Any]
    other_labels: NDArray[Any]
    wins: NDArray[np.float64]
    sizes: NDArray[np.float64]
    other_sizes: NDArray[np.float64]

    @classmethod
    def of(cls, values: Numbers, units: Numbers, member: Numbers) -> _Pairs:
        numbers, unit_array, is_member = _as_numbers(values, units), np.asarray(units), np.asarray(member)
        require(
            is_member.shape == numbers.shape and bool(np.isin(is_member, (0, 1)).all()),
            f"member holds {is_member.size} entries for {numbers.size} values, or others than 0 and 1. "
            "Give 1 for an item of the forget set and 0 for one never trained on",
        )
        if np.isnan(numbers).any():
            raise NotMeasured(f"{int(np.isnan(numbers).sum())} of {len(numbers)} scores are NaN")
        inside = is_member.astype(bool)
        labels, codes = _as_units(unit_array[inside], " of members")
        other_labels, other_codes = _as_units(unit_array[~inside], " of non-members")
        return cls(
            labels=labels,
            other_labels=other_labels,
            wins=_count_wins(numbers[inside], codes, numbers[~inside], other_codes),
            sizes=np.bincount(codes).astype(np.float64),
            other_sizes=np.bincount(other_codes).astype(np.float64),
        )

    @property
    def n_units(self) -> int:
        return min(len(self.labels), len(self.other_labels))

    @property
    def auc(self) -> float:
        return float(self.wins.sum() / (self.sizes.sum() * self.other_sizes.sum()))

    @property
    def is_extreme(self) -> bool:
        # Wins are halves, so these comparisons are exact.
        total = self.wins.sum()
        return bool(total == 0 or total == self.sizes.sum() * self.other_sizes.sum())


def _count_wins(
    members: NDArray[np.float64],
    codes: NDArray[np.intp],
    others: NDArray[np.float64],
    other_codes: NDArray[np.intp],
) -> NDArray[np.float64]:
    """(member units, non-member units): pairs that the member wins, a tie counted 1/2."""
    columns = []
    for unit in range(int(other_codes.max()) + 1):
        ordered = np.sort(others[other_codes == unit])
        won = np.searchsorted(ordered, members, "left") + np.searchsorted(ordered, members, "right")
        columns.append(np.bincount(codes, weights=won / 2))
    return np.stack(columns, axis=1)


def _means(sample: _Sample, resamples: int, stream: _Stream) -> NDArray[np.float64]:
    """(resamples,)"""
    rows = max(1, _CHUNK // sample.n_units)
    return np.concatenate(
        [
            (counts @ sample.sums) / (counts @ sample.sizes)
            for counts in _counts(sample.n_units, resamples, stream, rows)
        ]
    )


def _aucs(pairs: _Pairs, resamples: int, stream: _Stream, other_stream: _Stream) -> NDArray[np.float64]:
    """(resamples,)"""
    n_units, n_others = pairs.wins.shape
    # Chunks of equal numbers of resamples on both sides.
    rows = max(1, _CHUNK // max(n_units, n_others))
    found = []
    for counts, other_counts in zip(
        _counts(n_units, resamples, stream, rows),
        _counts(n_others, resamples, other_stream, rows),
        strict=True,
    ):
        won = ((counts @ pairs.wins) * other_counts).sum(axis=1)
        found.append(won / ((counts @ pairs.sizes) * (other_counts @ pairs.other_sizes)))
    return np.concatenate(found)


def _counts(n_units: int, resamples: int, stream: _Stream, rows: int) -> Iterator[NDArray[np.float64]]:
    """How often each unit is drawn in each resample: matrices (at most `rows` resamples, n_units), `resamples`
    rows in all.
    """
    if resamples <= rows and resamples * n_units <= _KEPT:
        yield _kept_counts(n_units, resamples, stream)
        return
    generator = np.random.default_rng(stream)
    for start in range(0, resamples, rows):
        yield _draw(n_units, min(rows, resamples - start), generator)


@lru_cache(maxsize=8)
def _kept_counts(n_units: int, resamples: int, stream: _Stream) -> NDArray[np.float64]:
    """The same draws serve every judgement about equally many units; making them is most of an interval's cost."""
    counts = _draw(n_units, resamples, np.random.default_rng(stream))
    counts.flags.writeable = False
    return counts


def _draw(n_units: int, resamples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """(resamples, n_units)"""
    drawn = generator.integers(0, n_units, (resamples, n_units))
    drawn += np.arange(resamples)[:, None] * n_units
    drawn_in_all = np.bincount(drawn.ravel(), minlength=resamples * n_units)
    return drawn_in_all.reshape(resamples, n_units).astype(np.float64)


def _own_bounds(sample: _Sample, means: NDArray[np.float64], level: float, is_rate: bool) -> Bounds:
    """Bounds of one mean from its resamples, with the exact bounds at and near 0 and 1."""
    if not (is_rate and sample.is_rate):
        return _percentiles(means, level, sample.n_units)
    return _guarded(sample.mean, sample.is_extreme, means, level, sample.n_units)


def _own_auc_bounds(pairs: _Pairs, aucs: NDArray[np.float64], level: float) -> Bounds:
    return _guarded(pairs.auc, pairs.is_extreme, aucs, level, pairs.n_units)


def _guarded(value: float, is_extreme: bool, resampled: NDArray[np.float64], level: float, n_units: int) -> Bounds:
    if is_extreme:
        return exact_binomial_bounds(round(value) * n_units, n_units, level)
    lower, upper = _percentiles(resampled, level, n_units)
    upper_at_none, lower_at_all = (
        exact_binomial_bounds(0, n_units, level)[1],
        exact_binomial_bounds(n_units, n_units, level)[0],
    )
    return min(lower, lower_at_all), max(upper, upper_at_none)


def _percentiles(resampled: NDArray[np.float64], level: float, n_units: int) -> Bounds:
    """The expanded percentiles, rounded outwards to a resample."""
    widened = float(ndtr(-np.sqrt(n_units / (n_units - 1)) * stdtrit(n_units - 1, 1 - level)))
    lower = np.quantile(resampled, widened, method="lower")
    return float(lower), float(np.quantile(resampled, 1 - widened, method="higher"))


def _mover(a: float, bounds_a: Bounds, b: float, bounds_b: Bounds) -> Bounds:
    below = np.hypot(a - bounds_a[0], bounds_b[1] - b)
    above = np.hypot(bounds_a[1] - a, b - bounds_b[0])
    return float(a - b - below), float(a - b + above)


def _as_numbers(values: Numbers, units: Numbers) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(units) != len(numbers):
        raise BadInput(f"values of shape {numbers.shape} and {len(units)} units do not match. Give one unit a value")
    return numbers


def _as_units(units: Numbers, whose: str) -> tuple[NDArray[Any], NDArray[np.intp]]:
    labels, codes = np.unique(np.asarray(units), return_inverse=True)
    if len(labels) < _MIN_UNITS:
        raise NotMeasured(f"an interval needs at least {_MIN_UNITS} units{whose}, has {len(labels)}")
    return labels, codes


def _check_paired(labels_a: NDArray[Any], labels_b: NDArray[Any]) -> None:
    if not np.array_equal(labels_a, labels_b):
        differing = len(np.setxor1d(labels_a, labels_b))
        raise BadInput(
            f"paired sides have different units ({differing} occur on one side only). "
            "Use paired=False for different people or documents"
        )


def _check_level(level: float) -> None:
    require(
        0 < level < 0.5,
        f"a bound at level {level} is not usable. Use a chance of error between 0 and 0.5, such as 0.05",
    )


def _check_resampling(level: float, resamples: int) -> None:
    _check_level(level)
    require(
        resamples * level >= 1,
        f"{resamples} resamples have none beyond level {level:.2g}. Use at least {int(np.ceil(1 / level))}",
    )
