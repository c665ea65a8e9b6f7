"""TOFU's aggregates, which go under one name and are several numbers.

Per item, with L = mean loss per labelled token (the end of text among them) and P = exp(-L):
    R_g = exp(L(right) - mean_i L(wrong_i))           geometric: the leaderboard's and open-unlearning's
    R_a = mean_i P(wrong_i) / P(right)                arithmetic: the paper's formula; R_g <= R_a (Jensen)
    wrong over right; "right" is the paraphrased answer, for real authors and world facts the plain one.
Over a set:
    forget          mean min(R, 1 / R)
    any other       mean max(0, 1 - R)
    prob_mean       mean P(right) / (P(right) + P_wrong) = mean 1 / (1 + R_g), P_wrong the geometric mean; 1 / 2 where
                    right and wrong are equally likely. open-unlearning's, which adds 1e-10 below the line
    utility         harmonic mean of {probability, ROUGE, truth ratio} x {retain, real authors, world facts}; or 0
    forget quality  p of the two-sided two-sample Kolmogorov-Smirnov test between the truth ratios of the model and of a
                    retrained one. It cannot fall below 2 / C(n + m, n), where the samples do not overlap at all; p of
                    samples of unlike size must not be compared.

Source: TOFU arXiv:2401.06121 and its code.
Checked against: scipy, a count over all step heights, the floor in closed form, R and 1 / R alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from letheon.errors import BadInput, NotMeasured, require

Numbers = NDArray[np.float64]


def log_ratios(right: Numbers, wrong: Sequence[Numbers]) -> tuple[Numbers, Numbers]:
    """(log R_g, log R_a), each (items,), in nats: a collapsed model's ratios pass the largest float, their logs do not.

    Args:
        right: (items,) mean log-probability a token of the right answer, nats.
        wrong: for each item, (answers,) the same of its wrong answers.
    """
    require(
        len(right) == len(wrong) and all(len(each) for each in wrong),
        "every item needs wrong answers for a truth ratio",
    )
    geometric = np.array([np.mean(each) - one for one, each in zip(right, wrong, strict=True)])
    arithmetic = np.array(
        [np.logaddexp.reduce(each) - np.log(len(each)) - one for one, each in zip(right, wrong, strict=True)]
    )
    return geometric, arithmetic


def forget_truth_ratio(log_ratio: Numbers) -> Numbers:
    """(items,) min(R, 1 / R), in [0, 1]: 1 where right and wrong are equally likely."""
    return np.exp(-np.abs(log_ratio))


def utility_truth_ratio(log_ratio: Numbers) -> Numbers:
    """(items,) max(0, 1 - R), in [0, 1]: 1 where the wrong answers have no probability."""
    return -np.expm1(np.minimum(log_ratio, 0.0))


def right_share(log_ratio: Numbers) -> Numbers:
    """(items,) 1 / (1 + R), in [0, 1]: what the right answer has of its own probability and the wrong ones' mean.

    >>> right_share(np.array([0.0, 800.0, -800.0])).tolist()
    [0.5, 0.0, 1.0]
    """
    return np.exp(-np.logaddexp(0.0, log_ratio))


def normalised_probability(right: Numbers, wrong: Sequence[Numbers]) -> Numbers:
    """(items,) P(right) / (P(right) + sum_i P(wrong_i)), in [0, 1], of mean log-probabilities a token."""
    return np.array(
        [np.exp(one - np.logaddexp(one, np.logaddexp.reduce(each))) for one, each in zip(right, wrong, strict=True)]
    )


def harmonic_mean(values: Sequence[float]) -> float:
    """n / sum(1 / value), 0 if any is 0. Raises BadInput: none, or one below 0.

    >>> harmonic_mean([0.5, 0.5]), harmonic_mean([1.0, 0.0])
    (0.5, 0.0)
    """
    require(len(values) > 0 and min(values) >= 0, f"a harmonic mean needs values of 0 or more, got {list(values)}")
    return 0.0 if min(values) == 0 else len(values) / math.fsum(1 / value for value in values)


@dataclass(frozen=True)
class ForgetQuality:
    """Two samples of truth ratios compared."""

    p: float
    """In [0, 1]; 0.0 where it is too small for a float: see `log10_p`."""
    log10_p: float
    statistic: float
    """D, the greatest distance of the two distribution functions, in [0, 1]."""
    n: tuple[int, int]
    """Items of the model, of the reference."""
    floor_log10: float
    """log10 of the least p that these sample sizes allow, 2 / C(n + m, n), at D = 1."""


def forget_quality(ratio: Numbers, reference: Numbers, *, fewest: int) -> ForgetQuality:
    """Compare the forget set's truth ratios, or any monotone map of both (their logs), of a model and a retrained one.

    Raises:
        NotMeasured: fewer than `fewest` items, a ratio that is no number, a p below the least float.
        BadInput: samples of unlike size: they are not of the same items.
    """
    from scipy.stats import ks_2samp

    if len(ratio) != len(reference):
        raise BadInput(
            f"forget quality compares the same items, and there are {len(ratio)} of the model and {len(reference)} of "
            "the reference. Measure both on the same split with the same limit"
        )
    if len(ratio) < fewest:
        raise NotMeasured(f"{len(ratio)} items are too few for a p-value; {fewest} are needed")
    if not (np.isfinite(ratio).all() and np.isfinite(reference).all()):
        raise NotMeasured("a truth ratio is NaN or infinite")
    found = ks_2samp(ratio, reference, alternative="two-sided", method="auto")
    p, floor = float(found.pvalue), floor_log10(len(ratio), len(reference))
    statistic = float(found.statistic)
    if p == 0 and statistic < 1:
        raise NotMeasured(f"p at D = {statistic:.4f} with {len(ratio)} items is below the least float")
    log10_p = math.log10(p) if p > 0 else floor
    return ForgetQuality(p, log10_p, statistic, (len(ratio), len(reference)), floor)


def floor_log10(n: int, m: int) -> float:
    """log10(2 / C(n + m, n)): both orders in which no two values of the samples interleave.

    >>> round(floor_log10(40, 40), 2)
    -22.73
    """
    count = math.lgamma(n + m + 1) - math.lgamma(n + 1) - math.lgamma(m + 1)
    return (math.log(2) - count) / math.log(10)
