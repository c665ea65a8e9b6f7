"""The matrices of a decoder: linears, and the experts of a mixture one by one as files have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen3MoeConfig

from letheon.errors import BadInput
from letheon.lowbit.architectures import model_layout
from letheon.lowbit.matrices import block_matrices, decoder_matrices, fused_experts
from letheon.models import as_matrix, decoder_linears, inspect_model, read_tensor
from letheon.numerics.grids import Grid
from letheon.training.straight_through import straight_through
from tests.architectures.models import _BLOCKS, ARCHITECTURES, make_from, make_model, mixture, save_model_folder
from tests.toys import bits


def test_experts_are_what_a_saved_folder_holds_under_these_names(tmp_path: Path) -> None:
    model = mixture(num_local_experts=12)
    folder = inspect_model(save_model_folder(model, tmp_path))
    found = decoder_matrices(model)
    assert len(found) == 2 * (4 + 12 * 3)
    for name, matrix in found.items():
        assert bits(matrix.weight) == bits(read_tensor(folder, f"{name}.weight")), name
    beside = {name.removesuffix(".weight") for name in folder.tensors} - set(found)
    assert {name for name in beside if "layers" in name and "norm" not in name} == {
        f"model.layers.{block}.block_sparse_moe.gate" for block in range(2)
    }


def test_what_is_written_into_a_matrix_is_written_into_the_model() -> None:
    model = mixture()
    for number, (name, matrix) in enumerate(decoder_matrices(model).items()):
        before = model.get_parameter(matrix.parameter).detach().clone()
        matrix.weight.fill_(float(number))
        after = model.get_parameter(matrix.parameter).detach()
        assert int((before != after).sum()) == matrix.weight.numel(), name
    assert bool((model.model.layers[1].mlp.experts.gate_up_proj[3, 48:] == len(decoder_matrices(model)) - 2).all())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_without_experts_they_are_the_linears(name: str) -> None:
    model = make_model(name)
    found = decoder_matrices(model)
    assert list(found) == list(decoder_linears(model)) and not fused_experts(model)
    for layer, module in decoder_linears(model).items():
        assert torch.equal(found[layer].weight, as_matrix(module, module.weight))  # type: ignore[arg-type]
        assert found[layer].is_turned == (name == "gpt2")


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_those_of_the_blocks_are_all_of_them(name: str) -> None:
    model = mixture() if name == "mixtral" else make_model(name)
    blocks = model_layout(model).blocks
    assert [[*block_matrices(model, block)] for block in blocks] == [list(block.layers) for block in blocks]
    assert {layer for block in blocks for layer in block.layers} == set(decoder_matrices(model))


def test_experts_that_are_not_known_are_no_silence() -> None:
    model = make_from(Qwen3MoeConfig(**_BLOCKS, num_experts=4, moe_intermediate_size=16, decoder_sparse_step=1))
    assert fused_experts(model) == [f"model.layers.{block}.mlp.experts" for block in range(2)]
    with pytest.raises(BadInput, match=r"model\.layers\.0\.mlp\.experts holds several matrices.*Mixtral alone"):
        decoder_matrices(model)


def test_no_forward_pass_goes_through_rounded_attention_and_unrounded_experts() -> None:
    with (
        pytest.raises(BadInput, match=r"through: model\.layers\.0\.mlp\.experts.*full precision"),
        straight_through(mixture(), Grid(bits=4)),
    ):
        pass
