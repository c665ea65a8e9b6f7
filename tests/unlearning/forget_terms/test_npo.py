"""Negative preference optimization against its closed forms and limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.unlearning.forget_terms.gradient_ascent import GradientAscent
from letheon.unlearning.forget_terms.npo import NPO


def log_probs(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def slope(term: NPO, current: Tensor, reference: Tensor) -> Tensor:
    total, _ = term.loss(current, reference)
    return torch.autograd.grad(total, current)[0]


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_at_the_reference_it_is_two_over_beta_times_log_two(beta: float) -> None:
    current = log_probs(-3.0, -0.1, -40.0)
    total, count = NPO(beta=beta).loss(current, current.detach())
    assert count == 3
    assert float(total.detach()) == pytest.approx(3 * (2 / beta) * math.log(2))


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_at_the_reference_its_slope_is_gradient_ascents(beta: float) -> None:
    current = log_probs(-3.0, -0.1, -40.0)
    total, _ = GradientAscent().loss(current)
    wanted = torch.autograd.grad(total, current)[0]
    torch.testing.assert_close(slope(NPO(beta=beta), current, current.detach()), wanted)


def test_a_small_beta_is_gradient_ascent_but_for_a_constant() -> None:
    current, reference = log_probs(-3.0, -0.5, -7.0), log_probs(-2.0, -1.5, -1.0).detach()
    beta = 1e-6
    total, _ = NPO(beta=beta).loss(current, reference)
    wanted = float((current.detach() - reference).sum())
    assert float(total.detach()) - 3 * (2 / beta) * math.log(2) == pytest.approx(wanted, rel=1e-4)
    torch.testing.assert_close(
        slope(NPO(beta=beta), current, reference), torch.ones(3, dtype=torch.float64), rtol=1e-5, atol=0
    )


def test_a_large_beta_leaves_forgotten_sequences_alone() -> None:
    current, reference = log_probs(-9.0, -1.0), log_probs(-1.0, -9.0).detach()
    found = slope(NPO(beta=50.0), current, reference)
    assert found[0] < 1e-100 and found[1] == pytest.approx(2.0)


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_it_is_the_papers_formula(beta: float) -> None:
    # (2 / beta) log(1 + (p / p_ref)^beta), and its slope 2 (p/p_ref)^beta / (1 + (p/p_ref)^beta) in log p.
    current, reference = log_probs(-3.0, -0.5, -2.0), log_probs(-2.0, -1.5, -2.5).detach()
    ratio = [math.exp(a - b) ** beta for a, b in zip(current.tolist(), reference.tolist(), strict=True)]
    total, _ = NPO(beta=beta).loss(current, reference)
    assert float(total.detach()) == pytest.approx(sum((2 / beta) * math.log(1 + value) for value in ratio))
    assert slope(NPO(beta=beta), current, reference).tolist() == pytest.approx([2 * v / (1 + v) for v in ratio])


def test_two_tokens_by_hand() -> None:
    # p = 0.5 * 0.25 now, 0.8 * 0.5 at the start: the ratio is 0.3125.
    now, then = math.log(0.5 * 0.25), math.log(0.8 * 0.5)
    total, _ = NPO(beta=1.0, reduction="sum").loss(log_probs(now), log_probs(then).detach())
    assert float(total.detach()) == pytest.approx(2 * math.log(1.3125))


def test_far_away_it_neither_breaks_nor_vanishes_too_soon() -> None:
    found, _ = NPO(beta=1.0).loss(log_probs(-5000.0, 0.0), log_probs(0.0, -5000.0).detach())
    assert math.isfinite(float(found.detach()))
    assert slope(NPO(beta=1.0), log_probs(-10.0), log_probs(0.0).detach()).item() > 0


def test_the_published_codes_form_is_a_mean_over_tokens_and_vocabulary_of_raw_logits() -> None:
    term = NPO(beta=0.1, reduction="muse-logits")
    assert (term.needs, term.denominator) == (("logits", "reference_logits"), "token")
    now = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]], dtype=torch.float64)
    then = torch.tensor([[0.0, -1.0, 0.5], [2.0, 2.0, 2.0]], dtype=torch.float64)
    total, count = term.loss(now, then)
    by_hand = [
        (2 / 0.1) * math.log(1 + math.exp(0.1 * (a - b))) for a, b in zip(now.ravel(), then.ravel(), strict=True)
    ]
    assert count == 2
    assert float(total) / count == pytest.approx(sum(by_hand) / len(by_hand))
    # What makes it another loss: a constant added to all logits changes no probability, and changes it.
    moved, _ = term.loss(now + 1.0, then)
    assert float(moved) - float(total) > 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"beta": 0.0}, r"npo needs beta > 0, got 0\.0\. Use gradient_ascent for the limit beta -> 0"),
        ({"beta": -1.0}, r"npo needs beta > 0, got -1\.0"),
        ({"until": 0.0}, r"npo needs until > 0 nats per token, got 0\.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        NPO(**settings)
