"""What one question counts, from what lm-evaluation-harness says about it: the numbers of letheon's own benchmarks.

    mean log p = (log p of the continuation, less that of the space before it) / labelled tokens
and from it, or from the greedy answer, by the same functions as `letheon benchmark`:
    tofu      probability (or probability_normalised), rougeL_recall.stem, truth_ratio_geometric,
              truth_ratio_arithmetic, prob_mean.truth_ratio_geometric
    muse      rougeL_f1.nostem, rougeL_f1.stem.whole_reference
    people    accuracy and probability; of a choice: choice
Each is a mean over questions. What is none (model utility, forget quality) or needs single tokens (PrivLeak) cannot be
said there.

Source: this project.  Checked against: `letheon benchmark` on the same model, every number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from letheon.audits.benchmarks.muse import cut_answer
from letheon.audits.choices import credits
from letheon.audits.truth_ratio import (
    forget_truth_ratio,
    log_ratios,
    normalised_probability,
    right_share,
    utility_truth_ratio,
)
from letheon.errors import NotMeasured
from letheon.numerics.scores import rouge_l

Doc = Mapping[str, Any]


def item_scores(doc: Doc, results: Sequence[Any]) -> dict[str, float]:
    """Metric -> number of one question.

    Args:
        doc: a row of a task's file.
        results: (log p of it in nats, whether it is the arg-max) of each continuation, of the space where there is
            some, and at the end the greedy answer where one is asked for.
    Raises:
        NotMeasured: a log-probability that is no number.
    """
    count = len(doc["continuations"])
    said = str(results[-1]) if doc["room"] else ""
    before = float(results[count][0]) if doc["space"] else 0.0
    sums = np.array([float(log_p) for log_p, _ in results[:count]])
    if not np.isfinite([*sums, before]).all():
        raise NotMeasured(f"the model's log-probabilities on {doc['item']} are not finite")
    log_probs = (sums - before) / np.array(doc["tokens"], dtype=np.float64)
    is_exact = count == 1 and bool(results[0][1])
    return MEASURES[doc["measure"]](doc, log_probs, is_exact, said)


def _tofu(doc: Doc, log_probs: Any, is_exact: bool, said: str) -> dict[str, float]:
    name = "probability_normalised" if doc["measure"] == "tofu.general" else "probability"
    answer, right, wrong = log_probs[:1], log_probs[1:2], [log_probs[2:]]
    probability = np.exp(answer) if name == "probability" else normalised_probability(answer, wrong)
    truth = forget_truth_ratio if doc["measure"] == "tofu.forget" else utility_truth_ratio
    geometric, arithmetic = log_ratios(right, wrong)
    return {
        name: float(probability[0]),
        "rougeL_recall.stem": rouge_l(doc["answer"], said, use_stemmer=True).recall,
        "truth_ratio_geometric": float(truth(geometric)[0]),
        "truth_ratio_arithmetic": float(truth(arithmetic)[0]),
        "prob_mean.truth_ratio_geometric": float(right_share(geometric)[0]),
    }


def _muse(doc: Doc, log_probs: Any, is_exact: bool, said: str) -> dict[str, float]:
    spoken = said if doc["measure"] == "muse.verbatim" else cut_answer(said)
    return {
        "rougeL_f1.nostem": rouge_l(doc["answer"], spoken).f,
        "rougeL_f1.stem.whole_reference": rouge_l(doc["whole"], spoken, use_stemmer=True).f,
    }


def _people(doc: Doc, log_probs: Any, is_exact: bool, said: str) -> dict[str, float]:
    probability = {"probability": float(np.exp(log_probs[0]))}
    # Space before the answer would be among what has to be the arg-max.
    return probability if doc["space"] else {"accuracy": float(is_exact), **probability}


def _choice(doc: Doc, log_probs: Any, is_exact: bool, said: str) -> dict[str, float]:
    return {"choice": float(credits(log_probs, 0))}


MEASURES: dict[str, Callable[[Doc, Any, bool, str], dict[str, float]]] = {
    "tofu.forget": _tofu,
    "tofu.retain": _tofu,
    "tofu.general": _tofu,
    "muse.verbatim": _muse,
    "muse.answers": _muse,
    "people.answers": _people,
    "people.choice": _choice,
}
"""What a task's rows say they are -> their numbers."""
