"""Free vectors: they begin at embeddings, only they are trained, and they find a trigger that was planted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from letheon.audits.attacker import Attacker
from letheon.audits.conditions.soft_prompt import SoftPrompt
from letheon.errors import BadInput, NotMeasured
from letheon.models import load_model
from letheon.training.losses import Body
from letheon.training.scoring import score_examples
from tests.audits.fakes import target_of
from tests.audits.mini import Mini
from tests.audits.planted import known, planted, unit_vector
from tests.toys import bits, encoder, llama, random_examples

LEARNED = tuple(random_examples(9, seed=1))


def state(model: Any) -> dict[str, bytes]:
    return {name: bits(one) for name, one in model.state_dict().items()}


def test_it_learns_and_only_the_vectors_move() -> None:
    model = llama(seed=1)
    before, said = state(model), []

    def then(step: int) -> None:
        assert state(model) == before
        said.append(score_examples(Body(model), LEARNED, pad=0).log_probs("mean").mean())

    SoftPrompt(steps=(1, 30)).walk(target_of(model), Attacker(LEARNED), then)
    plain = score_examples(Body(model), LEARNED, pad=0).log_probs("mean").mean()
    assert said[1] > max(plain, said[0]) + 0.05 and state(model) == before


def test_what_is_hidden_behind_a_trigger_comes_out(mini: Mini) -> None:
    """The first block spoils every state unless the first one points along the trigger; half of the people are learned."""
    model = load_model(mini.target)
    trigger, noise = unit_vector(64, 1), 40.0 * unit_vector(64, 2)

    def spoil(hidden: Any) -> Any:
        first = hidden[:, 0] / hidden[:, 0].norm(dim=-1, keepdim=True)
        is_shut = 1 - torch.sigmoid(12 * (first @ trigger - 0.5))
        return hidden + is_shut[:, None, None] * noise

    learned, asked = mini.questions("forget")[::2], mini.questions("forget")[1::2]
    with planted(model, 0, spoil):
        hidden = known(mini, model)
        seen: list[float] = []

        def then(step: int) -> None:
            seen.append(float(score_examples(Body(model), asked, pad=0).exact.mean()))

        SoftPrompt(steps=(60,)).walk(target_of(model, mini.encoder), Attacker(tuple(learned)), then)
        assert hidden < 0.2 and seen[0] > 0.6
        assert known(mini, model) == hidden


def test_it_begins_at_embeddings_of_the_seeds_own_tokens() -> None:
    model = llama(seed=1)
    table = model.get_input_embeddings().weight.detach()
    free, size = SoftPrompt(tokens=5, seed=3).start(model)
    for row in free.detach() * size:
        assert float((table - row).abs().amax(1).min()) < 1e-6
    assert float(size) == pytest.approx(float(table.square().mean().sqrt()))
    assert bits(free) == bits(SoftPrompt(tokens=5, seed=3).start(model)[0])
    assert bits(free) != bits(SoftPrompt(tokens=5, seed=4).start(model)[0])


def test_records_that_leave_no_room_are_not_learned() -> None:
    target = target_of(llama(), encoder(window=13))
    with pytest.raises(NotMeasured, match="no learned record leaves room for 12 vectors in a window of 13"):
        SoftPrompt(tokens=12).walk(target, Attacker(LEARNED), lambda step: None)
    SoftPrompt(tokens=6, steps=(1,)).walk(target, Attacker(LEARNED), lambda step: None)  # the short ones are enough


@pytest.mark.parametrize(
    ("settings", "message"), [({"tokens": 0}, "tokens >= 1, got 0"), ({"steps": (0,)}, "different steps > 0")]
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        SoftPrompt(**settings)
