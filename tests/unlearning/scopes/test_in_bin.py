"""The sham: after any steps the rounded model is the rounded original, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from letheon.errors import BadInput
from letheon.models import as_matrix, decoder_linears
from letheon.numerics.grids import Grid, code_match, fake_quantize
from letheon.training.gradients import Gradients, Parts
from letheon.training.loop import Loop, OptimizerSettings, run_loop
from letheon.training.rates.constant import Constant
from letheon.unlearning.scopes.in_bin import InBin
from tests.architectures.models import ARCHITECTURES, make_model
from tests.toys import bits


def random_gradient(model: Any, parts: Parts) -> Gradients:
    generator = torch.Generator().manual_seed(int(parts["step"][0]))  # type: ignore[call-overload]
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Gradients([torch.randn(parameter.shape, generator=generator) for parameter in moving], {})


def run(model: Any, scope: InBin, *, steps: int = 12) -> None:
    moving = scope.select(model)
    state = scope.init(model, moving)
    run_loop(
        Loop(
            model=model,
            moving=moving,
            gradient=random_gradient,
            parts=lambda step: {"step": [step]},  # type: ignore[list-item]
            steps=steps,
            optimizer=OptimizerSettings(learning_rate=0.02, weight_decay=0.1),
            rate=Constant(),
            after_step=lambda parameters: scope.after_step(parameters, state),
            memory=state,
        )
    )


def matrices(model: Any) -> dict[str, torch.Tensor]:
    return {name: as_matrix(module, module.weight.detach()) for name, module in decoder_linears(model).items()}


@pytest.mark.parametrize("bits_of_grid", [3, 4, 8])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_code_stays_and_the_rounded_weights_are_bit_equal(name: str, bits_of_grid: int) -> None:
    original, model = make_model(name), make_model(name)
    run(model, InBin(bits=bits_of_grid))
    grid = Grid(bits=bits_of_grid, group="row")
    moved = 0
    for layer, after in matrices(model).items():
        before = matrices(original)[layer]
        assert code_match(before, after, grid) == 1.0, layer
        assert bits(fake_quantize(after, grid)) == bits(fake_quantize(before, grid)), layer
        moved += int((before != after).sum())
    assert moved > 0.5 * sum(matrix.numel() for matrix in matrices(model).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits_of_grid", [4, 8])
def test_a_file_of_16_bits_carries_no_weight_over_an_edge(dtype: torch.dtype, bits_of_grid: int) -> None:
    original, model = (make_model("llama").to(dtype).float() for _ in range(2))
    run(model, InBin(bits=bits_of_grid))
    stored = copy.deepcopy(model).to(dtype).float()
    grid = Grid(bits=bits_of_grid)
    for layer, before in matrices(original).items():
        after = matrices(stored)[layer]
        assert code_match(before, after, grid) == 1.0, layer
        assert bits(fake_quantize(after, grid)) == bits(fake_quantize(before, grid)), layer
        if bits_of_grid == 4:  # at 8 bits a bin is hardly wider than bfloat16's own step
            assert float((before != after).float().mean()) > 0.5


def test_without_the_scope_the_same_steps_change_the_codes() -> None:
    original, model = make_model("llama"), make_model("llama")

    class Free(InBin):
        def after_step(self, moving: Any, state: Any) -> None: ...

    run(model, Free())
    before, after = matrices(original), matrices(model)
    assert all(code_match(before[layer], after[layer], Grid()) < 0.9 for layer in before)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_only_the_decoders_matrices_move_and_the_largest_of_a_row_stays(name: str) -> None:
    original, model = make_model(name), make_model(name)
    moving = InBin().select(model)
    layers = decoder_linears(model)
    assert sorted(moving) == sorted(f"{layer}.weight" for layer in layers)
    assert all(dict(model.named_parameters())[key] is parameter for key, parameter in moving.items())
    run(model, InBin(), steps=3)
    for key, parameter in model.named_parameters():
        if key not in moving:
            assert bits(parameter) == bits(original.get_parameter(key)), key
    for layer, after in matrices(model).items():
        before = matrices(original)[layer]
        at = before.abs().argmax(dim=1, keepdim=True)
        assert torch.equal(after.gather(1, at), before.gather(1, at))


def test_a_weight_keeps_its_distance_from_the_edge() -> None:
    original, model = make_model("llama"), make_model("llama")
    run(model, InBin(bits=4, margin=0.25))
    for layer, after in matrices(model).items():
        before = matrices(original)[layer]
        largest = before.abs().amax(dim=1, keepdim=True)
        step = largest / 7
        in_steps = (after / step - (before / step).round()).abs()
        assert float(in_steps[before.abs() < largest].max()) <= 0.25 + 1e-4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"margin": 0.5}, r"in_bin needs 0 < margin < 0\.5, got 0\.5"),
        ({"margin": 0.0}, r"in_bin needs 0 < margin < 0\.5, got 0\.0"),
        ({"bits": 16}, r"in_bin needs bits from 2 to 8, got 16"),
        ({"bits": 1}, r"in_bin needs bits from 2 to 8, got 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        InBin(**settings)
