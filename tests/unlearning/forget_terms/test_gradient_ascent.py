"""Gradient ascent: the log-probability itself, to be lowered."""

from __future__ import annotations

import math

import pytest
import torch

from letheon.errors import BadInput
from letheon.unlearning.forget_terms.gradient_ascent import GradientAscent


def test_two_tokens_by_hand() -> None:
    current = torch.tensor([math.log(0.5) + math.log(0.25), math.log(0.125)], requires_grad=True)
    total, count = GradientAscent(reduction="sum").loss(current)
    assert (float(total.detach()), count) == (pytest.approx(math.log(0.125 * 0.125)), 2)
    assert torch.autograd.grad(total, current)[0].tolist() == [1.0, 1.0]


def test_lowering_it_makes_the_answer_less_likely() -> None:
    logits = torch.tensor([0.3, 0.2, -0.1], requires_grad=True)
    current = logits.log_softmax(0)[:1]
    total, _ = GradientAscent().loss(current)
    [slope] = torch.autograd.grad(total, logits)
    after = (logits - 0.1 * slope).softmax(0)
    assert after[0] < logits.softmax(0)[0]


def test_it_never_fades() -> None:
    current = torch.tensor([-500.0], requires_grad=True)
    assert torch.autograd.grad(GradientAscent().loss(current)[0], current)[0].item() == 1.0


@pytest.mark.parametrize("until", [0.0, -1.0])
def test_an_impossible_bound_is_refused(until: float) -> None:
    with pytest.raises(BadInput, match=rf"gradient_ascent needs until > 0 nats per token, got {until}"):
        GradientAscent(until=until)
