"""Logits at labelled positions are the model's own, whatever stands around them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, GraniteConfig

from letheon.data.batches import Batch
from letheon.errors import BadInput
from letheon.training.losses import Body, Outputs, TokenLoss, reduce_tokens, widened
from tests.architectures.models import ARCHITECTURES, make_from, make_model
from tests.toys import batch_of, gpt2_double, llama, random_examples

EXAMPLES = random_examples(6, longest=20)

SMALL: dict[str, Any] = {
    "vocab_size": 768, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip


@torch.no_grad()
def own_logits(model: Any, batch: Batch) -> torch.Tensor:
    """The oracle: the model asked for one unpadded sequence at a time."""
    rows = []
    for row in range(batch.size):
        length = int(batch.attention_mask[row].sum())
        rows.append(model(input_ids=batch.ids[row : row + 1, :length], use_cache=False).logits[0])
    places = zip(batch.label_row.tolist(), batch.label_column.tolist(), strict=True)
    return torch.stack([rows[row][column] for row, column in places])


@pytest.mark.parametrize("is_masked", [True, False])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_body_and_head_are_the_model_at_every_label(name: str, is_masked: bool) -> None:
    model = make_model(name)
    body = Body(model)
    assert body.is_cut
    batch = batch_of(EXAMPLES)
    with torch.no_grad():
        found = body.logits(batch, is_masked=is_masked)
        torch.testing.assert_close(found, own_logits(model, batch), rtol=1e-4, atol=1e-5)


def test_a_soft_cap_is_applied() -> None:
    config = Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5, attn_implementation="eager")
    config.initializer_range = 0.5  # large logits, so that the cap is felt
    model = make_from(config)
    body, batch = Body(model), batch_of(EXAMPLES)
    assert body.is_cut and body.soft_cap == 0.5
    with torch.no_grad():
        found = body.logits(batch)
        assert float(found.abs().max()) <= 0.5 < float(body.head(body.hidden(batch)).abs().max())
        torch.testing.assert_close(found, own_logits(model, batch), rtol=1e-4, atol=1e-5)


def test_a_model_that_does_more_behind_its_head_is_run_whole() -> None:
    model = make_from(GraniteConfig(**SMALL, logits_scaling=4.0, initializer_range=0.3))
    body, batch = Body(model), batch_of(EXAMPLES)
    assert not body.is_cut
    with torch.no_grad():
        torch.testing.assert_close(body.logits(batch), own_logits(model, batch), rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInput, match=r"GraniteForCausalLM: its logits are not its head applied .* such as gdr"):
        body.hidden(batch)


def test_making_a_body_leaves_the_model_in_its_mode() -> None:
    model = llama().train()
    Body(model)
    assert model.training


def test_padding_changes_nothing() -> None:
    body = Body(llama())
    alone = batch_of(EXAMPLES[:1])
    with torch.no_grad():
        wanted = body.logits(alone)
        for beside, pad in ((EXAMPLES, 0), (EXAMPLES, 700), ([*EXAMPLES, *random_examples(1, longest=60)], 5)):
            found = body.logits(batch_of(beside, pad=pad))[: len(wanted)]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_side_of_the_padding_changes_nothing() -> None:
    # A rotary model looks at distances alone, so a batch that is padded on the left must give the same.
    right = batch_of(EXAMPLES, pad=3)
    width, lengths = right.ids.shape[1], right.attention_mask.sum(1)
    shift = width - lengths
    ids, mask = torch.full_like(right.ids, 3), torch.zeros_like(right.attention_mask)
    for row, length in enumerate(lengths.tolist()):
        ids[row, width - length :] = right.ids[row, :length]
        mask[row, width - length :] = 1
    left = dataclasses.replace(
        right, ids=ids, attention_mask=mask, label_column=right.label_column + shift[right.label_row]
    )
    body = Body(llama())
    with torch.no_grad():
        found, wanted = Outputs(left, body.logits(left)), Outputs(right, body.logits(right))
    torch.testing.assert_close(found.log_probs("mean"), wanted.log_probs("mean"), rtol=1e-4, atol=1e-5)


def test_log_probabilities_are_a_slow_sum_over_tokens() -> None:
    model, batch = llama(), batch_of(EXAMPLES)
    with torch.no_grad():
        outputs = Outputs(batch, Body(model).logits(batch))
        tokens = outputs.token_log_probs()
        for row, example in enumerate(EXAMPLES):
            logits = model(input_ids=torch.tensor([example.ids])).logits[0].double()
            values = [
                float(logits[place - 1, example.ids[place]] - logits[place - 1].logsumexp(0))
                for place in range(example.labelled_from, len(example.ids))
            ]
            assert tokens[batch.label_row == row].tolist() == pytest.approx(values, abs=1e-4)
            assert float(outputs.log_probs("sum")[row]) == pytest.approx(sum(values), abs=1e-3)
            assert float(outputs.log_probs("mean")[row]) == pytest.approx(sum(values) / len(values), abs=1e-4)


def test_reducing_by_hand() -> None:
    batch = batch_of(EXAMPLES[:3])
    counts = batch.label_counts.tolist()
    values = torch.arange(sum(counts), dtype=torch.float32)
    pieces = values.split(counts)
    assert reduce_tokens(values, batch, "sum").tolist() == [float(piece.sum()) for piece in pieces]
    assert reduce_tokens(values, batch, "mean").tolist() == [float(piece.mean()) for piece in pieces]


def test_the_token_loss_is_transformers_own() -> None:
    model, batch = llama(), batch_of(EXAMPLES)
    labels = torch.full_like(batch.ids, -100)
    labels[batch.label_row, batch.label_column + 1] = batch.label_ids
    with torch.no_grad():
        wanted = model(input_ids=batch.ids, attention_mask=batch.attention_mask, labels=labels).loss
        total, count = TokenLoss(Body(model))(model, batch)
    assert count == len(batch.label_ids) == TokenLoss(Body(model)).count(batch)
    assert float(total) / count == pytest.approx(float(wanted), rel=1e-5)


def test_half_precisions_are_widened_and_double_stays() -> None:
    for dtype, wanted in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert widened(torch.zeros(2, dtype=dtype)).dtype == wanted
    examples = random_examples(2, vocabulary=23)
    assert Body(gpt2_double()).logits(batch_of(examples)).dtype == torch.float64
    assert Body(llama().to(torch.bfloat16)).logits(batch_of(EXAMPLES)).dtype == torch.float32
