"""Items to one number: by definition, and the same after a way through a file."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from letheon.audits.columns import Scores
from tests.audits.fakes import familiar, hits, rates


def test_a_mean_is_over_items_not_over_units() -> None:
    uneven = Scores(["a", "b", "c", "d"], ["u", "u", "u", "v"], [1.0, 1.0, 1.0, 0.0])
    assert uneven.aggregate("mean") == 0.75 and uneven.n_units == 2
    assert hits(3, 8, each=5).aggregate("mean") == pytest.approx(3 / 8)


def test_an_auc_is_the_share_of_pairs_in_which_the_member_is_more_familiar() -> None:
    members, strangers = [0.3, 0.9, 0.5], [0.5, 0.1, 0.7, 0.2]
    pairs = [(a > b) + (a == b) / 2 for a in members for b in strangers]
    assert familiar(members, strangers).aggregate("auc") == pytest.approx(sum(pairs) / 12)
    assert familiar([2.0] * 3, [1.0] * 4).aggregate("auc") == 1.0, "1 is memorised, everywhere"


def test_the_order_of_members_and_strangers_does_not_matter() -> None:
    straight = familiar([0.3, 0.9], [0.5, 0.1, 0.7])
    turned = Scores(
        *(list(reversed(part)) for part in (straight.items, straight.units, straight.values)), [0, 0, 0, 1, 1]
    )
    assert turned.aggregate("auc") == straight.aggregate("auc")


def test_a_perplexity_is_the_exponential_of_the_mean_loss_not_the_mean_of_exponentials() -> None:
    assert rates([1.0, 3.0]).aggregate("exp_mean") == pytest.approx(math.exp(2.0))


def test_what_a_file_keeps_is_what_every_number_is_made_from() -> None:
    """Eight digits, kept to the bit by JSON, for large and for small numbers alike; rounding twice is rounding once."""
    values = [*np.random.default_rng(0).normal(0, 3, 50).tolist(), 1 / 3, 2e-30 / 3, 2e30 / 3, -0.0, 1.0]
    scores = Scores([str(k) for k in range(55)], ["u"] * 55, values, [k % 2 for k in range(55)])
    kept = scores.rounded()
    assert (kept.items, kept.units, kept.member) == (scores.items, scores.units, scores.member)
    assert kept.values == pytest.approx(values, rel=5.1e-8) and kept.values != values
    assert kept.values[50:53] == [0.33333333, 6.6666667e-31, 6.6666667e29]
    assert json.loads(json.dumps(kept.values)) == kept.values == kept.rounded().values
