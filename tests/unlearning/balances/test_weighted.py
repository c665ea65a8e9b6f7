"""A fixed sum of two gradients."""

from __future__ import annotations

import pytest
import torch

from letheon.errors import BadInput
from letheon.unlearning.balances.weighted import Weighted


def test_it_is_the_weighted_sum_tensor_by_tensor() -> None:
    forget, retain = (
        [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])],
        [torch.tensor([10.0, 20.0]), torch.tensor([[-5.0]])],
    )
    found = Weighted(alpha=0.5, forget_weight=2.0).combine(forget, retain)
    assert [tensor.tolist() for tensor in found] == [[7.0, 14.0], [[3.5]]]
    assert forget[0].tolist() == [1.0, 2.0] and retain[0].tolist() == [10.0, 20.0]  # what it was given stays


def test_forget_comes_first() -> None:
    assert Weighted(alpha=3.0, forget_weight=2.0).weights == (2.0, 3.0)
    assert Weighted().weights == (1.0, 1.0) and Weighted.is_linear


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": -0.1}, "weighted needs alpha >= 0, got -0.1"),
        ({"forget_weight": 0.0}, "weighted needs forget_weight > 0, got 0.0"),
    ],
)
def test_impossible_weights_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        Weighted(**settings)
