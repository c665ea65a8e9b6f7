"""Weight averaging against the arithmetic mean of its snapshots."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from letheon.errors import BadInput, CannotFinish
from letheon.unlearning.smoothers.weight_average import WeightAverage


def run(smoother: WeightAverage, places: list[Tensor]) -> Tensor:
    weight = torch.zeros(3)
    state = smoother.init({"w": weight}, 0)
    for place in places:
        weight.copy_(place)
        smoother.after_step({"w": weight}, state)
    smoother.finish({"w": weight}, state)
    return weight


PLACES = [torch.tensor([step, step**2, 1.0]) for step in map(float, range(1, 11))]


def test_it_is_the_mean_of_the_snapshots() -> None:
    found = run(WeightAverage(start=4, every=3), PLACES)  # after steps 4, 7 and 10
    torch.testing.assert_close(found, torch.stack([PLACES[3], PLACES[6], PLACES[9]]).mean(0))


def test_one_snapshot_is_no_averaging() -> None:
    assert torch.equal(run(WeightAverage(start=10), PLACES), PLACES[-1])


def test_a_run_that_stands_still_stays() -> None:
    assert torch.equal(run(WeightAverage(start=1, every=1), [torch.full((3,), 0.1)] * 7), torch.full((3,), 0.1))


def test_without_a_snapshot_there_is_nothing_to_return() -> None:
    with pytest.raises(
        CannotFinish, match=r"no snapshot was taken, since it starts at step 11 and the run ended after step 10"
    ):
        run(WeightAverage(start=11), PLACES)


@pytest.mark.parametrize("name", ["start", "every"])
def test_impossible_settings_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match=f"weight_average needs {name} >= 1, got 0"):
        WeightAverage(**{name: 0})
