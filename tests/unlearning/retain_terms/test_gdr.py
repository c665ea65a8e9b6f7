"""Gradient descent on what is kept: plain cross-entropy, over tokens or over sequences."""

from __future__ import annotations

import pytest
import torch

from letheon.training.losses import Body, Outputs
from letheon.unlearning.objective import TermLoss
from letheon.unlearning.retain_terms.gdr import GDR
from tests.toys import batch_of, llama, random_examples


def test_it_is_minus_the_log_probability() -> None:
    total, count = GDR().loss(torch.tensor([-1.5, -0.25]))
    assert (float(total), count) == (1.75, 2)


def test_over_tokens_it_is_transformers_own_loss() -> None:
    model, batch = llama(), batch_of(random_examples(5, longest=20))
    labels = torch.full_like(batch.ids, -100)
    labels[batch.label_row, batch.label_column + 1] = batch.label_ids
    with torch.no_grad():
        wanted = model(input_ids=batch.ids, attention_mask=batch.attention_mask, labels=labels).loss
        loss = TermLoss(GDR(denominator="token"), Body(model))
        total, count = loss(model, batch)
    assert count == len(batch.label_ids)
    assert float(total) / count == pytest.approx(float(wanted), rel=1e-5)


def test_over_sequences_a_text_weighs_as_much_as_an_answer() -> None:
    model, batch = llama(), batch_of(random_examples(5, longest=20))
    with torch.no_grad():
        outputs = Outputs(batch, Body(model).logits(batch))
        tokens = outputs.token_log_probs()
        wanted = [-float(tokens[batch.label_row == row].mean()) for row in range(5)]
        total, count = TermLoss(GDR(), Body(model)).of(outputs)
    assert count == 5
    assert float(total) == pytest.approx(sum(wanted), rel=1e-5)
    assert len({len(tokens[batch.label_row == row]) for row in range(5)}) > 2
