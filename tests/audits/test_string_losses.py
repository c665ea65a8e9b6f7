"""Losses and slopes of strings: finite differences, scores of whole questions, and a beginning that is shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from letheon.audits.attacker import Target
from letheon.audits.string_losses import StateLosses, StringLosses, WeightedLosses
from letheon.audits.string_reads import slope_by_token
from letheon.audits.strings import Slot
from letheon.errors import NotMeasured
from letheon.training.activations import caught
from letheon.training.losses import Body
from tests.architectures.models import ARCHITECTURES, make_model
from tests.audits.fakes import target_of
from tests.toys import encoder, gpt2_double, llama

SLOTS = (Slot((5, 9, 200, 31), (17, 40, 41, 1), 1), Slot((), (60, 61, 1), 0), Slot((7,), (80, 90, 1), 2), Slot(tuple(range(100, 120)), (3, 3, 3, 44, 1), 3))  # fmt: skip
STRING = torch.tensor([300, 301, 302, 303, 304])


def near(string: torch.Tensor, count: int, vocabulary: int) -> torch.Tensor:
    """Strings that differ in one place or in two, all places among them."""
    random = torch.Generator().manual_seed(1)
    made = string.repeat(count, 1)
    for row in range(count):
        made[row, row % len(string)] = int(torch.randint(2, vocabulary, (1,), generator=random))
    made[-1, [1, 3]] = torch.tensor([8, 9])
    return made


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_shared_beginning_changes_no_loss(architecture: str) -> None:
    losses = StringLosses(target_of(make_model(architecture)), SLOTS)
    strings = torch.cat([near(STRING, 12, 700), STRING.unsqueeze(0)])
    whole, behind = losses.of(strings), losses.of(strings, STRING)
    assert behind == pytest.approx(whole, abs=2e-6)
    assert len(set(whole.tolist())) == len(strings)


def test_padding_stands_in_the_window_of_a_model_that_numbers_its_places() -> None:
    """The second question fills the window; behind a longer beginning its padding would stand outside."""
    model = gpt2_double(seed=2, vocabulary=800)
    slots = (Slot(tuple(range(100, 124)), (3, 9, 1), 1), Slot((6,), tuple(range(200, 226)), 5))
    losses = StringLosses(Target(model, Body(model), encoder(), "cpu"), slots)
    assert [len(slot.filled(STRING.tolist()).ids) for slot in slots] == [32, 32]
    strings = near(STRING, 9, 700)
    assert losses.of(strings, STRING) == pytest.approx(losses.of(strings), abs=1e-10)


def test_batches_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    losses, strings = StringLosses(target_of(llama(seed=3)), SLOTS), near(STRING, 9, 700)
    whole = losses.of(strings, STRING)
    monkeypatch.setattr("letheon.audits.string_reads.batch_tokens_on", lambda device: 1)
    monkeypatch.setattr("letheon.audits.string_losses.LOGITS_AT_ONCE", 1000)
    assert losses.of(strings, STRING) == pytest.approx(whole, abs=2e-6)


def test_a_loss_is_the_mean_over_the_answers_tokens_by_a_slow_sum() -> None:
    model = llama(seed=3)
    found = StringLosses(target_of(model), SLOTS).of(STRING.unsqueeze(0), STRING)
    lost = []
    for slot in SLOTS:
        ids = [*slot.before, *STRING.tolist(), *slot.after]
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        answer = len(slot.after) - slot.rest
        lost += [-float(log_probs[place - 1, ids[place]]) for place in range(len(ids) - answer, len(ids))]
    assert float(found[0]) == pytest.approx(sum(lost) / len(lost), abs=1e-5)


def test_the_slope_is_that_of_central_differences_along_one_hot_directions() -> None:
    model = gpt2_double(seed=2)
    target = Target(model, Body(model), encoder(), "cpu")
    slots = (Slot((4, 9), (11, 2, 3), 1), Slot((6,), (7, 5), 0))
    string, tokens = torch.tensor([12, 13, 14]), torch.arange(23)
    loss, slope = StringLosses(target, slots).gradient(string, tokens)
    table = model.get_input_embeddings().weight.detach()

    def at(one_hot: Any) -> float:
        lost = []
        for slot in slots:
            ids = torch.tensor([*slot.before, *string.tolist(), *slot.after])
            read = table[ids].clone()
            read[len(slot.before) : len(slot.before) + 3] = one_hot @ table
            with torch.no_grad():
                log_probs = model(inputs_embeds=read.unsqueeze(0)).logits[0].log_softmax(-1)
            answer = len(slot.after) - slot.rest
            lost += [-float(log_probs[place - 1, ids[place]]) for place in range(len(ids) - answer, len(ids))]
        return sum(lost) / len(lost)

    here = torch.nn.functional.one_hot(string, 23).double()
    assert loss == pytest.approx(at(here), abs=1e-12)
    assert slope.shape == (3, 23)
    for place in range(3):
        for token in range(23):
            step = torch.zeros_like(here)
            step[place, token] = 1e-5
            assert float(slope[place, token]) == pytest.approx((at(here + step) - at(here - step)) / 2e-5, abs=1e-8)


def test_the_slope_follows_a_module_that_scales_its_table() -> None:
    class Scaled(torch.nn.Embedding):
        def forward(self, ids: Any) -> Any:
            return 3.0 * super().forward(ids)

    table, slope = Scaled(50, 4), torch.randn(2, 4)
    found = slope_by_token(slope, table, torch.tensor([7, 3, 11]), at_once=2)
    assert torch.allclose(found, slope @ (3.0 * table.weight.detach()[[7, 3, 11]]).T)


def test_the_slope_leaves_no_gradient_in_the_model() -> None:
    model = llama(seed=3)
    StringLosses(target_of(model), SLOTS).gradient(STRING, torch.arange(20))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("shares", [True, False])
def test_nan_is_not_measured(shares: bool) -> None:
    model = llama(seed=3)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    losses = StringLosses(target_of(model), SLOTS, shares=shares)
    with pytest.raises(NotMeasured, match="NaN or infinite"):
        losses.of(STRING.unsqueeze(0), STRING)
    with pytest.raises(NotMeasured, match="not finite"):
        losses.gradient(STRING, torch.arange(20))


OF_ANY_LENGTH = [(300, 301, 302, 303, 304), (300, 301, 302, 303), (301, 302, 303, 304), (300, 301, 302, 303, 304, 305, 306), (300, 7, 301, 302, 303, 304), (9,), (300, 301, 302, 8, 304)]  # fmt: skip


def states_of(model: Any, layer: int) -> StateLosses:
    """Of states that are nobody's, at two to four tokens of each question."""
    random = torch.Generator().manual_seed(4)
    wanted = [
        torch.randn(min(len(slot.after) - 1, count), 32, generator=random)
        for slot, count in zip(SLOTS, (3, 2, 2, 4), strict=True)
    ]
    return StateLosses(target_of(model), SLOTS, wanted, layer)


