"""A shift of hidden states: it stays in its ball, goes towards the answers, and undoes a shift that was planted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from letheon.audits.attacked import hooks
from letheon.audits.attacker import Attacker
from letheon.audits.conditions.latent_attack import LatentAttack, into_ball
from letheon.audits.hidden import read_states
from letheon.errors import BadInput, NotMeasured
from letheon.models import load_model
from letheon.training.activations import caught
from letheon.training.losses import Body
from letheon.training.scoring import score_examples
from tests.audits.fakes import target_of
from tests.audits.mini import Mini
from tests.audits.planted import known, planted, unit_vector
from tests.toys import llama, random_examples

LEARNED = tuple(random_examples(9, seed=1))
IDS = torch.arange(2, 12).unsqueeze(0)


@pytest.mark.parametrize("layer", [None, 0, 1])
def test_it_is_one_shift_no_longer_than_allowed_and_helps(layer: int | None) -> None:
    model = llama(seed=1)
    at = 0 if layer is None else layer
    with torch.no_grad(), caught(model, [at]) as hidden:
        model(input_ids=IDS)
    before, target = hidden[at].clone(), target_of(model)
    allowed = 0.3 * float(read_states(target, LEARNED, [at])[at].norm(dim=1).mean())
    said: list[float] = []

    def then(step: int) -> None:
        with torch.no_grad(), caught(model, [at]) as hidden:
            model(input_ids=IDS)
        shifts = (hidden[at] - before).reshape(-1, 32)
        assert (shifts - shifts[0]).abs().max() < 1e-4, "every token alike"
        assert float(shifts[0].norm()) < allowed * 1.001
        if step == 40:
            assert float(shifts[0].norm()) > allowed * 0.99, "the ball is used up"
        said.append(score_examples(Body(model), LEARNED, pad=0).log_probs("mean").mean())

    plain = score_examples(Body(model), LEARNED, pad=0).log_probs("mean").mean()
    LatentAttack(layer=layer, radius=0.3, steps=(1, 40), learning_rate=0.05).walk(target, Attacker(LEARNED), then)
    assert said[1] > said[0] > plain and not hooks(model)


def test_the_nearest_point_of_the_ball() -> None:
    for vector, radius, expected in (([3.0, 4.0], 1.0, [0.6, 0.8]), ([0.3, 0.4], 1.0, [0.3, 0.4]), ([0.0, 0.0], 1.0, [0.0, 0.0])):  # fmt: skip
        one = torch.tensor(vector)
        into_ball(one, radius)
        torch.testing.assert_close(one, torch.tensor(expected))


def test_a_shift_that_was_planted_is_undone(mini: Mini) -> None:
    model = load_model(mini.target)
    learned, asked = mini.questions("forget")[::2], mini.questions("forget")[1::2]
    size = float(read_states(target_of(model, mini.encoder), learned, [0])[0].norm(dim=1).mean())
    seen: list[float] = []
    with planted(model, 0, lambda hidden: hidden + 4.0 * size * unit_vector(64)):
        hidden = known(mini, model)

        def then(step: int) -> None:
            seen.append(float(score_examples(Body(model), asked, pad=0).exact.mean()))

        attack = LatentAttack(layer=0, radius=4.0, steps=(80,), learning_rate=0.1)
        attack.walk(target_of(model, mini.encoder), Attacker(tuple(learned)), then)
        assert known(mini, model) == hidden
    assert hidden < 0.35 < 0.7 < seen[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"radius": 0.0}, "radius > 0, got 0"), ({"layer": -1}, "layer >= 0 or null, got -1"), ({"steps": ()}, "different steps > 0")],
)  # fmt: skip
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        LatentAttack(**settings)


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(NotMeasured, match="layer 5 was asked for"):
        LatentAttack(layer=5).walk(target_of(llama()), Attacker(LEARNED), lambda step: None)
