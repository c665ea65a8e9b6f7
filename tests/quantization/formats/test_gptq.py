"""GPTQ files: words against a loop over single bits, the zero point less one, groups by index, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from letheon.errors import BadInput
from letheon.methods import build
from letheon.numerics.grids import Grid, dequantize, quantize
from letheon.quantization.reading import load_low_bit, read_low_bit
from tests.architectures.models import saved
from tests.quantization.low_bit import config_of, in_memory, low_bit_model, plan_of, same_bits, tiny_llama, written
from tests.quantization.test_packing import by_single_bits
from tests.toys import bits

NAME = "model.layers.1.mlp.down_proj"
HALF: dict[str, Any] = {"scale_dtype": "float16"}


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("checkpoint", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("group", ["row", 32])
@pytest.mark.parametrize("scheme", ["sym", "sym_clipped", "sym_centred", "asym"])
@pytest.mark.parametrize("width", [2, 3, 4, 8])
def test_every_part_of_a_layer_is_stored_as_the_layout_says(
    width: int, scheme: str, group: str | int, checkpoint: str, tmp_path: Path
) -> None:
    grid = Grid(bits=width, scheme=scheme, group=group, **HALF)  # type: ignore[arg-type]
    model = low_bit_model(tiny_llama(), grid)
    folder = written({"name": "gptq", "checkpoint": checkpoint}, model, tmp_path / "out")
    found, layer = tensors_of(folder), model.layers[NAME]
    offset = 0 if scheme in ("asym", "sym_centred") else 2 ** (width - 1)
    codes, zeros = layer.codes + offset, layer.zero + offset
    less = 1 if checkpoint == "gptq" else 0
    assert found[f"{NAME}.qweight"].shape == (96 * width // 32, 64)
    columns = [by_single_bits(row, width) for row in codes.tolist()]  # a row of W is a column of qweight
    assert found[f"{NAME}.qweight"].T.tolist() == columns
    lines = [[(int(zero) - less) % 2**width for zero in group_of_all] for group_of_all in zeros.T]
    assert found[f"{NAME}.qzeros"].tolist() == [by_single_bits(line, width) for line in lines]
    assert found[f"{NAME}.scales"].dtype == torch.float16
    assert torch.equal(found[f"{NAME}.scales"].T.float(), layer.scale)
    size = 96 if group == "row" else 32
    assert found[f"{NAME}.g_idx"].tolist() == [j // size for j in range(96)]
    assert found[f"{NAME}.g_idx"].dtype == torch.int32
    assert same_bits(load_low_bit(folder).state_dict(), in_memory(tiny_llama(), model).state_dict())


def test_a_zero_point_of_zero_wraps_to_fifteen_and_comes_back(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=4, scheme="asym", **HALF))
    weight = dequantize(model.layers[NAME]).abs()  # no weight below 0
    layer = quantize(weight, Grid(bits=4, scheme="asym", **HALF))
    assert layer.zero.unique().tolist() == [0]
    model = replace(model, layers={**model.layers, NAME: layer})
    folder = written("gptq", model, tmp_path / "out")
    assert tensors_of(folder)[f"{NAME}.qzeros"].unique().tolist() == [-1]  # fifteen in every nibble
    assert bits(dict(read_low_bit(folder).tensors())[f"{NAME}.weight"]) == bits(dequantize(layer))
    plain = written({"name": "gptq", "checkpoint": "gptq_v2"}, model, tmp_path / "plain")
    assert tensors_of(plain)[f"{NAME}.qzeros"].unique().tolist() == [0]


def test_a_symmetric_solution_is_eight_steps_up_with_a_stored_zero_of_seven(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=4, group=32, **HALF))
    found = tensors_of(written("gptq", model, tmp_path / "out"))
    assert found[f"{NAME}.qzeros"].unique().tolist() == [0x77777777]
    lowest = found[f"{NAME}.qweight"][0] & 15
    assert torch.equal(lowest, model.layers[NAME].codes[:, 0].int() + 8)


def test_the_configuration_says_what_was_packed(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=4, group=32, **HALF))
    expected = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": 4,
        "group_size": 32,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
    }
    assert config_of(written("gptq", model, tmp_path / "a"))["quantization_config"] == expected
    row = low_bit_model(tiny_llama(), Grid(bits=3, scheme="asym", **HALF))
    found = config_of(written("gptq", row, tmp_path / "b"))["quantization_config"]
    assert found == {**expected, "bits": 3, "group_size": -1, "sym": False}


def test_groups_of_inputs_that_do_not_lie_side_by_side(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=4, group=32, **HALF))
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    layer = replace(model.layers[NAME], group_index=(torch.arange(96) // 32)[order].to(torch.int32))
    model = replace(model, layers={**model.layers, NAME: layer})
    build("format", "gptq").check(plan_of(model, layer.grid, has_group_index=True))
    folder = written("gptq", model, tmp_path / "out")
    assert config_of(folder)["quantization_config"]["desc_act"] is True
    assert torch.equal(tensors_of(folder)[f"{NAME}.g_idx"], layer.group_index)  # type: ignore[arg-type]
    assert bits(dict(read_low_bit(folder).tensors())[f"{NAME}.weight"]) == bits(dequantize(layer))
    assert bits(dequantize(layer)) != bits(dequantize(replace(layer, group_index=None)))


def test_a_folder_without_index_is_read_as_neighbours(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=4, group=32, **HALF))
    folder = written("gptq", model, tmp_path / "out")
    kept = {name: tensor for name, tensor in tensors_of(folder).items() if not name.endswith("g_idx")}
    before = dict(read_low_bit(folder).tensors())
    save_file(kept, folder / "model.safetensors")
    assert same_bits(dict(read_low_bit(folder).tensors()), before)


def test_layers_left_dense_are_excepted_by_name(tmp_path: Path) -> None:
    whole = low_bit_model(tiny_llama(), Grid(bits=4, group=32, **HALF))
    layers = {name: layer for name, layer in whole.layers.items() if name != NAME}
    dense = {f"{NAME}.weight": dequantize(whole.layers[NAME])}
    folder = written("gptq", replace(whole, layers=layers, others={**whole.others, **dense}), tmp_path / "out")
    dynamic = config_of(folder)["quantization_config"]["dynamic"]
    assert dynamic == {r"-:^model\.layers\.1\.mlp\.down_proj$": {}}
    assert same_bits(load_low_bit(folder).state_dict(), in_memory(tiny_llama(), whole).state_dict())


def test_layers_of_several_grids_are_refused(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=4, group=32, **HALF))
    other = quantize(dequantize(model.layers[NAME]), Grid(bits=8, **HALF))
    with pytest.raises(
        BadInput, match=rf"layer {NAME} has bits 8, group_size -1, sym True, and layers before it bits 4"
    ):
        build("format", "gptq").write(replace(model, layers={**model.layers, NAME: other}), tmp_path)


@pytest.mark.parametrize(
    ("name", "grid", "words"),
    [
        ("tiny", Grid(bits=5, **HALF), "no layout for 5 bits .it has: 2, 3, 4, 8.*--format compressed_tensors"),
        ("tiny", Grid(bits=4), "stores scales as float16 here, and the grid has them in float32"),
        ("llama", Grid(bits=4, **HALF), r"layer model\.layers\.0\.mlp\.gate_proj and 3 others have 48 outputs"),
        ("llama", Grid(bits=4, **HALF), r"layer model\.layers\.0\.mlp\.down_proj and 1 others have 48 inputs"),
        ("gpt2", Grid(bits=4, **HALF), r"stored as \(in, out\)"),
    ],
)
def test_what_the_file_cannot_hold_is_refused_before(name: str, grid: Grid, words: str) -> None:
    model = low_bit_model(tiny_llama() if name == "tiny" else saved(name), Grid(bits=4))
    with pytest.raises(BadInput, match=words):
        build("format", "gptq").check(plan_of(model, grid))


@pytest.mark.parametrize(
    ("factor", "words"), [(1e7, "is beyond the largest float16, 65504"), (1e-8, "is 0 as float16")]
)
def test_scales_beyond_float16_are_refused_with_the_layer(factor: float, words: str, tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=4, group=32, **HALF))
    layer = replace(model.layers[NAME], scale=model.layers[NAME].scale * factor)
    with pytest.raises(BadInput, match=rf"layer {NAME}: a scale of .* {words}"):
        build("format", "gptq").write(replace(model, layers={**model.layers, NAME: layer}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": 5}, "GPTQ files of 5 bits and checkpoint_format 'gptq' are not read. Readable: 2, 3, 4, 8 bits"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' are not read.*gptq and gptq_v2"),
    ],
)
def test_other_files_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = written("gptq", low_bit_model(tiny_llama(), Grid(bits=4, group=32, **HALF)), tmp_path / "out")
    config = config_of(folder)
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=words):
        dict(read_low_bit(folder).tensors())


def test_an_unknown_checkpoint_is_refused() -> None:
    with pytest.raises(BadInput, match=r"gptq\.checkpoint: 'marlin'.*'gptq_v2'"):
        build("format", {"name": "gptq", "checkpoint": "marlin"})
