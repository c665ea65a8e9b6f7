"""Leakage over many samples: the chance that at least one of k answers gives the fact away.

    exact     1 - (1 - p)^k                    p: the model's own probability of the whole answer; no sampling noise
    sampled   1 - C(n - c, k) / C(n, k)        c of n samples leaked; unbiased for the exact one
Greedy decoding sees none of it: an answer of probability 0.01 is never the first choice, and 128 samples give it away
with a chance of 0.72. Where nothing leaked in n samples, p may still be 1 - level^(1/n): `exact_binomial_bounds`.

Source: leak@k, arXiv:2511.04934; Chen et al. 2021, arXiv:2107.03374 (the unbiased form); Hoeffding 1963.
Checked against: enumeration of all draws for n up to 8, fractions, both ends, p too small for 1 - p.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from letheon.errors import NotMeasured, require


def exact_leak(log_prob: Any, k: int) -> NDArray[np.float64]:
    """1 - (1 - p)^k for p = exp(log_prob), to full relative precision from p = 1 down to the smallest float.

    Args:
        log_prob: log-probability of the whole answer with its end, nats, <= 0; a number or an array.
        k: samples, >= 1.
    Raises:
        NotMeasured: NaN. BadInput: a log-probability above 0, or k below 1.

    >>> float(exact_leak(math.log(0.5), 2))
    0.75
    """
    _check_samples(k)
    values = np.asarray(log_prob, dtype=np.float64)
    if np.isnan(values).any():
        raise NotMeasured("a log-probability is NaN")
    require(bool((values <= 0).all()), "a log-probability above 0 does not exist. Give the sum over an answer's tokens")
    # log(1 - p): the first form is exact where p is near 1, the second where it is small.
    near_one = values > -math.log(2)
    with np.errstate(divide="ignore"):
        none = np.where(
            near_one, np.log(-np.expm1(np.where(near_one, values, -1.0))), np.log1p(-np.exp(np.minimum(values, -0.5)))
        )
    found: NDArray[np.float64] = np.asarray(-np.expm1(k * none))
    return found


def sampled_leak(hits: int, n: int, k: int) -> float:
    """Unbiased 1 - C(n - hits, k) / C(n, k): the chance that k of the n samples, drawn without return, hold a leak.

    >>> sampled_leak(1, 4, 2)
    0.5
    """
    require(n >= 1 and 0 <= hits <= n, f"{hits} leaks in {n} samples cannot be. Give 0 <= hits <= n with n from 1")
    _check_samples(k)
    require(k <= n, f"leak@{k} cannot be told from {n} samples. Draw at least {k}")
    if n - hits < k:
        return 1.0
    return float(1 - math.prod((n - hits - i) / (n - i) for i in range(k)))


def hoeffding_upper(mean: float, n: int, level: float) -> float:
    """An upper bound of the mean of n independent values in [0, 1]; wrong with at most the chance `level`.

    For shares of hits `numerics.intervals.exact_binomial_bounds` is tighter; this one holds for ROUGE and the like.
    """
    require(n >= 1 and 0 <= mean <= 1, f"a mean of {mean} over {n} values cannot be. Give a mean in [0, 1], n from 1")
    require(0 < level < 1, f"a bound at level {level} is not usable. Use a chance of error such as 0.05")
    return min(1.0, mean + math.sqrt(math.log(1 / level) / (2 * n)))


def _check_samples(k: int) -> None:
    require(k >= 1, f"leak@{k} does not exist. Give k of 1 or more")
