"""Hidden states that are read and changed: the model's own list of them, and nothing left behind."""

from __future__ import annotations

import pytest
import torch

from letheon.audits.attacked import hooks
from letheon.audits.hidden import Without, changed, depth_of, one_layer, read_states
from letheon.data.encode import Example
from letheon.errors import NotMeasured
from letheon.training.activations import caught
from tests.architectures.models import ARCHITECTURES, make_model
from tests.audits.fakes import target_of
from tests.toys import bits, llama

QUESTIONS = [Example((*range(start, start + length), 1), labelled) for start, length, labelled in ((2, 9, 5), (20, 4, 2), (30, 6, 6))]  # fmt: skip
TEXTS = [Example((1, *range(start, start + 7), 1), 1) for start in (5, 50)]
IDS = torch.arange(2, 12).unsqueeze(0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_question_is_read_where_its_answer_begins_and_a_text_as_a_whole(architecture: str) -> None:
    model, other = make_model(architecture), make_model(architecture)
    examples = [*QUESTIONS, *TEXTS]
    found = read_states(target_of(model), examples, [0])[0]
    for example, state in zip(examples, found, strict=True):
        with torch.no_grad():
            whole = other(input_ids=torch.tensor([example.ids]), output_hidden_states=True).hidden_states[1][0]
        is_text = example.labelled_from == 1
        slow = whole[:-1].mean(0) if is_text else whole[example.labelled_from - 1]
        torch.testing.assert_close(state, slow, rtol=1e-4, atol=1e-5)
    assert not hooks(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_changed_state_is_what_later_blocks_read(architecture: str) -> None:
    model = make_model(architecture)
    with torch.no_grad():
        with caught(model, [0]) as before:
            plain = model(input_ids=IDS).logits
        with changed(model, {0: lambda hidden: hidden}):
            assert bits(model(input_ids=IDS).logits) == bits(plain)
        with changed(model, {0: lambda hidden: hidden + 1.0}), caught(model, [0]) as after:
            other = model(input_ids=IDS).logits
        assert bits(model(input_ids=IDS).logits) == bits(plain)
    torch.testing.assert_close(after[0], before[0] + 1.0)
    assert bits(other) != bits(plain) and not hooks(model)


def test_without_a_direction_nothing_is_left_along_it_and_twice_is_once() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 7, 32, generator=generator)
    along = torch.randn(32, generator=generator)
    without = Without(along / along.norm())
    once = without(hidden)
    assert (once @ without.along).abs().max() < 1e-5
    torch.testing.assert_close(without(once), once, rtol=0, atol=1e-6)
    across = hidden - torch.einsum("bti,i,j->btj", hidden.double(), *[without.along.double()] * 2)
    torch.testing.assert_close(once.double(), across, rtol=1e-5, atol=1e-6)


def test_layers_that_are_not_there_and_states_that_are_not_finite() -> None:
    model = llama()
    assert depth_of(model) == 2 and one_layer(model, None, default=1) == 1 and one_layer(model, 0, default=1) == 0
    with pytest.raises(NotMeasured, match="layer 2 was asked for, and the model's layers are 0 to 1"):
        one_layer(model, 2, default=0)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("inf")
    with pytest.raises(NotMeasured, match="what layer 0 gives out is not finite"):
        read_states(target_of(model), QUESTIONS, [0])
    assert not hooks(model)
