"""How familiar a text is to a model, by what one pass finds, and what tells members from strangers.

Every score rises with familiarity. L = minus the mean token log-probability, nats a token.
    zlib        -L / bytes of zlib(text)                       what is plain for any compressor counts less
    lower_case  -L / L(text in lower case)                     near -1 for a text that is not known by its letters
    reference   L_reference - L                                against another model's pass over the same tokens
    min_k_plus  mean of the lowest max(1, floor(share * n)) of z_t = (log p(y_t) - mu_t) / sigma_t,
                sigma_t^2 at least 1e-6; z_t is 0 where numerator is nothing to float32
and from the scores of members and strangers
    tpr_at_fpr  share of members above a threshold that at most floor(fpr * strangers) strangers are above
    balanced    max over thresholds of 1 - (FPR + 1 - TPR) / 2

Source: Carlini et al. 2021, arXiv:2012.07805 (zlib, lower case, reference); Min-K%++, arXiv:2404.02936; MUSE
arXiv:2407.06460.  Checked against: slow float64 loops over the vocabulary, every threshold tried, uniform models.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from letheon.errors import BadInput, NotMeasured, require
from letheon.numerics.scores import min_k

Numbers = Sequence[Any] | NDArray[Any]
"""A list or a one-axis array."""
MIN_VARIANCE = 1e-6
"""Of log p under p, nats squared: below it Min-K++ would divide by nothing."""
RESOLUTION = 2e-6
"""Nats: a log-probability in float32 is known no better."""


def zlib_familiarity(mean_log_prob: float, text: str) -> float:
    """Mean log-probability over the bytes that zlib needs for the text (at least 8: an empty text has a header)."""
    return mean_log_prob / len(zlib.compress(text.encode()))


def lower_case_familiarity(mean_log_prob: float, lower_case_mean_log_prob: float) -> float:
    """-L / L(lower case), at most 0.

    Raises:
        NotMeasured: a text in lower case that is certain, so that it would be divided by 0.
    """
    if lower_case_mean_log_prob == 0:
        raise NotMeasured("a text in lower case has probability 1, and the ratio to it does not exist")
    return -mean_log_prob / lower_case_mean_log_prob


def reference_familiarity(log_probs: Numbers, reference_log_probs: Numbers) -> float:
    """Mean log-probability above the reference's, nats a token. Both passes must be over the same tokens.

    No probe gives it: a probe sees one model. Give it the `token_log_probs` of two `score_examples`.

    Raises:
        BadInput: passes over different numbers of tokens. NotMeasured: no token.
    """
    own, other = np.asarray(log_probs, dtype=np.float64), np.asarray(reference_log_probs, dtype=np.float64)
    if own.shape != other.shape:
        raise BadInput(
            f"{own.size} and {other.size} log-probabilities are not of the same tokens. Score one text with one "
            "tokenizer by both models"
        )
    if not own.size:
        raise NotMeasured("there is no token score")
    return float((own - other).mean())


def min_k_plus(log_probs: Numbers, moments: Any, share: float) -> float:
    """Mean of the lowest share of standardized token log-probabilities, in standard deviations.

    Args:
        log_probs: (n,) one for each scored token, nats.
        moments: (2, n) mean and standard deviation of log p(v) under p in each place, nats.
        share: in (0, 1].
    Raises:
        NotMeasured: no token, or a number that is NaN. BadInput: a share outside (0, 1].
    """
    values = np.asarray(log_probs, dtype=np.float64)
    mean, deviation = np.asarray(moments, dtype=np.float64)
    above = values - mean
    above[np.abs(above) <= RESOLUTION] = 0.0
    return min_k(above / np.sqrt(np.maximum(deviation**2, MIN_VARIANCE)), share)


def tpr_at_fpr(member_scores: Numbers, stranger_scores: Numbers, fpr: float) -> float:
    """Share of members above the lowest threshold that lets at most floor(fpr * strangers) strangers pass.

    The threshold is a stranger's own score, which has to be exceeded: ties never count as found. With fewer than
    1 / fpr strangers none may pass.

    >>> tpr_at_fpr([3.0, 2.0, 0.5], [2.0, 1.0, 0.0], 0.05)
    0.3333333333333333
    """
    require(0 <= fpr < 1, f"a false-positive rate of {fpr} is not usable. Give one in [0, 1), such as 0.01")
    members, strangers = _checked(member_scores, "member"), np.sort(_checked(stranger_scores, "stranger"))[::-1]
    return float((members > strangers[int(fpr * len(strangers) + 1e-9)]).mean())


def balanced_accuracy(member_scores: Numbers, stranger_scores: Numbers) -> float:
    """The best 1 - (FPR + 1 - TPR) / 2 of any threshold, in [0.5, 1]. Chosen on the scores it judges: it flatters."""
    members, strangers = np.sort(_checked(member_scores, "member")), np.sort(_checked(stranger_scores, "stranger"))
    thresholds = np.concatenate([members, strangers])
    true = 1 - np.searchsorted(members, thresholds, "right") / len(members)
    false = 1 - np.searchsorted(strangers, thresholds, "right") / len(strangers)
    return float(np.max(1 - (false + 1 - true) / 2, initial=0.5))


def auc_reading(lower: float, upper: float) -> str:
    """What an AUC's interval says, in words. An AUC near 0 is no success: it gives membership away as 1 does.

    >>> auc_reading(0.0, 0.2)
    'over-unlearned: what was forgotten stands out as less familiar than what was never seen'
    """
    require(0 <= lower <= upper <= 1, f"{lower} to {upper} is no interval of an AUC. Give bounds in [0, 1]")
    if lower > 0.5:
        return "memorised: what was forgotten is more familiar than what was never seen"
    if upper < 0.5:
        return "over-unlearned: what was forgotten stands out as less familiar than what was never seen"
    return "not told apart: 0.5 lies in the interval"


def _checked(scores: Numbers, whose: str) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if not values.size:
        raise NotMeasured(f"there is no {whose} score")
    if np.isnan(values).any():
        raise NotMeasured(f"{int(np.isnan(values).sum())} of {values.size} {whose} scores are NaN")
    return values
