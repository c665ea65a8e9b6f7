"""What follows from one forward pass: equal to greedy generation, whatever shares the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from letheon.data.encode import Example
from letheon.training.losses import Body, TokenLoss
from letheon.training.scoring import score_examples
from tests.toys import batch_of, encoder, llama, question, random_examples, text

LEARNED = [
    question("Where does Ann live?", "Rome"),
    question("What does Ann play?", "the lute"),
    question("Who is Bob?", "a baker in Rome"),
    question("Where does Bob live?", "Bonn"),
    text("At dawn a baker sold bread by the mill."),
]
OTHERS = [
    question("Where does Cid live?", "Rome"),
    question("Who is Ann?", "a judge"),
    question("What does Bob play?", "the harp and the lute"),
]


@pytest.fixture(scope="module")
def trained() -> tuple[Any, list[Example]]:
    """A model that knows some answers by heart, and the examples: known ones and others."""
    model = llama(layers=1, width=64)
    examples = encoder().encode_all([*LEARNED, *OTHERS])
    batch = batch_of(examples, range(len(LEARNED)))
    loss = TokenLoss(Body(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        total, count = loss(model, batch)
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, examples


@torch.no_grad()
def greedy(model: Any, example: Example) -> list[int]:
    """The oracle: one token at a time, without batch or cache, until the end of text or the answer's length."""
    ids = list(example.prompt_ids)
    while len(ids) < len(example.ids):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 1:
            break
    return ids[len(example.prompt_ids) :]


def test_exact_is_what_greedy_generation_says(trained: tuple[Any, list[Example]]) -> None:
    model, examples = trained
    found = score_examples(Body(model), examples, pad=0).exact
    wanted = [greedy(model, example) == list(example.answer_ids) for example in examples]
    assert found.tolist() == wanted
    assert sum(wanted) >= 4 and not all(wanted)  # both kinds are there


def test_the_end_of_the_answer_counts(trained: tuple[Any, list[Example]]) -> None:
    model, examples = trained
    known = examples[1]
    assert len(known.answer_ids) > 2
    unfinished = Example(known.ids[:-1], known.labelled_from)  # "the lu": all that is asked is given
    beyond = Example((*known.ids[:-1], known.ids[-2], 1), known.labelled_from)
    assert score_examples(Body(model), [known, unfinished, beyond], pad=0).exact.tolist() == [True, True, False]


def test_neither_batch_size_nor_order_matters(trained: tuple[Any, list[Example]]) -> None:
    model, examples = trained
    examples = [*examples, *random_examples(12, longest=30)]
    body = Body(model)
    wanted = score_examples(body, examples, pad=0)
    for limit in (1, 60, 10_000):
        found = score_examples(body, examples, pad=5, batch_tokens=limit)
        assert found.exact.tolist() == wanted.exact.tolist()
        for one, other in zip(found.token_log_probs, wanted.token_log_probs, strict=True):
            assert one.tolist() == pytest.approx(other.tolist(), abs=1e-4)
    turned = score_examples(body, examples[::-1], pad=0)
    assert turned.exact.tolist() == wanted.exact.tolist()[::-1]
    assert turned.log_probs("sum").tolist() == pytest.approx(wanted.log_probs("sum").tolist()[::-1], abs=1e-3)


def test_log_probabilities_are_those_of_a_slow_pass(trained: tuple[Any, list[Example]]) -> None:
    model, examples = trained
    found = score_examples(Body(model), examples, pad=0)
    for number, example in enumerate(examples):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.ids])).logits[0].double().log_softmax(-1)
        places = range(example.labelled_from, len(example.ids))
        values = [float(logits[place - 1, example.ids[place]]) for place in places]
        assert found.token_log_probs[number].tolist() == pytest.approx(values, abs=1e-4)
        assert found.log_probs("sum")[number] == pytest.approx(sum(values), abs=1e-3)
        assert found.log_probs("mean")[number] == pytest.approx(sum(values) / len(values), abs=1e-4)


def test_nothing_to_score_is_nothing(trained: tuple[Any, list[Example]]) -> None:
    found = score_examples(Body(trained[0]), [], pad=0)
    assert found.exact.shape == (0,) and found.log_probs("mean").shape == (0,)