@pytest.mark.parametrize("kind", ["answers", "states"])
def test_strings_of_different_lengths_score_as_they_do_one_by_one(kind: str) -> None:
    model = llama(seed=3)
    losses: Any = StringLosses(target_of(model), SLOTS) if kind == "answers" else states_of(model, 0)
    alone = [float(losses.of([string])[0]) for string in OF_ANY_LENGTH]
    for near in (None, OF_ANY_LENGTH[0], OF_ANY_LENGTH[1], (5,)):
        assert losses.of(OF_ANY_LENGTH, near).tolist() == pytest.approx(alone, abs=1e-5)
    assert len({round(one, 6) for one in alone}) == len(alone)


@pytest.mark.parametrize("layer", [0, 1])
def test_distances_of_states_are_those_of_a_slow_sum(layer: int) -> None:
    model = llama(seed=3)
    losses = states_of(model, layer)
    found = losses.of(OF_ANY_LENGTH, OF_ANY_LENGTH[0])
    for string, value in zip(OF_ANY_LENGTH, found.tolist(), strict=True):
        apart = 0.0
        for slot, wanted in zip(SLOTS, losses.wanted, strict=True):
            ids = [*slot.before, *string, *slot.after]
            with caught(model, [layer]) as hidden, torch.no_grad():
                model(input_ids=torch.tensor([ids]))
            apart += float((hidden[layer][0, -1 - len(wanted) : -1] - wanted).double().square().sum())
        assert value == pytest.approx(apart / sum(float(one.square().sum()) for one in losses.wanted), rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_shared_beginning_changes_no_distance(architecture: str) -> None:
    model = make_model(architecture)
    width = model.get_input_embeddings().weight.shape[1]
    wanted = [torch.ones(2, width) for _ in SLOTS]
    losses = StateLosses(target_of(model), SLOTS, wanted, 0)
    assert losses.of(OF_ANY_LENGTH, OF_ANY_LENGTH[0]) == pytest.approx(losses.of(OF_ANY_LENGTH), rel=1e-5)


def test_the_slope_of_a_distance_and_of_a_sum_is_that_of_central_differences() -> None:
    model = gpt2_double(seed=2)
    target = Target(model, Body(model), encoder(), "cpu")
    slots = (Slot((4, 9), (11, 2, 3), 1), Slot((6,), (7, 5), 0))
    wanted = [torch.ones(2, 8).double(), torch.full((1, 8), -0.5).double()]
    string, tokens = torch.tensor([12, 13, 14]), torch.arange(23)
    distance, answers = StateLosses(target, slots, wanted, 0), StringLosses(target, slots)
    loss, slope = distance.gradient(string, tokens)
    table = model.get_input_embeddings().weight.detach()

    def at(one_hot: Any) -> float:
        apart = 0.0
        for slot, there in zip(slots, wanted, strict=True):
            read = table[torch.tensor([*slot.before, *string.tolist(), *slot.after])].clone()
            read[len(slot.before) : len(slot.before) + 3] = one_hot @ table
            with caught(model, [0]) as hidden, torch.no_grad():
                model(inputs_embeds=read.unsqueeze(0))
            apart += float((hidden[0][0, -1 - len(there) : -1] - there).square().sum())
        return apart / sum(float(one.square().sum()) for one in wanted)

    here = torch.nn.functional.one_hot(string, 23).double()
    assert loss == pytest.approx(at(here), abs=1e-12)
    for place in range(3):
        for token in range(23):
            step = torch.zeros_like(here)
            step[place, token] = 1e-5
            assert float(slope[place, token]) == pytest.approx((at(here + step) - at(here - step)) / 2e-5, abs=1e-7)
    both = WeightedLosses([(2.0, distance), (0.5, answers)])
    value, together = both.gradient(string, tokens)
    other, of_answers = answers.gradient(string, tokens)
    assert value == pytest.approx(2 * loss + other / 2) and torch.allclose(together, 2 * slope + of_answers / 2)
    strings = [(12, 13, 14), (3, 4)]
    assert torch.allclose(both.of(strings), 2 * distance.of(strings) + answers.of(strings) / 2)
