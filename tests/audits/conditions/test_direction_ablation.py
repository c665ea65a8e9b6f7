"""A direction that was planted is found and taken out; the mean difference by hand."""

from __future__ import annotations

import pytest
import torch

from letheon.audits.attacked import hooks
from letheon.audits.attacker import Attacker
from letheon.audits.conditions.direction_ablation import DirectionAblation, direction
from letheon.audits.hidden import read_states
from letheon.errors import BadInput, NotMeasured
from letheon.models import load_model
from letheon.training.activations import caught
from tests.audits.fakes import target_of
from tests.audits.mini import Mini
from tests.audits.planted import known, steered_aside
from tests.toys import encoder, llama, random_examples, text

KEPT = tuple(random_examples(8, seed=1, labelled=2))
LEARNED = tuple(random_examples(6, seed=2, labelled=2))


def test_a_planted_direction_is_taken_out_and_the_answers_come_back(mini: Mini) -> None:
    """Of one half of the people; the other half is asked as well."""
    model = load_model(mini.target)
    learned, kept = mini.questions("forget")[::2], mini.questions("retain")
    with steered_aside(mini, model, size=60.0) as planted:
        hidden = known(mini, model)
        states = [read_states(target_of(model, mini.encoder), some, [0])[0] for some in (learned, kept)]
        assert abs(float(direction(*states, 0) @ planted)) > 0.97
        seen: list[float] = []
        attack = DirectionAblation(layer=0)
        attack.walk(target_of(model, mini.encoder), Attacker(tuple(learned), {"retain": tuple(kept)}), lambda _: seen.append(known(mini, model)))  # fmt: skip
        assert hidden < 0.2 and seen[0] > 0.7
        assert known(mini, model) == hidden
    assert not hooks(model)


@pytest.mark.parametrize("layer", [None, 0, 1])
def test_nothing_is_left_along_it_where_it_is_taken_out_and_only_there(layer: int | None) -> None:
    model = llama(seed=1)
    target = target_of(model)
    directions = {at: direction(read_states(target, LEARNED, [at])[at], read_states(target, KEPT, [at])[at], at) for at in (0, 1)}  # fmt: skip
    for one in directions.values():
        assert float(one.norm()) == pytest.approx(1.0, abs=1e-6)

    def then(stop: int) -> None:
        with torch.no_grad(), caught(model, [0, 1]) as hidden:
            model(input_ids=torch.tensor([KEPT[0].ids]))
        for at, one in directions.items():
            left = float((hidden[at] @ one).abs().max())
            assert (left < 1e-5) == (layer in (None, at)), (at, left)

    DirectionAblation(layer=layer).walk(target, Attacker(LEARNED, {"retain": KEPT}), then)


def test_it_is_the_difference_of_the_means() -> None:
    forgotten, kept = torch.tensor([[3.0, 0.0], [5.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 4.0]])
    torch.testing.assert_close(direction(forgotten, kept, 0), torch.tensor([4.0, -2.0]) / 20**0.5)


def test_what_cannot_be_told_apart_is_not_measured() -> None:
    same = Attacker(KEPT, {"retain": KEPT})
    with pytest.raises(NotMeasured, match="layer 0 do not differ between forgotten and retained records"):
        DirectionAblation().walk(target_of(llama()), same, lambda stop: None)
    texts = (encoder().encode(text("A river in a land.")),)
    with pytest.raises(NotMeasured, match="the retain set holds no questions that forgotten questions could be told"):
        DirectionAblation().walk(target_of(llama()), Attacker(LEARNED, {"retain": texts}), lambda stop: None)
    with pytest.raises(NotMeasured, match="layer 7 was asked for, and the model's layers are 0 to 1"):
        DirectionAblation(layer=7).walk(target_of(llama()), Attacker(LEARNED, {"retain": KEPT}), lambda stop: None)
    with pytest.raises(BadInput, match="direction_ablation needs layer >= 0 or null, got -1"):
        DirectionAblation(layer=-1)
