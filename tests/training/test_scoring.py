"""What follows from one forward pass: equal to greedy generation, whatever shares the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from letheon.data.batches import by_length
from letheon.data.encode import Example
from letheon.errors import NotMeasured
from letheon.numerics.familiarity import min_k_plus
from letheon.training import scoring
from letheon.training.losses import Body, TokenLoss
from letheon.training.scoring import first_log_probs, gradient_norms, score_batches, score_examples
from tests.toys import batch_of, encoder, gpt2_double, llama, question, random_examples, text

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


# --- token by token


@torch.no_grad()
def slow_logits(model: Any, example: Example) -> torch.Tensor:
    """(labels, vocabulary) float64 log-probabilities in the places of the labelled tokens, of one example alone."""
    log_p: torch.Tensor = model(input_ids=torch.tensor([example.ids])).logits[0].double().log_softmax(-1)
    return log_p[example.labelled_from - 1 : -1]


@pytest.mark.parametrize("is_cut", [True, False])
def test_moments_are_those_of_a_slow_loop(is_cut: bool, trained: tuple[Any, list[Example]]) -> None:
    """Peaked and flat distributions: a model that knows, on what it knows and on what it does not."""
    model, examples = trained
    body = Body(model)
    body.is_cut = is_cut
    found = score_batches(body, by_length(examples, pad=0), moments=True)
    plain = score_examples(Body(model), examples, pad=0)
    assert plain.moments is None and found.moments is not None
    for number, example in enumerate(examples):
        log_p = slow_logits(model, example)
        mean = (log_p.exp() * log_p).sum(1)
        deviation = ((log_p.exp() * log_p**2).sum(1) - mean**2).clamp(min=0).sqrt()
        assert found.moments[number][0].tolist() == pytest.approx(mean.tolist(), abs=1e-5)
        assert found.moments[number][1].tolist() == pytest.approx(deviation.tolist(), abs=1e-4)
        right = log_p.argmax(1) == torch.tensor(example.answer_ids)
        assert found.is_right[number].tolist() == plain.is_right[number].tolist() == right.tolist()
        assert found.token_log_probs[number].tolist() == plain.token_log_probs[number].tolist()


def test_few_logits_are_held_at_once(monkeypatch: pytest.MonkeyPatch, trained: tuple[Any, list[Example]]) -> None:
    model, examples = trained
    batches = by_length(examples, pad=0)
    wanted = score_batches(Body(model), batches, moments=True)
    seen: list[int] = []
    score = scoring._score_logits

    def spied(logits: torch.Tensor, *rest: Any) -> Any:
        seen.append(logits.numel())
        return score(logits, *rest)

    monkeypatch.setattr(scoring, "_score_logits", spied)
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 768 * 12)
    found = score_batches(Body(model), batches, moments=True)
    assert max(seen) <= 768 * 12 // 4 and len(seen) > 5
    assert found.moments is not None and wanted.moments is not None
    for one, other in zip(found.moments, wanted.moments, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    score_batches(Body(model), batches)
    assert max(seen) <= 768 * 12


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    logits = torch.randn(9, 31, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.arange(9)
    plain, moved = (scoring._score_logits(logits + by, labels, True) for by in (0.0, 7.0))
    assert moved.log_probs == pytest.approx(plain.log_probs, abs=1e-5)
    assert moved.moments == pytest.approx(plain.moments, abs=1e-5)
    assert moved.is_right.tolist() == plain.is_right.tolist()


def test_tokens_of_no_probability_and_certain_ones_are_numbers() -> None:
    """p log p is 0 where p is 0: masked words, and a distribution on one word."""
    logits = torch.zeros(2, 6)
    logits[0, 3:] = -torch.inf
    logits[1, 1:] = -1e30
    found = scoring._score_logits(logits, torch.tensor([0, 0]), True)
    assert found.moments[0].tolist() == pytest.approx([-np.log(3), 0.0], abs=1e-6)
    assert found.moments[1].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_the_side_of_padding_does_not_matter(trained: tuple[Any, list[Example]]) -> None:
    """The same texts padded on the left, as generation has them, with their positions counted by hand."""
    model, examples = trained
    found = score_examples(Body(model), examples, pad=0).token_log_probs
    width = max(len(example.ids) for example in examples)
    ids = torch.tensor([[0] * (width - len(one.ids)) + list(one.ids) for one in examples])
    mask = torch.tensor([[0] * (width - len(one.ids)) + [1] * len(one.ids) for one in examples])
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        log_p = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits.log_softmax(-1)
    for row, example in enumerate(examples):
        labels = ids[row, width - len(example.answer_ids) :]
        before = log_p[row, width - len(example.answer_ids) - 1 : -1]
        wanted = before.gather(1, labels[:, None])[:, 0].tolist()
        assert found[row].tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_first_log_probs_are_those_of_the_first_labelled_place(trained: tuple[Any, list[Example]]) -> None:
    model, examples = trained
    tokens = [405, 342, 1]
    found = first_log_probs(Body(model), by_length(examples, pad=0, batch_tokens=60), tokens)
    wanted = torch.stack([slow_logits(model, example)[0, tokens] for example in examples])
    assert found == pytest.approx(wanted.numpy(), abs=1e-4)


def test_gradient_norms_are_those_of_a_plain_backward_pass_and_leave_nothing_behind() -> None:
    model = gpt2_double(1)
    model.requires_grad_(False)
    model.transformer.wte.weight.requires_grad_(True)
    before = [parameter.requires_grad for parameter in model.parameters()]
    examples = random_examples(4, vocabulary=23)
    found = gradient_norms(Body(model), examples, pad=0)
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())
    model.requires_grad_(True)
    for number, example in enumerate(examples):
        labels = torch.tensor([[-100] * example.labelled_from + list(example.answer_ids)])
        model(input_ids=torch.tensor([example.ids]), labels=labels).loss.backward()
        norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
        assert found[number] == pytest.approx(float(torch.stack(norms).mean()), rel=1e-5)
        model.zero_grad()


def test_a_gradient_norm_is_that_of_finite_differences() -> None:
    """Of one layer norm's bias, the others' gradients being set aside: the chain from loss to weight, by hand."""
    model = gpt2_double(2)
    (example,) = random_examples(1, vocabulary=23, longest=8)

    def loss() -> float:
        log_p = slow_logits(model, example)
        return -float(log_p[range(len(log_p)), list(example.answer_ids)].mean())

    weight = model.transformer.ln_f.bias
    slopes = []
    for place in range(weight.numel()):
        with torch.no_grad():
            values = []
            for by in (1e-5, -2e-5):
                weight[place] += by
                values.append(loss())
            weight[place] += 1e-5
        slopes.append((values[0] - values[1]) / 2e-5)
    alone = [weight]
    found = scoring._gradient_norm(Body(model), batch_of([example]), alone, 2.0)
    assert found == pytest.approx(float(np.linalg.norm(slopes)), rel=1e-5)


def test_a_model_without_weights_takes_no_gradient() -> None:
    model = llama()
    (example,) = random_examples(1)
    body = Body(model)
    frozen = body.logits

    def packed(*given: Any, **named: Any) -> torch.Tensor:
        return frozen(*given, **named).detach()

    body.logits = packed  # type: ignore[method-assign]
    with pytest.raises(NotMeasured, match="takes a gradient"):
        gradient_norms(body, [example], pad=0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_large_vocabulary_of_equal_words_has_no_moments_beyond_rounding() -> None:
    found = scoring._score_logits(torch.full((3, 128_256), 2.5), torch.tensor([0, 5, 128_255]), True)
    assert found.moments[0].tolist() == pytest.approx([-np.log(128_256)] * 3, rel=1e-7)
    assert found.moments[1].tolist() == [0.0] * 3
    assert [min_k_plus(found.log_probs[[k]], found.moments[:, [k]], 1.0) for k in range(3)] == [0.0] * 3
