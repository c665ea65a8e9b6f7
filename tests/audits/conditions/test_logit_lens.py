"""Ending earlier: the head on the model's own hidden states; the block that is chosen; a last block that was broken."""

from __future__ import annotations

import pytest
import torch

from letheon.audits.attacked import hooks
from letheon.audits.attacker import Attacker
from letheon.audits.conditions.logit_lens import LogitLens, ending_at
from letheon.errors import NotMeasured
from letheon.models import load_model
from letheon.training.losses import Body
from letheon.training.scoring import score_examples
from tests.architectures.models import ARCHITECTURES, make_model
from tests.audits.fakes import scorer_of, target_of
from tests.audits.mini import Mini
from tests.audits.planted import known
from tests.toys import bits, llama, random_examples

IDS = torch.arange(2, 12).unsqueeze(0)
LEARNED = tuple(random_examples(9, seed=1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_the_head_on_the_hidden_state_and_at_last_the_model(architecture: str) -> None:
    model = make_model(architecture)
    with torch.no_grad():
        plain = make_model(architecture)(input_ids=IDS, output_hidden_states=True)
        with ending_at(model, 0):
            early = model(input_ids=IDS).logits
        with ending_at(model, 1):
            assert bits(model(input_ids=IDS).logits) == bits(plain.logits)
        body = getattr(model, model.base_model_prefix)
        norm = next(getattr(body, name) for name in ("norm", "ln_f", "final_layer_norm") if hasattr(body, name))
        by_hand = model.get_output_embeddings()(norm(plain.hidden_states[1]))
    torch.testing.assert_close(early, by_hand, rtol=1e-4, atol=1e-5)
    assert bits(early) != bits(plain.logits) and not hooks(model)


def test_generation_with_a_cache_says_what_is_likeliest_at_the_block() -> None:
    model = llama(seed=1)
    scorer, prompt = scorer_of(model), [5, 9, 30, 44]
    with ending_at(model, 0), torch.no_grad():
        ids = list(prompt)
        for _ in range(5):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        (given,) = scorer.continuations([prompt], [5])
    assert given == scorer.encoder.tokenizer.decode(ids[4:], skip_special_tokens=True).strip()


def test_the_block_is_the_one_that_knows_most_of_what_was_learned() -> None:
    model = llama(seed=1, layers=4)

    def likely() -> float:
        return float(score_examples(Body(model), LEARNED, pad=0).log_probs("mean").mean())

    at = []
    for layer in range(3):
        with ending_at(model, layer):
            at.append(likely())
    seen: list[float] = []
    LogitLens().walk(target_of(model), Attacker(LEARNED), lambda stop: seen.append(likely()))
    assert seen == [max(at)] and len(set(at)) == 3


def test_what_a_broken_last_block_hides_is_read_before_it(mini: Mini) -> None:
    model = load_model(mini.target)
    with ending_at(model, 0):
        early = known(mini, model)
    with torch.no_grad():
        for parameter in model.model.layers[1].parameters():
            parameter.mul_(-3.0)
    seen: list[float] = []
    learned = tuple(mini.questions("forget")[::2])
    LogitLens().walk(target_of(model, mini.encoder), Attacker(learned), lambda stop: seen.append(known(mini, model)))
    assert known(mini, model) < 0.1 < 0.3 < seen[0] == early


def test_a_model_of_one_block_has_no_earlier_one() -> None:
    with pytest.raises(NotMeasured, match="a model of one block has no earlier one"):
        LogitLens().walk(target_of(llama(layers=1)), Attacker(LEARNED), lambda stop: None)
