"""The map's gradient, of some weights after others: the same bits, and never all of it at the same time."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from letheon.training.gradients import MeanGradient
from letheon.training.losses import Body
from letheon.training.memory import PeakBytes
from letheon.unlearning.forget_terms.gradient_ascent import GradientAscent
from letheon.unlearning.gate import Gate
from letheon.unlearning.objective import TermLoss
from letheon.unlearning.saliency import in_turn
from tests.toys import bits, llama, micro_batches, random_examples

BATCHES = micro_batches(random_examples(3, seed=1, longest=4), 1)
LAYERS = 4
AT_ONCE = (4 * 10**4, 10**5, 2**31)


@pytest.fixture(scope="module")
def found() -> dict[int, tuple[list[bytes], int]]:
    """Bytes at once -> the gradients, and the highest moment."""
    model: Any = llama(layers=LAYERS)
    moving = dict(model.named_parameters())
    made = {}
    for at_once in AT_ONCE:
        with PeakBytes() as counted:
            term = TermLoss(GradientAscent(), Body(model), gate=Gate(torch.zeros(3)))  # takes no part
            gradients = in_turn(term, model, moving, BATCHES, nullcontext, at_once_bytes=at_once)
            made[at_once] = ([bits(one) for one in gradients], counted.peak)
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    return made


def test_it_is_the_gradient_of_the_mean_whatever_stands_at_once(found: Any) -> None:
    model: Any = llama(layers=LAYERS).requires_grad_(True)
    gradient = MeanGradient(TermLoss(GradientAscent(), Body(model)), "forget", list(model.parameters()))
    expected = [bits(one) for one in gradient(model, {"forget": BATCHES}).tensors]
    assert all(found[at_once][0] == expected for at_once in AT_ONCE)
    assert any(any(one) for one in expected)


def test_all_gradients_never_stand_at_the_same_time(found: Any) -> None:
    whole = sum(4 * parameter.numel() for parameter in llama(layers=LAYERS).parameters())
    few, some, all_at_once = (found[at_once][1] for at_once in AT_ONCE)
    assert few <= some < all_at_once
    assert all_at_once - few > 0.5 * whole
