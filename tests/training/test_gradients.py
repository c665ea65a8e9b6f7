"""Counts first, one division: eight batches of one are one batch of eight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from letheon.data.batches import Batch
from letheon.training.gradients import MeanGradient, MeanLoss, clip, global_norm, take
from letheon.training.losses import Body, TokenLoss
from tests.toys import bits, gpt2_double, llama, micro_batches, random_examples

EIGHT = random_examples(8, longest=24)


def mean_gradient(model: nn.Module) -> MeanGradient:
    return MeanGradient(TokenLoss(Body(model)), "data", list(model.parameters()))


def test_eight_batches_of_one_are_one_batch_of_eight() -> None:
    model = llama()
    gradient = mean_gradient(model)
    whole = gradient(model, {"data": micro_batches(EIGHT, 8)})
    for size in (1, 3):
        parts = gradient(model, {"data": micro_batches(EIGHT, size)})
        assert parts.figures["data_loss"] == pytest.approx(whole.figures["data_loss"], rel=1e-5)
        for one, other in zip(parts.tensors, whole.tensors, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)
    counts = {len(example.answer_ids) for example in EIGHT}
    assert len(counts) > 3  # otherwise a mean of means would pass as well


def test_the_gradient_is_that_of_the_mean_over_tokens() -> None:
    model = llama()
    [batch] = micro_batches(EIGHT, 8)
    found = mean_gradient(model)(model, {"data": [batch]})
    logits = model(input_ids=batch.ids, attention_mask=batch.attention_mask).logits
    chosen = logits[batch.label_row, batch.label_column]
    wanted = torch.autograd.grad(nn.functional.cross_entropy(chosen, batch.label_ids), list(model.parameters()))
    for one, other in zip(found.tensors, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)


def test_the_gradient_is_the_slope() -> None:
    model = gpt2_double()
    examples = random_examples(5, vocabulary=23)
    gradient = mean_gradient(model)
    parts = {"data": micro_batches(examples, 2)}
    found = gradient(model, parts).tensors
    generator = torch.Generator().manual_seed(3)
    direction = [torch.randn(tensor.shape, dtype=torch.float64, generator=generator) for tensor in found]

    def value(step: float) -> float:
        with torch.no_grad():
            torch._foreach_add_(list(model.parameters()), direction, alpha=step)
        result = gradient(model, parts).figures["data_loss"]
        with torch.no_grad():
            torch._foreach_add_(list(model.parameters()), direction, alpha=-step)
        return result

    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    assert slope == pytest.approx(sum(float((a * b).sum()) for a, b in zip(found, direction, strict=True)), rel=1e-6)


def test_taking_empties_and_fills_with_zeros() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3, 2))
    (used * 2).sum().backward()
    taken = take([used, unused])
    assert taken[0].tolist() == [2.0, 2.0] and torch.equal(taken[1], torch.zeros(3, 2))
    assert used.grad is None and unused.grad is None


def test_a_second_call_starts_from_nothing() -> None:
    model = llama()
    gradient = mean_gradient(model)
    parts = {"data": micro_batches(EIGHT, 8)}
    first, second = gradient(model, parts), gradient(model, parts)
    assert all(bits(one) == bits(other) for one, other in zip(first.tensors, second.tensors, strict=True))


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_loss_alone_is_the_value_whose_gradient_it_is(size: int) -> None:
    model = llama()
    parts = {"data": micro_batches(EIGHT, size)}
    value = MeanLoss(TokenLoss(Body(model)), "data")(model, parts)
    assert value.shape == () and not value.requires_grad
    assert float(value) == pytest.approx(mean_gradient(model)(model, parts).figures["data_loss"], rel=1e-6)
    whole = MeanLoss(TokenLoss(Body(model)), "data")(model, {"data": micro_batches(EIGHT, 8)})
    assert float(value) == pytest.approx(float(whole), rel=1e-5)  # counts first: not a mean of means


def test_the_loss_of_one_token_is_that_tokens() -> None:
    model = llama()
    [batch] = micro_batches(random_examples(1, labelled=1), 1)
    logits = model(input_ids=batch.ids, attention_mask=batch.attention_mask).logits.detach()
    wanted = nn.functional.cross_entropy(logits[batch.label_row, batch.label_column], batch.label_ids)
    assert float(MeanLoss(TokenLoss(Body(model)), "data")(model, {"data": [batch]})) == pytest.approx(float(wanted))


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in ((3, 4), (5,), (2, 2, 2))]


def test_the_norm_is_that_of_one_long_vector() -> None:
    made = tensors()
    long = torch.cat([tensor.flatten() for tensor in made]).double()
    norm = global_norm(made)
    assert norm.shape == () and norm.dtype == torch.float32
    assert float(norm) == pytest.approx(float(long.norm()), rel=1e-6)


def test_clipping_scales_all_alike_and_only_above_the_limit() -> None:
    made, before = tensors(), tensors()
    norm = global_norm(made)
    clip(made, norm, float(norm) * 1.01)
    clip(made, norm, None)
    assert all(bits(one) == bits(other) for one, other in zip(made, before, strict=True))
    clip(made, norm, 0.5)
    assert float(global_norm(made)) == pytest.approx(0.5, rel=1e-6)
    for one, other in zip(made, before, strict=True):
        torch.testing.assert_close(one, other * (0.5 / norm))


def test_the_hessian_times_a_direction_is_the_change_of_the_slope_along_it() -> None:
    model = gpt2_double()
    gradient = mean_gradient(model)
    parts = {"data": micro_batches(random_examples(5, vocabulary=23), 2)}
    generator = torch.Generator().manual_seed(3)
    direction = [torch.randn(weight.shape, generator=generator, dtype=torch.float64) for weight in model.parameters()]
    found = gradient.times_hessian(model, parts, direction)

    def slope_at(distance: float) -> list[Tensor]:
        with torch.no_grad():
            for weight, along in zip(model.parameters(), direction, strict=True):
                weight.add_(along, alpha=distance)
        tensors = gradient(model, parts).tensors
        with torch.no_grad():
            for weight, along in zip(model.parameters(), direction, strict=True):
                weight.sub_(along, alpha=distance)
        return tensors

    for one, above, below in zip(found, slope_at(1e-5), slope_at(-1e-5), strict=True):
        torch.testing.assert_close(one, (above - below) / 2e-5, rtol=1e-4, atol=1e-6)
    assert float(global_norm(found)) > 0.01


def test_weights_that_have_no_part_in_the_loss_get_zeros() -> None:
    """Such as those behind the layer that a term looks at, when gradients are made of some weights after others."""
    model: Any = llama()
    model.requires_grad_(False)
    head = model.model.norm.weight.requires_grad_(True)

    class FirstLayer:
        def __call__(self, model: Any, batch: Batch) -> tuple[torch.Tensor, int]:
            return model.model.embed_tokens(batch.ids).square().sum(), 1

        def count(self, batch: Batch) -> int:
            return 1

    found = MeanGradient(FirstLayer(), "forget", [head])(model, {"forget": micro_batches(random_examples(2), 2)})
    assert not found.tensors[0].any() and found.figures["forget_loss"] > 0
