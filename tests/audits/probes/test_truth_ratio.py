"""Wrong against right: by hand, on a model that knows nothing, and Jensen's inequality."""

from __future__ import annotations

import math

import numpy as np
import pytest

from letheon.audits.asked import AskedSets
from letheon.audits.probes.truth_ratio import TruthRatio, as_forgotten, as_known, log_truth_ratio
from letheon.errors import NotMeasured
from tests.audits.fakes import ScriptedScorer, asked, scorer_of, sets, uniform_model
from tests.toys import llama, random_examples

PROBE = TruthRatio()
ITEMS = tuple(f"{line}/answer {number}" for line in ("7", "8/paraphrase 1") for number in range(3))


def offered(*roles: str) -> AskedSets:
    """Two questions with two wrong answers each, for every role."""
    made = []
    for role in roles:
        one = asked(f"{role}_answers", random_examples(6))
        made.append(type(one)(**{**vars(one), "items": tuple(f"{role}/{item}" for item in ITEMS)}))
    return sets(*made)


def scripted(*roles: str) -> ScriptedScorer:
    return ScriptedScorer(log_probs={f"{role}_answers": [[-1.0, -3.0], [-4.0], [-3.0, -3.0]] * 2 for role in roles})


def test_both_ratios_by_hand() -> None:
    right, wrong = math.exp(-2), (math.exp(-4), math.exp(-3))
    geometric, arithmetic = math.sqrt(wrong[0] * wrong[1]) / right, (wrong[0] + wrong[1]) / 2 / right
    some, scorer = offered("forget", "retain", "general"), scripted("forget", "retain", "general")
    found = {column: PROBE.score(column, some, scorer) for column in PROBE.columns}
    for name, ratio in (("geometric", geometric), ("arithmetic", arithmetic)):
        assert found[f"forget_truth_ratio_{name}"].values == pytest.approx([min(ratio, 1 / ratio)] * 2)
        for role in ("retain", "general"):
            assert found[f"{role}_truth_ratio_{name}"].values == pytest.approx([max(0, 1 - ratio)] * 2)
    assert found["forget_truth_ratio_geometric"].items == ["forget/7", "forget/8/paraphrase 1"]
    assert found["retain_truth_ratio_geometric"].items[0].startswith("retain/")
    control = PROBE.score("forget_truth_ratio_geometric", offered("holdout"), scripted("holdout"), role="holdout")
    assert control.items[0].startswith("holdout/")


def test_a_uniform_model_finds_all_answers_alike() -> None:
    some, scorer = offered("forget", "retain"), scorer_of(uniform_model())
    for name in ("geometric", "arithmetic"):
        assert PROBE.score(f"forget_truth_ratio_{name}", some, scorer).values == pytest.approx([1.0] * 2)
        assert PROBE.score(f"retain_truth_ratio_{name}", some, scorer).values == pytest.approx([0.0] * 2, abs=1e-6)


def test_the_geometric_ratio_is_never_above_the_arithmetic_one() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        right, *wrong = -generator.exponential(5, 1 + int(generator.integers(1, 6)))
        pair = [log_truth_ratio(right, wrong, is_geometric=kind) for kind in (True, False)]
        assert pair[0] <= pair[1] + 1e-12
    assert log_truth_ratio(-2.0, [-3.0], is_geometric=True) == pytest.approx(-1.0)
    assert log_truth_ratio(-2.0, [-3.0], is_geometric=False) == pytest.approx(-1.0)


def test_aggregates_stay_numbers_where_the_ratio_does_not() -> None:
    """A right answer that became impossible, and one that is the only one."""
    assert as_forgotten(0.0) == 1.0 == as_known(-2000.0)
    assert as_forgotten(2000.0) == as_forgotten(-2000.0) == as_known(2000.0) == as_known(0.0) == 0.0
    assert as_forgotten(math.log(4)) == as_forgotten(math.log(0.25)) == pytest.approx(0.25)
    assert as_known(math.log(0.25)) == pytest.approx(0.75)
    assert math.isfinite(log_truth_ratio(-1e5, [-1.0, -2.0], is_geometric=False))


def test_data_without_wrong_answers_are_not_measured() -> None:
    for column in PROBE.columns:
        of = column.split("_")[0]
        with pytest.raises(NotMeasured, match=f"no question of the {of} set has wrong answers"):
            PROBE.score(column, sets(), scorer_of(llama()))
    with pytest.raises(NotMeasured, match="of the lookalike set"):
        PROBE.score("forget_truth_ratio_geometric", offered("forget"), scorer_of(llama()), role="lookalike")
