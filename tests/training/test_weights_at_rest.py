"""A weight is rounded once for all micro-batches of a gradient, and again as soon as anything may have moved it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from letheon.lowbit.low_bit_pass import Basis, pass_named
from letheon.models import decoder_linears
from letheon.numerics.grids import Grid, fake_quantize
from letheon.training import straight_through as module
from letheon.training.gradients import MeanGradient, MeanLoss
from letheon.training.losses import Body, TokenLoss
from letheon.training.straight_through import at_rest, straight_through, trained_through
from tests.architectures.models import make_model
from tests.toys import bits, micro_batches, random_examples

EXAMPLES = random_examples(6)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each matrix that is rounded."""
    found: list[int] = []

    def count(weight: Any, grid: Any) -> Any:
        found.append(weight.numel())
        return fake_quantize(weight, grid)

    monkeypatch.setattr(module, "fake_quantize", count)
    return found


def gradient_of(model: Any, size: int, counted: list[int] | None = None) -> list[bytes]:
    model.requires_grad_(True)
    loss = TokenLoss(Body(model))  # which asks the model a question of its own
    if counted is not None:
        counted.clear()
    found = MeanGradient(loss, "data", list(model.parameters()))(model, {"data": micro_batches(EXAMPLES, size)})
    return [bits(tensor) for tensor in found.tensors]


@pytest.mark.parametrize("name", ["llama_tied", "gpt2"])
def test_micro_batches_share_what_is_rounded_and_nothing_changes(
    name: str, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(name)
    linears = len(decoder_linears(model))
    with trained_through(model, pass_named("w4a4kv4"), Basis()):
        found = gradient_of(model, 1, counted)
        assert len(counted) == linears
        monkeypatch.setattr(module._Kept, "begin", lambda self: None)
        assert gradient_of(model, 1, counted) == found
        assert len(counted) == 6 * linears


def test_whatever_moves_a_weight_between_gradients_is_seen(counted: list[int]) -> None:
    """Writing into .data tells nobody, which a count of versions would believe."""
    model, other = make_model("llama"), make_model("llama")
    weight = next(iter(decoder_linears(model).values())).weight
    with straight_through(model, Grid(bits=4)):
        before = gradient_of(model, 2)
        weight.data.mul_(-1)
        after = gradient_of(model, 2)
    next(iter(decoder_linears(other).values())).weight.data.mul_(-1)
    with straight_through(other, Grid(bits=4)):
        assert gradient_of(other, 2) == after != before


def test_losses_share_too_and_outside_nothing_is_kept(counted: list[int]) -> None:
    model = make_model("llama")
    linears = len(decoder_linears(model))
    with straight_through(model, Grid(bits=4)):
        loss = MeanLoss(TokenLoss(Body(model)), "data")
        counted.clear()
        loss(model, {"data": micro_batches(EXAMPLES, 1)})
        assert len(counted) == linears
        counted.clear()
        for _ in range(2):
            model(input_ids=torch.arange(2, 8)[None])
        assert len(counted) == 2 * linears
        with pytest.raises(ZeroDivisionError), at_rest(model):
            raise ZeroDivisionError
        counted.clear()
        model(input_ids=torch.arange(2, 8)[None])
        assert len(counted) == linears
    assert module._KEPT not in vars(model)
    with at_rest(model):  # a model that goes through no grid
        pass
