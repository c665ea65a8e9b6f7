"""Pushed until a stranger's place, and no further."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

from letheon.data.records import Record
from letheon.errors import BadInput
from letheon.training.losses import Body, Outputs
from letheon.unlearning.forget_terms.gradient_ascent import GradientAscent
from letheon.unlearning.gate import Gate, check_strangers, make_gate
from letheon.unlearning.objective import TermLoss
from letheon.unlearning.retain_terms.klr import KLR
from tests.toys import batch_of, encoder, llama, question, random_examples, text

FORGET = [question("Who is Ann?", "a judge"), text("At dawn Ann sold bread."), question("Where is Ann?", "Rome")]
STRANGERS = [
    question("Who is Bob?", "a baker"),
    question("Where is Bob?", "Bonn"),
    question("Who is Cid?", "a guest of the judge"),
    text("At noon Bob kept three goats."),
    text("In May Cid saw a grey boat near the mill."),
]


def made(until: Any, forget: list[Record] = FORGET, holdout: list[Record] = STRANGERS) -> Gate | None:
    return make_gate(until, forget, holdout, body=Body(llama()), encoder=encoder(), device="cpu")


def slow_loss(model: Any, record: Record) -> float:
    """Mean loss per labelled token, one forward pass a record."""
    example = encoder().encode(record)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([example.ids])).logits[0].log_softmax(-1)
    places = range(example.labelled_from, len(example.ids))
    return -statistics.mean(float(logits[place - 1, example.ids[place]]) for place in places)


def test_the_threshold_is_the_median_of_strangers_of_the_same_kind() -> None:
    losses = [slow_loss(llama(), record) for record in STRANGERS]
    questions, texts = statistics.median(losses[:3]), statistics.median(losses[3:])
    gate = made("holdout")
    assert gate is not None
    assert gate.thresholds.tolist() == pytest.approx([questions, texts, questions], abs=1e-4)
    assert abs(questions - texts) > 1e-3  # otherwise a mixture of kinds would pass


@pytest.mark.parametrize("until", [2.5, 2])
def test_a_number_is_the_threshold_of_all(until: float) -> None:
    gate = make_gate(until, FORGET, [], body=Body(llama()), encoder=encoder(), device="cpu")
    assert gate is not None and gate.thresholds.tolist() == [float(until)] * 3


def test_no_bound_is_no_gate() -> None:
    assert made("none") is None


def test_a_kind_without_strangers_is_refused() -> None:
    with pytest.raises(BadInput, match=r"the forget set holds texts and the gate's half of the holdout set none"):
        made("holdout", holdout=STRANGERS[:3])
    with pytest.raises(BadInput, match="holds questions"):
        check_strangers(FORGET, STRANGERS[3:])
    with pytest.raises(BadInput, match=r'until="holdout" needs a holdout set \(--holdout h\.jsonl\)'):
        made("holdout", holdout=[])
    check_strangers(FORGET[:1], STRANGERS[:3])  # a kind that is not to be forgotten needs none


def test_an_item_above_its_threshold_is_left_out_and_one_below_is_not() -> None:
    model = llama()
    examples = random_examples(4, longest=20)
    batch = batch_of(examples, [2, 0, 3])
    outputs = Outputs(batch, Body(model).logits(batch))
    losses = -outputs.log_probs("mean").detach()
    thresholds = torch.zeros(4)
    thresholds[[2, 0, 3]] = losses + torch.tensor([0.01, -0.01, 0.01])
    gate = Gate(thresholds)
    assert gate.open_items(outputs).tolist() == [True, False, True]
    loss = TermLoss(GradientAscent(), Body(model), gate=gate)
    total, count = loss.of(outputs)
    assert float(total.detach()) == pytest.approx(float(-losses[0] - losses[2]), rel=1e-5)
    assert count == 3  # a closed item still counts, so that the pull fades as they close


def test_a_closed_item_has_no_gradient() -> None:
    model = llama()
    examples = random_examples(2, longest=12)
    logits = Body(model).logits(batch_of(examples)).detach().requires_grad_()
    outputs = Outputs(batch_of(examples), logits)
    losses = -outputs.log_probs("mean").detach()
    for is_open in ((True, False), (False, False)):
        gate = Gate(torch.where(torch.tensor(is_open), losses + 1, losses - 1))
        total, _ = TermLoss(GradientAscent(), Body(model), gate=gate).of(outputs)
        [slope] = torch.autograd.grad(total, logits)
        for row in (0, 1):
            has_slope = bool(slope[outputs.batch.label_row == row].abs().sum() > 0)
            assert has_slope == is_open[row]


def test_a_gate_reaches_terms_over_tokens_too() -> None:
    model = llama()
    examples = random_examples(3, longest=12)
    batch = batch_of(examples)
    outputs = Outputs(batch, Body(model).logits(batch).detach())
    losses = -outputs.log_probs("mean")
    gate = Gate(losses + torch.tensor([1.0, -1.0, 1.0]))
    seen: list[tuple[int, ...]] = []

    def reference(asked: Any) -> torch.Tensor:
        seen.append(tuple(asked.items.tolist()))
        return torch.zeros_like(outputs.logits)

    total, _ = TermLoss(KLR(), Body(model), {"reference_logits": reference}, gate).of(outputs)
    kept = batch.label_row != 1
    wanted, _ = KLR().loss(outputs.logits[kept], torch.zeros_like(outputs.logits[kept]))
    assert float(total) == pytest.approx(float(wanted), rel=1e-5) and seen == [(0, 1, 2)]
