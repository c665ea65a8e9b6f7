"""Folds: two of them are relearning, and in more of them everybody is asked of a model that never saw them."""

from __future__ import annotations

from typing import Any

import pytest

from letheon.audits.attacked import Row, attacked_rows
from letheon.audits.conditions.relearn import Relearn
from letheon.audits.conditions.retrain_folds import RetrainFolds
from letheon.errors import BadInput, NotMeasured
from tests.audits.fakes import asked, scorer_of, sets
from tests.toys import bits, llama, random_examples

WORLD = sets(asked("forget_questions", random_examples(9, seed=2)))


def walked(attack: Any) -> list[tuple[tuple[str, ...], bytes]]:
    model = llama(seed=1)
    seen: list[tuple[tuple[str, ...], bytes]] = []

    def look(row: str, now: Any, reader: Any) -> list[Row]:
        seen.append((now["forget_questions"].units, b"".join(bits(one) for one in model.state_dict().values())))
        return [{}]

    attacked_rows({"it": attack}, scorer_of(model), WORLD, look)
    return seen


def test_two_folds_are_relearning_to_the_bit() -> None:
    assert walked(RetrainFolds(folds=2, steps=(3,))) == walked(Relearn(steps=(3,)))


def test_every_unit_is_asked_once_of_a_model_of_its_own_fold() -> None:
    seen = walked(RetrainFolds(folds=4, steps=(2,), batch_size=3))
    assert sorted(unit for units, _ in seen for unit in units) == sorted(WORLD["forget_questions"].units)
    assert len({weights for _, weights in seen}) == len(seen) == 4


def test_more_folds_than_people_and_fewer_than_two() -> None:
    with pytest.raises(NotMeasured, match="the forget set has 9"):
        walked(RetrainFolds(folds=10))
    with pytest.raises(BadInput, match="retrain_folds needs folds >= 2, got 1"):
        RetrainFolds(folds=1)
