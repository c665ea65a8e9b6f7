"""Scores of membership and of answers, each with its definition, because tools differ under one name.

    auc       P(a member is more familiar than a non-member) + ties/2: 1 when memorised, 0.5 at chance
    muse_auc  1 - auc: MUSE counts the pairs the other way, near 0 when memorised
    privleak  100 * (A - A_reference) / A_reference, in muse_auc: about -100 memorised, 0 as a retrained model
    min_k     mean of the lowest max(1, floor(share * n)) token log-probabilities: higher = more familiar
    rouge_l   longest common subsequence of words, as precision, recall and F

Source: MUSE arXiv:2407.06460 (muse_auc, privleak, min_k with share 0.4), Shi et al. 2024, arXiv:2310.16789
(Min-K), the rouge-score package (Lin 2004).
Checked against: counting all pairs, monotone maps, signs at memorised and retrained, equal and empty texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from letheon.errors import NotMeasured, require

Numbers = Sequence[Any] | NDArray[Any]
"""A list or a one-axis array."""


@dataclass(frozen=True)
class RougeL:
    """ROUGE-L of a candidate against a reference, each in [0, 1]."""

    precision: float
    """Share of the candidate's words in the common subsequence."""
    recall: float
    """Share of the reference's words in it: TOFU's choice."""
    f: float
    """Harmonic mean of both: MUSE's choice."""


def auc(member_scores: Numbers, non_member_scores: Numbers) -> float:
    """P(a member's score is above a non-member's) + ties/2, in [0, 1], for scores that rise with familiarity.

    Raises:
        NotMeasured: no members, no non-members, or a score that is NaN.

    >>> auc([2.0, 1.0], [1.0, 0.0])
    0.875
    """
    members, others = _as_scores(member_scores, "member"), _as_scores(non_member_scores, "non-member")
    others = np.sort(others)
    wins_and_half_ties = np.searchsorted(others, members, "left") + np.searchsorted(others, members, "right")
    # Whole numbers until the end, so that a tie of everything is 0.5 exactly.
    return int(wins_and_half_ties.sum()) / (2 * len(members) * len(others))


def privleak(muse_auc: float, muse_auc_reference: float) -> float:
    """PrivLeak in percent: about -100 memorised, 0 like the reference, well above 0 unlearned too far.

    Args:
        muse_auc: MUSE's A of the model, in [0, 1].
        muse_auc_reference: A of a model trained without the forget set. MUSE's own were 0.4772 (News) and
            0.5393 (Books).
    Raises:
        NotMeasured: a reference of 0, by which PrivLeak would divide.
        BadInput: an A outside [0, 1].

    >>> privleak(0.0, 0.5)
    -100.0
    """
    for value in (muse_auc, muse_auc_reference):
        require(0 <= value <= 1, f"an AUC of {value} does not exist. Give MUSE's A = 1 - auc, in [0, 1]")
    if muse_auc_reference == 0:
        raise NotMeasured(
            "PrivLeak divides by the reference's A, which is 0: the reference itself knows the forget set"
        )
    return 100 * (muse_auc - muse_auc_reference) / muse_auc_reference


def min_k(log_probs: Numbers, share: float) -> float:
    """Mean of the lowest max(1, floor(share * n)) log-probabilities, in nats. share = 1 gives minus the loss.

    Args:
        log_probs: one for each scored token, so without the first token of a text.
        share: in (0, 1]; 0.4 in MUSE, 0.2 in other tools.
    Raises:
        NotMeasured: no token, or a log-probability that is NaN.
        BadInput: a share outside (0, 1].
    """
    require(0 < share <= 1, f"min_k cannot take a share of {share}. Use a number above 0 and up to 1, such as 0.4")
    scores = _as_scores(log_probs, "token")
    # 0.29 * 100 is 28.999... in floating point and means 29.
    lowest = max(1, int(share * len(scores) + 1e-9))
    return float(np.partition(scores, lowest - 1)[:lowest].mean())


def rouge_l(reference: str, candidate: str, *, use_stemmer: bool = False) -> RougeL:
    """ROUGE-L as the rouge-score package has it: lower-cased, words of a-z and 0-9 only. An empty text scores 0.

    Args:
        reference: the true answer.
        candidate: what the model said.
        use_stemmer: Porter stemming of words over three letters. MUSE: False, TOFU: True.
    Raises:
        NotMeasured: a reference in which there is no such word (another script): 0 would mislead. The reason does not
            repeat the text.

    >>> rouge_l("the red house", "the house").recall
    0.6666666666666666
    """
    if reference.strip() and not _words(reference):
        raise NotMeasured(
            f"ROUGE-L reads the letters a-z and digits only, and a text of {len(reference)} characters has none"
        )
    if use_stemmer:
        score = _stemming_scorer().score(reference, candidate)["rougeL"]
        return RougeL(precision=float(score.precision), recall=float(score.recall), f=float(score.fmeasure))
    # Without stems the package is not needed; importing it takes a second, for the stemmer.
    true, given = _words(reference), _words(candidate)
    if not true or not given:
        return RougeL(0.0, 0.0, 0.0)
    common = _longest_common_subsequence(true, given)
    precision, recall = common / len(given), common / len(true)
    return RougeL(precision, recall, 2 * precision * recall / (precision + recall) if common else 0.0)


def _words(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length, row by row."""
    above = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for column, other in enumerate(second):
            row.append(above[column] + 1 if word == other else max(above[column + 1], row[column]))
        above = row
    return above[-1]


def _as_scores(scores: Numbers, what: str) -> NDArray[np.float64]:
    numbers = np.asarray(scores, dtype=np.float64)
    require(
        numbers.ndim == 1,
        f"{what} scores of shape {numbers.shape} are not a list. Give one number for each item",
    )
    if numbers.size == 0:
        raise NotMeasured(f"there is no {what} score")
    if np.isnan(numbers).any():
        raise NotMeasured(f"{int(np.isnan(numbers).sum())} of {numbers.size} {what} scores are NaN")
    return numbers


@cache
def _stemming_scorer() -> Any:
    # Imported here: it brings nltk, which takes a second.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
