"""Vectors before the input: embeddings of real tokens are these tokens, in forward passes and in generation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from letheon.audits.attacked import hooks
from letheon.audits.prefix import prefixed
from letheon.errors import NotMeasured
from letheon.training.losses import Body
from letheon.training.scoring import score_examples
from tests.architectures.models import ARCHITECTURES, make_model
from tests.audits.fakes import scorer_of
from tests.toys import bits, encoder, llama, random_examples

FIRST = (7, 300, 12)
EXAMPLES = random_examples(6, seed=3)


def vectors(model: Any, tokens: tuple[int, ...] = FIRST) -> Any:
    found = model.get_input_embeddings()(torch.tensor(tokens, dtype=torch.long)).detach()
    return lambda: found


def longer(example: Any) -> Any:
    return type(example)((*FIRST, *example.ids), example.labelled_from + len(FIRST))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_embeddings_of_tokens_are_the_tokens(architecture: str) -> None:
    model = make_model(architecture)
    said = score_examples(Body(model), [longer(example) for example in EXAMPLES], pad=0)
    with prefixed(model, vectors(model), window=128):
        found = score_examples(Body(model), EXAMPLES, pad=0)
        assert Body(model).is_cut
    for mine, theirs in zip(found.token_log_probs, said.token_log_probs, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert not hooks(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_answers_are_those_of_the_longer_prompt(architecture: str) -> None:
    model = make_model(architecture)
    scorer = scorer_of(model)
    prompts = [example.ids for example in EXAMPLES]
    with_tokens = scorer.continuations([(*FIRST, *prompt) for prompt in prompts], [6] * len(prompts))
    plain = scorer.continuations(prompts, [6] * len(prompts))
    with prefixed(model, vectors(model), window=128):
        assert scorer.continuations(prompts, [6] * len(prompts)) == with_tokens
    assert scorer.continuations(prompts, [6] * len(prompts)) == plain


def test_no_vectors_are_the_plain_model_to_the_bit() -> None:
    model, ids = llama(), torch.arange(2, 12).unsqueeze(0)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with prefixed(model, lambda: torch.zeros(0, 32), window=128):
            assert bits(model(input_ids=ids).logits) == bits(plain)


def test_what_does_not_fit_is_not_measured_and_the_next_call_is_whole() -> None:
    model, scorer = llama(), None
    with prefixed(model, vectors(model), window=12):
        with pytest.raises(NotMeasured, match="3 vectors before 10 tokens do not fit into a context window of 12"):
            model(input_ids=torch.arange(2, 12).unsqueeze(0))
        with torch.no_grad():
            assert model(input_ids=torch.arange(2, 11).unsqueeze(0)).logits.shape[1] == 9
    scorer = scorer_of(model, window=12)
    with prefixed(model, vectors(model), window=12), pytest.raises(NotMeasured, match="do not fit into a context"):
        scorer.continuations([[2, 3, 4, 5]], [8])
    assert encoder().max_length == 128 and not hooks(model)
