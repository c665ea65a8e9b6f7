"""The divergence to the original, against a slow sum and its three invariants."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from letheon.unlearning.retain_terms.klr import KLR


def logits(seed: int, rows: int = 6, words: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, words, generator=generator, dtype=torch.float64) * 3


def value(current: Tensor, reference: Tensor) -> float:
    return float(KLR().loss(current, reference)[0].detach())


def test_it_is_the_divergence_from_the_original_to_the_model() -> None:
    current, reference = logits(0), logits(1)
    total = 0.0
    for row in range(6):
        p = [math.exp(v) for v in reference[row].tolist()]
        q = [math.exp(v) for v in current[row].tolist()]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    found, count = KLR().loss(current, reference)
    assert (float(found), count) == (pytest.approx(total), 6)
    assert value(reference, current) != pytest.approx(total)  # it is not symmetric: the test would see them swapped


def test_two_words_by_hand() -> None:
    reference = torch.tensor([[0.75, 0.25]]).log()
    current = torch.tensor([[0.5, 0.5]]).log()
    assert value(current, reference) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_at_the_original_value_and_slope_are_nothing() -> None:
    current = logits(0).requires_grad_()
    total, _ = KLR().loss(current, current.detach().clone())
    [slope] = torch.autograd.grad(total, current)
    assert float(total.detach()) == pytest.approx(0, abs=1e-12)
    assert float(slope.abs().max()) < 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_it_is_never_negative(seed: int) -> None:
    assert value(logits(seed), logits(seed + 50)) > 0
    close = logits(seed).float()
    assert value(close + 1e-4 * logits(seed + 9).float(), close) > -1e-6


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    # The published code hands raw logits to a routine that wants log-probabilities, and fails this.
    current, reference = logits(0).requires_grad_(), logits(1)
    shift = torch.tensor([3.0, -50.0, 0.5, 7.0, 0.0, 400.0], dtype=torch.float64)[:, None]
    moved, _ = KLR().loss(current + shift, reference - 2 * shift)
    still, _ = KLR().loss(current, reference)
    assert float(moved.detach()) == pytest.approx(float(still.detach()), rel=1e-9)
    torch.testing.assert_close(torch.autograd.grad(moved, current)[0], torch.autograd.grad(still, current)[0])


def test_impossible_words_do_no_harm() -> None:
    reference = torch.tensor([[0.0, -2000.0, 1.0]])
    assert math.isfinite(value(torch.tensor([[0.0, 0.0, 1.0]]), reference))
