"""What nobody would write, in numbers: central differences of both terms, and strings one by one."""

from __future__ import annotations

import pytest
import torch

from letheon.audits.attacker import Target
from letheon.audits.string_fluency import Fluency, Repetition
from letheon.training.losses import Body
from tests.audits.fakes import target_of
from tests.toys import encoder, gpt2_double, llama

STRINGS = [(12, 13, 14), (9, 9), (4, 5, 6, 4, 4), (20,) * 6]


@pytest.mark.parametrize("before", [(), (7,), (7, 8, 3)])
def test_a_strings_own_log_probability_is_that_of_a_slow_sum_whatever_stands_beside_it(before: tuple[int, ...]) -> None:
    model = llama(seed=3)
    found = Fluency(target_of(model), before).of(STRINGS)
    for string, value in zip(STRINGS, found.tolist(), strict=True):
        ids = [*before, *string]
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        lost = [-float(log_probs[at - 1, ids[at]]) for at in range(max(len(before), 1), len(ids))]
        assert value == pytest.approx(sum(lost) / len(string), abs=1e-5)


@pytest.mark.parametrize("before", [(), (7, 8)])
def test_the_slope_is_that_of_central_differences_along_one_hot_directions(before: tuple[int, ...]) -> None:
    model = gpt2_double(seed=2)
    string, tokens = torch.tensor([12, 13, 14]), torch.arange(23)
    loss, slope = Fluency(Target(model, Body(model), encoder(), "cpu"), before).gradient(string, tokens)
    table = model.get_input_embeddings().weight.detach()
    fixed = torch.nn.functional.one_hot(torch.tensor(before, dtype=torch.long), 23).double()

    def at(one_hot: torch.Tensor) -> float:
        whole = torch.cat([fixed, one_hot])
        with torch.no_grad():
            log_probs = model(inputs_embeds=(whole @ table).unsqueeze(0)).logits[0].log_softmax(-1)
        first = max(len(before), 1)
        return -float((whole[first:] * log_probs[first - 1 : -1]).sum()) / 3

    here = torch.nn.functional.one_hot(string, 23).double()
    assert loss == pytest.approx(at(here), abs=1e-12)
    for place in range(3):
        for token in range(23):
            step = torch.zeros_like(here)
            step[place, token] = 1e-5
            assert float(slope[place, token]) == pytest.approx(
                (at(here + step) - at(here - step)) / 2e-5, rel=1e-6, abs=1e-7
            )


def test_tokens_that_come_again_are_counted_in_pairs_and_their_slope_is_that_of_differences() -> None:
    assert Repetition().of(STRINGS).tolist() == [0.0, 1 / 2, 3 / 5, 15 / 6]
    string, tokens = (4, 5, 6, 4, 4), torch.arange(8)
    value, slope = Repetition().gradient(string, tokens)
    here = torch.nn.functional.one_hot(torch.tensor(string), 8).double()

    def at(x: torch.Tensor) -> float:
        return float((x @ x.T).triu(1).sum()) / 5

    assert value == at(here) == 3 / 5
    for place in range(5):
        for token in range(8):
            step = torch.zeros_like(here)
            step[place, token] = 1e-4
            assert float(slope[place, token]) == pytest.approx((at(here + step) - at(here - step)) / 2e-4, abs=1e-9)


@pytest.mark.parametrize("before", [(), (7, 8)])
def test_what_is_expected_next_is_what_the_model_says_among_the_allowed(before: tuple[int, ...]) -> None:
    model, string, tokens = llama(seed=3), (12, 13, 14), torch.tensor([5, 9, 40, 41])
    found = Fluency(target_of(model), before).next_token(string, tokens)
    assert found.shape == (4, 4) and torch.allclose(found.sum(1), torch.ones(4))
    for place in range(0 if before else 1, 4):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*before, *string[:place]]])).logits[0, -1]
        assert torch.allclose(found[place], logits[tokens].softmax(-1), atol=1e-6)
    if not before:
        assert found[0].tolist() == [0.25] * 4
