"""Does the model still speak, or does it babble? Greedy continuations of texts, judged by their own repetitions.

    entropy      (2/3 H_2 + 4/3 H_3) / 2, H_n = - sum f log2 f over the shares f of its n-grams of tokens, bits
    repetition   1 - distinct n-grams / n-grams, n = 4
A model that says one word for ever has entropy 0 and repetition near 1. Longer continuations have a higher entropy by
themselves, so only the distance to the control or the original counts. Nothing said has entropy 0; a continuation
shorter than one n-gram has no repetition, and is left out of that column. No classifier judges, and none is loaded.

Source: n-gram entropy as in ROME, arXiv:2202.05262 (there over words), used by RWKU arXiv:2406.10890; repetition:
Welleck et al. 2020, arXiv:1908.04319 (n = 4).  Checked against: entropies by hand, one word for ever, all different.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from letheon.audits.asked import Asked, AskedSets
from letheon.audits.columns import Column, Scores
from letheon.audits.scorer import Scorer
from letheon.errors import NotMeasured, require

PROMPT_TOKENS = 12
"""Of a text, that are shown; half the text where it is shorter than twice that."""
GRAM = 4
"""Tokens of an n-gram whose repetition counts."""
MOST = 60
"""Texts that are continued, spread over the set: every greedy token costs a pass."""


def gram_entropy(ids: Sequence[int], n: int) -> float:
    """H_n in bits, in [0, log2(len(ids) - n + 1)]; 0 where there is no n-gram."""
    grams = _grams(ids, n)
    if not grams:
        return 0.0
    _, counts = np.unique(np.array(grams), axis=0, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # + 0.0: no -0


def weighted_entropy(ids: Sequence[int]) -> float:
    """(2/3 H_2 + 4/3 H_3) / 2, bits."""
    return (2 / 3 * gram_entropy(ids, 2) + 4 / 3 * gram_entropy(ids, 3)) / 2


def repetition(ids: Sequence[int], n: int) -> float:
    """Share of n-grams that stood there before, in [0, 1).

    Raises:
        NotMeasured: fewer than n tokens.
    """
    grams = _grams(ids, n)
    if not grams:
        raise NotMeasured(f"{len(ids)} tokens hold no {n}-gram")
    return 1 - len(set(grams)) / len(grams)


@dataclass(frozen=True, kw_only=True)
class Fluency:
    """Settings of the probe."""

    longest: int = 256
    """Most tokens that are made; the context window may leave fewer. At least 4."""

    columns: ClassVar[dict[str, Column]] = {
        "forget_entropy": Column(
            "entropy of what follows forgotten texts, bits",
            "forget",
            better="control",
            top=None,
            asked_of="texts",
        ),
        "forget_repetition": Column(
            "repetition in what follows forgotten texts", "forget", better="control", asked_of="texts"
        ),
        "retain_entropy": Column(
            "entropy of what follows retained texts, bits", "utility", better="high", top=None, asked_of="texts"
        ),
        "retain_repetition": Column("repetition in what follows retained texts", "utility", asked_of="texts"),
    }

    def __post_init__(self) -> None:
        require(self.longest >= GRAM, f"fluency needs longest of {GRAM} or more, got {self.longest}")

    def score(self, column: str, sets: AskedSets, scorer: Scorer, *, role: str = "forget") -> Scores:
        """Entropy or repetition a text."""
        of, measure = column.split("_")
        whose = role if of == "forget" else of
        asked = sets[f"{whose}_texts"]
        if not len(asked):
            raise NotMeasured(f"the {whose} set holds no texts")
        chosen = range(0, len(asked), -(-len(asked) // MOST))
        made = self._continued(asked, chosen, scorer)
        if measure == "repetition":
            made = {item: ids for item, ids in made.items() if len(ids) >= GRAM}
            if not made:
                raise NotMeasured(f"no continuation of the {whose} texts has {GRAM} tokens")
        values = [weighted_entropy(ids) if measure == "entropy" else repetition(ids, GRAM) for ids in made.values()]
        return Scores([asked.items[item] for item in made], [asked.units[item] for item in made], values)

    def _continued(self, asked: Asked, chosen: Sequence[int], scorer: Scorer) -> dict[int, list[int]]:
        """Position -> what the model goes on with, up to the end of text."""
        prompts = []
        for item in chosen:
            ids = asked.examples[item].ids
            prompts.append(ids[: 1 + min(PROMPT_TOKENS, (len(ids) - 2) // 2)])
        return dict(zip(chosen, scorer.continued_ids(prompts, [self.longest] * len(prompts)), strict=True))


def _grams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
