"""How likely is the whole answer, and how likely is it that one of k sampled answers gives it away?

    p = exp(sum log p(token)), the end of text among the tokens: the chance that one sample is the very answer
    leak@k = 1 - (1 - p)^k
Exact, without sampling: it tells 1e-4 from 0, where greedy decoding and a few samples see nothing. Other spellings of
the answer are not counted, so it is a lower bound of what leaks. Samples are drawn from the model as it is
(temperature 1). For p itself see leak@1.

Source: leak@k, arXiv:2511.04934.  Checked against: enumeration, sampling within three standard errors, a uniform model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from letheon.audits.asked import AskedSets
from letheon.audits.columns import Column, Scores
from letheon.audits.scorer import Scorer
from letheon.errors import NotMeasured
from letheon.numerics.leaks import exact_leak

KS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Numbers of samples: those of the paper."""


@dataclass(frozen=True, kw_only=True)
class SequenceProbability:
    """No settings."""

    columns: ClassVar[dict[str, Column]] = {
        f"forget_leak_at_{k}": Column(f"chance that one of {k} sampled answers is the forgotten one", "forget")
        for k in KS
    }

    def score(self, column: str, sets: AskedSets, scorer: Scorer, *, role: str = "forget") -> Scores:
        """leak@k of each question in its trained wordings."""
        asked = sets[f"{role}_questions"]
        if not len(asked):
            raise NotMeasured(f"the {role} set holds no questions")
        # Rounding may leave a certain answer a hair above 0.
        log_probs = np.minimum(scorer.scores(asked).log_probs("sum"), 0.0)
        leaks = exact_leak(log_probs, int(column.rsplit("_", 1)[1]))
        return Scores(asked.items, asked.units, leaks.tolist())
