"""bitsandbytes' files: bytes against a loop over single nibbles, scales of scales, 8 bits, and what is refused."""

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
from letheon.numerics.grids import CodebookGrid, Grid, dequantize, quantize
from letheon.quantization.reading import load_low_bit, read_low_bit
from tests.architectures.models import saved
from tests.quantization.low_bit import in_memory, low_bit_model, plan_of, same_bits, tiny_llama, written
from tests.toys import bits

NAME = "model.layers.1.mlp.down_proj"
NF4 = [
    -1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.09105, 0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.562617, 0.7229568, 1,
]  # fmt: skip
FP4 = [0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4]


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("table", ["nf4", "fp4"])
@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_every_part_of_a_layer_is_stored_as_the_layout_says(name: str, table: str, tmp_path: Path) -> None:
    source = tiny_llama() if name == "tiny" else saved(name)
    model = low_bit_model(source, CodebookGrid(table))  # type: ignore[arg-type]
    folder = written("bitsandbytes", model, tmp_path / "out")
    found, layer = tensors_of(folder), model.layers[NAME]
    flat = layer.codes.reshape(-1).tolist()
    assert found[f"{NAME}.weight"].dtype == torch.uint8
    assert found[f"{NAME}.weight"].tolist() == [[flat[at] * 16 + flat[at + 1]] for at in range(0, len(flat), 2)]
    assert torch.equal(found[f"{NAME}.weight.absmax"], layer.scale.reshape(-1))
    expected = NF4 if table == "nf4" else FP4 + [-value for value in FP4]
    torch.testing.assert_close(found[f"{NAME}.weight.quant_map"], torch.tensor(expected), rtol=0, atol=1e-7)
    state = json.loads(bytes(found[f"{NAME}.weight.quant_state.bitsandbytes__{table}"].tolist()))
    assert state == {"quant_type": table, "blocksize": 64, "dtype": "float32", "shape": list(layer.codes.shape)}
    assert same_bits(load_low_bit(folder).state_dict(), in_memory(source, model).state_dict())


def test_an_odd_number_of_weights_and_a_last_block_that_is_not_full(tmp_path: Path) -> None:
    from letheon.quantization.formats.bitsandbytes import _packed

    weight = torch.randn(3, 43, generator=torch.Generator().manual_seed(0))
    parts = _packed(quantize(weight, CodebookGrid("nf4")), CodebookGrid("nf4"), "float32")
    assert parts["weight"].shape == (65, 1) and parts["weight.absmax"].shape == (3,)
    assert int(parts["weight"][-1]) % 16 == 0


def test_the_configuration_says_what_was_packed(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(torch.bfloat16), CodebookGrid("nf4"))
    config = json.loads((written("bitsandbytes", model, tmp_path / "out") / "config.json").read_text())
    found = config["quantization_config"]
    assert found["quant_method"] == "bitsandbytes" and found["load_in_4bit"] and not found["load_in_8bit"]
    assert (found["bnb_4bit_quant_type"], found["bnb_4bit_compute_dtype"]) == ("nf4", "bfloat16")
    assert found["llm_int8_skip_modules"] == ["lm_head"]


def test_scales_of_scales_are_read(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), CodebookGrid("nf4"))
    folder = written("bitsandbytes", model, tmp_path / "out")
    found, layer = tensors_of(folder), model.layers[NAME]
    codes = torch.arange(96, dtype=torch.uint8) * 2
    table, scales, offset = torch.linspace(-1, 1, 256), torch.tensor([0.25]), 0.5
    key = f"{NAME}.weight.quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(found[key].tolist())) | {"nested_blocksize": 256, "nested_offset": offset}
    found[key] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    found |= {
        f"{NAME}.weight.absmax": codes,
        f"{NAME}.weight.nested_quant_map": table,
        f"{NAME}.weight.nested_absmax": scales,
    }
    save_file(found, folder / "model.safetensors")
    expected = replace(layer, scale=(table[codes.int()] * 0.25 + offset).unsqueeze(1))
    assert bits(dict(read_low_bit(folder).tensors())[f"{NAME}.weight"]) == bits(dequantize(expected))


def test_eight_bit_files_are_read(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=8))
    folder = written("compressed_tensors", model, tmp_path / "out")
    found = {name: tensor for name, tensor in tensors_of(folder).items() if ".weight_" not in name}
    for name, layer in model.layers.items():
        found[f"{name}.weight"] = layer.codes.to(torch.int8)
        found[f"{name}.SCB"] = layer.scale.reshape(-1) * 127
        found[f"{name}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
    save_file(found, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    again, expected = load_low_bit(folder).state_dict(), in_memory(tiny_llama(), model).state_dict()
    assert again.keys() == expected.keys()
    assert all(torch.allclose(again[name], expected[name], rtol=1e-6, atol=0) for name in again)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (Grid(bits=4), r"no layout for 4 bits \(it has: none of a uniform grid\)"),
        (CodebookGrid("nf4", block=128), "blocks of 64 weights here, and the grid of 128. Use 64"),
    ],
)
def test_what_the_file_cannot_hold_is_refused_before(grid: Any, words: str) -> None:
    model = low_bit_model(tiny_llama(), CodebookGrid("nf4"))
    with pytest.raises(BadInput, match=words):
        build("format", "bitsandbytes").check(plan_of(model, grid))


def test_two_tables_in_one_file_are_refused(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), CodebookGrid("nf4"))
    other = quantize(dequantize(model.layers[NAME]), CodebookGrid("fp4"))
    with pytest.raises(BadInput, match=rf"layer {NAME} has another table than layer model\.layers\.0"):
        build("format", "bitsandbytes").write(replace(model, layers={**model.layers, NAME: other}), tmp_path)


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("weight.quant_state.bitsandbytes__nf4", torch.zeros(3, dtype=torch.uint8), "bitsandbytes__nf4 is damaged"),
        ("weight", torch.zeros(7, 1, dtype=torch.uint8), "7 bytes are not the 64 x 96 codes of its state"),
        ("weight.absmax", torch.zeros(7), r"weight\.absmax has the shape \(7,\), and \(96,\) goes with"),
    ],
)
def test_what_is_damaged_is_refused_with_the_layer(part: str, value: Tensor, words: str, tmp_path: Path) -> None:
    folder = written("bitsandbytes", low_bit_model(tiny_llama(), CodebookGrid("nf4")), tmp_path / "out")
    save_file({**tensors_of(folder), f"{NAME}.{part}": value}, folder / "model.safetensors")
    with pytest.raises(BadInput, match=rf"layer {NAME}: .*{words}"):
        dict(read_low_bit(folder).tensors())
