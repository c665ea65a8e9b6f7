"""Rounded in place by the grid that was asked for, every architecture, and put back to the bit whatever happens inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import OPTConfig

from letheon.audits.codes import code_figures
from letheon.audits.conditions.quantized import QuantizedWeights
from letheon.errors import BadInput, NotMeasured
from letheon.models import decoder_linears, inspect_model, load_model, stored_name
from letheon.numerics.grids import CodebookGrid, Grid, fake_quantize
from letheon.quantization.pipeline import quantize
from letheon.quantization.reading import inspect_any, load_any
from letheon.runs.progress import Progress
from tests.architectures.models import (
    ARCHITECTURES,
    LINEARS_PER_BLOCK,
    make_from,
    make_model,
    mixture,
    save_model_folder,
    saved,
)
from tests.toys import bits

QUIET = Progress(quiet=True)
CONDITIONS = {
    "int8": QuantizedWeights(bits=8),
    "int4_row": QuantizedWeights(),
    "int4_group": QuantizedWeights(group=16),
    "asym": QuantizedWeights(scheme="asym", bits=3),
    "fp4": QuantizedWeights(levels="fp4"),
    "nf4": QuantizedWeights(levels="nf4"),
}


def state_bits(model: Any) -> dict[str, bytes]:
    return {name: bits(tensor) for name, tensor in model.state_dict().items()}


def by_hand(weight: Tensor) -> Tensor:
    """Symmetric 4 bits, one scale for what multiplies the inputs of one output; loops, on (out, in)."""
    rounded = torch.empty_like(weight)
    for row in range(len(weight)):
        step = weight[row].abs().max() / 7
        rounded[row] = (weight[row] / step).round().clamp(-8, 7) * step
    return rounded


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_is_rounded_by_output_row_and_nothing_else_is(name: str) -> None:
    folder = inspect_model(saved(name))
    model = load_model(folder.path)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with QuantizedWeights().applied(model, folder):
        after = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {f"{layer}.weight" for layer in decoder_linears(model)}
    assert len(changed) == 2 * LINEARS_PER_BLOCK[name]
    for key in changed:
        # Hugging Face's Conv1D holds (in, out): rounding its rows would share a scale among outputs.
        is_transposed = name == "gpt2"
        old, new = (tensor.t() if is_transposed else tensor for tensor in (before[key], after[key]))
        torch.testing.assert_close(new, by_hand(old), rtol=1e-5, atol=1e-8)


def test_each_expert_is_rounded_by_output_row_and_routers_are_kept(tmp_path: Path) -> None:
    folder = inspect_model(save_model_folder(mixture(), tmp_path / "model"))
    model = load_model(folder.path)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with QuantizedWeights().applied(model, folder):
        after = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert state_bits(model) == {key: bits(tensor) for key, tensor in before.items()}
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    experts = {f"model.layers.{block}.mlp.experts.{part}_proj" for block in range(2) for part in ("gate_up", "down")}
    assert changed == experts | {f"{layer}.weight" for layer in decoder_linears(model)}
    for key in experts:
        for old, new in zip(before[key], after[key], strict=True):  # rows of gate and of up have scales of their own
            torch.testing.assert_close(new, by_hand(old), rtol=1e-5, atol=1e-8)


def test_one_scale_of_a_whole_expert_is_that_of_the_file_that_ships(tmp_path: Path) -> None:
    """Gate and up are two layers of the file, whatever tensor memory holds them in."""
    source = save_model_folder(mixture(), tmp_path / "model")
    for settings in ({"bits": 4, "group": "tensor"}, {"levels": "nf4"}):
        made = quantize(
            source, method={"name": "rtn", **settings}, format="dense", out=tmp_path / str(settings), progress=QUIET
        )
        model = load_model(source)
        with QuantizedWeights(**settings).applied(model, inspect_model(source)):
            assert state_bits(model) == state_bits(load_any(made.folder))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_each_setting_reaches_the_grid(condition: str) -> None:
    made = CONDITIONS[condition]
    grid: Grid | CodebookGrid = Grid(bits=made.bits, group=made.group, scheme=made.scheme)
    if made.levels != "uniform":
        grid = CodebookGrid(made.levels)
    folder = inspect_model(saved("llama"))
    model = load_model(folder.path)
    linears: dict[str, Any] = dict(decoder_linears(model))
    expected = {key: fake_quantize(module.weight.detach(), grid) for key, module in linears.items()}
    with made.applied(model, folder):
        for key, module in linears.items():
            assert torch.equal(module.weight.detach(), expected[key])


@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_files_weights_come_back_to_the_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = inspect_model(save_model_folder(make_model(name), tmp_path, dtype=dtype))
    model = load_model(folder.path)
    before = state_bits(model)
    for condition in CONDITIONS.values():
        with condition.applied(model, folder):
            assert state_bits(model) != before
        assert state_bits(model) == before


def test_they_come_back_when_something_goes_wrong_inside() -> None:
    folder = inspect_model(saved("llama"))
    model = load_model(folder.path)
    before = state_bits(model)
    with pytest.raises(ZeroDivisionError), QuantizedWeights().applied(model, folder):
        raise ZeroDivisionError
    assert state_bits(model) == before


def test_a_group_that_does_not_divide_is_not_measured_and_leaves_no_layer_rounded() -> None:
    """The first layers can be rounded (32 inputs), the last one of a block (48) cannot."""
    folder = inspect_model(saved("llama"))
    model = load_model(folder.path)
    before = state_bits(model)
    with (
        pytest.raises(
            NotMeasured, match=r"layer model\.layers\.0\.mlp\.down_proj: a group of 32 does not divide the 48 inputs"
        ),
        QuantizedWeights(group=32).applied(model, folder),
    ):
        raise AssertionError("must not run")
    assert state_bits(model) == before


def test_an_unknown_architecture_is_not_measured_by_name(tmp_path: Path) -> None:
    config = OPTConfig(
        vocab_size=768, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16
    )
    folder = inspect_model(save_model_folder(make_from(config), tmp_path))
    model = load_model(tmp_path)
    before = state_bits(model)
    with (
        pytest.raises(NotMeasured, match="does not know the architecture 'opt'"),
        QuantizedWeights().applied(model, folder),
    ):
        raise AssertionError("must not run")
    assert state_bits(model) == before


def test_a_file_that_leaves_the_bodys_prefix_out_is_read_back(tmp_path: Path) -> None:
    """Published GPT-2 folders name their tensors without `transformer.`."""
    from safetensors.torch import load_file, save_file

    save_model_folder(make_model("gpt2"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    folder = inspect_model(tmp_path)
    assert "h.0.attn.c_attn.weight" in folder.tensors
    model = load_model(tmp_path)
    before = state_bits(model)
    with QuantizedWeights().applied(model, folder):
        assert state_bits(model) != before
    assert state_bits(model) == before
    with pytest.raises(BadInput, match=r"holds no tensor transformer\.h\.9\.attn\.c_attn\.weight"):
        stored_name(folder, "transformer.h.9.attn.c_attn.weight")


def test_the_provenance_says_what_was_done() -> None:
    assert (
        CONDITIONS["int4_row"].provenance == "round to nearest, 4 bits, sym, one scale a row; embeddings and head kept"
    )
    assert "one scale for 16 inputs" in CONDITIONS["int4_group"].provenance
    assert "NF4" in CONDITIONS["nf4"].provenance and "64 weights" in CONDITIONS["nf4"].provenance
    assert "one scale a tensor" in QuantizedWeights(group="tensor").provenance


def test_a_grid_that_does_not_exist_is_refused() -> None:
    for settings in ({"bits": 9}, {"group": 0}, {"bits": 1}):
        with pytest.raises(BadInput):
            QuantizedWeights(**settings)


def test_a_packed_file_is_rounded_from_what_its_codes_stand_for_and_put_back(tmp_path: Path) -> None:
    made = quantize(saved("llama"), out=tmp_path, progress=QUIET).folder
    folder, model = inspect_any(made), load_any(made)
    assert folder.is_packed and not inspect_model(saved("llama")).is_packed
    before = {name: bits(tensor) for name, tensor in model.state_dict().items()}
    weight = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    with QuantizedWeights(bits=2).applied(model, folder):
        assert torch.equal(model.model.layers[0].mlp.up_proj.weight, fake_quantize(weight, Grid(bits=2)))
    assert {name: bits(tensor) for name, tensor in model.state_dict().items()} == before
    figures = code_figures(model, inspect_model(saved("llama")), folder, {"int4": Grid(bits=4)})["int4"]
    assert figures["code_match"] == 1.0, "the packed model is the original on this grid"


def test_a_packed_mixture_is_rounded_and_put_back_too(tmp_path: Path) -> None:
    source = save_model_folder(mixture(), tmp_path / "model")
    made = quantize(source, out=tmp_path / "run", progress=QUIET).folder
    folder, model = inspect_any(made), load_any(made)
    before = state_bits(model)
    down = model.model.layers[1].mlp.experts.down_proj
    weight = down[3].detach().clone()
    with QuantizedWeights(bits=2).applied(model, folder):
        assert torch.equal(down[3], fake_quantize(weight, Grid(bits=2)))
    assert state_bits(model) == before
    figures = code_figures(model, inspect_model(source), folder, {"int4": Grid(bits=4)})["int4"]
    assert figures["code_match"] == 1.0
