"""Parts of packed layers: one that is missing, or does not go with the rest, is named with its layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from letheon.errors import BadInput
from letheon.numerics.grids import CodebookGrid, Grid
from letheon.quantization.reading import read_low_bit
from letheon.quantization.stored_layers import plain, split
from tests.quantization.low_bit import low_bit_model, tiny_llama, written

NAME = "model.layers.1.mlp.down_proj"
HALF: dict[str, Any] = {"scale_dtype": "float16"}
GRIDS: dict[str, Any] = {
    "awq": Grid(bits=4, scheme="asym", group=32, **HALF),
    "bitsandbytes": CodebookGrid("nf4"),
    "compressed_tensors": Grid(bits=4, scheme="asym", group=32),
    "gptq": Grid(bits=4, scheme="asym", group=32, **HALF),
}
PARTS = [
    ("awq", "qzeros"),
    ("awq", "scales"),
    ("gptq", "qzeros"),
    ("gptq", "scales"),
    ("compressed_tensors", "weight_scale"),
    ("compressed_tensors", "weight_shape"),
    ("compressed_tensors", "weight_zero_point"),
    ("bitsandbytes", "weight"),
    ("bitsandbytes", "weight.quant_map"),
    ("bitsandbytes", "weight.quant_state.bitsandbytes__nf4"),
]


def folder_of(name: str, target: Path) -> Path:
    return written(name, low_bit_model(tiny_llama(), GRIDS[name]), target)


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_a_part_that_no_file_holds_is_named(name: str, part: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"{NAME}.{part}"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BadInput, match=rf"out, layer {NAME}: no {part} in any file\. Download the folder again"):
        dict(read_low_bit(folder).tensors())


@pytest.mark.parametrize(
    ("name", "part", "shape", "words"),
    [
        ("gptq", "qzeros", (3, 7), r"qzeros has the shape \(3, 7\), and \(3, 8\) goes with the rest of the layer"),
        ("gptq", "g_idx", (95,), r"g_idx has the shape \(95,\), and \(96,\) goes"),
        ("awq", "qzeros", (2, 8), r"qzeros has the shape \(2, 8\), and \(3, 8\) goes"),
        ("awq", "qweight", (95, 8), "its 3 groups do not go with its 95 inputs"),
        ("compressed_tensors", "weight_packed", (64, 11), "96 codes of 4 bits take 12 words, and 11 are there"),
        ("compressed_tensors", "weight_zero_point", (7, 3), "64 codes of 4 bits take 8 words, and 7 are there"),
        ("compressed_tensors", "weight_shape", (3,), r"weight_shape has the shape \(3,\), and \(2,\) goes"),
    ],
)
def test_a_part_of_another_shape_is_named(
    name: str, part: str, shape: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    folder = folder_of(name, tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    key = f"{NAME}.{part}"
    tensors[key] = torch.zeros(shape, dtype=tensors[key].dtype)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BadInput, match=rf"out, layer {NAME}: {words}"):
        dict(read_low_bit(folder).tensors())


@pytest.mark.parametrize("index", [3, -1])
def test_a_group_beyond_the_scales_is_refused(index: int, tmp_path: Path) -> None:
    folder = folder_of("gptq", tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{NAME}.g_idx"][5] = index
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BadInput, match=rf"layer {NAME}: its 3 groups do not go with its 96 inputs"):
        dict(read_low_bit(folder).tensors())


def test_packed_layers_and_the_rest_are_told_apart(tmp_path: Path) -> None:
    folder = read_low_bit(folder_of("awq", tmp_path / "out")).folder
    layers, others = split(folder, "qweight", ("qweight", "qzeros", "scales"))
    assert len(layers) == 14 and NAME in [layer.name for layer in layers]
    assert sorted(others) == sorted(name for name in folder.tensors if "proj" not in name)
    assert [name for name, _ in plain(folder, others)] == others


def test_buffers_of_whole_numbers_are_left_out(tmp_path: Path) -> None:
    folder = folder_of("awq", tmp_path / "out")
    mask = {"model.layers.0.mask": torch.ones(2, 2, dtype=torch.bool)}
    save_file({**load_file(folder / "model.safetensors"), **mask}, folder / "model.safetensors")
    assert "model.layers.0.mask" not in dict(read_low_bit(folder).tensors())
