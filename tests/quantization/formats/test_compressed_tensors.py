"""compressed-tensors: every part of a layer against its own package, what transformers loads, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from letheon.errors import BadInput
from letheon.methods import build
from letheon.numerics.grids import Grid, Quantized, dequantize, quantize
from letheon.quantization.packing import pack
from letheon.quantization.reading import load_low_bit, read_low_bit
from tests.architectures.models import ARCHITECTURES, saved
from tests.quantization.low_bit import (
    config_of,
    edit_config,
    in_memory,
    low_bit_model,
    plan_of,
    same_bits,
    tiny_llama,
    written,
)
from tests.quantization.test_packing import by_single_bits, ten_to_a_word
from tests.toys import bits

pytest.importorskip("compressed_tensors")
NAME = "model.layers.1.mlp.down_proj"
REINSTATED = "ignore:You passed `quantization_config` or equivalent:UserWarning"
"""transformers says so of the very line that it documents for asymmetric files."""


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("group", ["row", "tensor", 32])
@pytest.mark.parametrize("scheme", ["sym", "sym_clipped", "sym_centred", "asym"])
@pytest.mark.parametrize("width", [2, 3, 4, 5, 8])
def test_every_part_of_a_layer_is_stored_as_the_layout_says(
    width: int, scheme: str, group: str | int, tmp_path: Path
) -> None:
    grid = Grid(bits=width, scheme=scheme, group=group)  # type: ignore[arg-type]
    model = low_bit_model(tiny_llama(), grid)
    found = tensors_of(written("compressed_tensors", model, tmp_path / "out"))
    layer = model.layers[NAME]
    offset = 0 if scheme in ("asym", "sym_centred") else 2 ** (width - 1)
    assert found[f"{NAME}.weight_packed"].tolist() == [
        by_single_bits([code + offset for code in row], width) for row in layer.codes.tolist()
    ]
    assert found[f"{NAME}.weight_shape"].tolist() == [64, 96] and found[f"{NAME}.weight_shape"].dtype == torch.int64
    assert torch.equal(found[f"{NAME}.weight_scale"], layer.scale.expand(64, layer.scale.shape[1]))
    if scheme == "asym":
        zero = layer.zero.expand(64, layer.zero.shape[1])
        packed = [by_single_bits([int(number) for number in column], width) for column in zero.T]
        assert found[f"{NAME}.weight_zero_point"].T.tolist() == packed
    else:
        assert f"{NAME}.weight_zero_point" not in found
    assert f"{NAME}.weight" not in found and found["lm_head.weight"].dtype == torch.float32


def test_its_package_compresses_the_rounded_weights_to_the_same_parts(tmp_path: Path) -> None:
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    model = low_bit_model(tiny_llama(), Grid(bits=4, scheme="asym", group=32))
    folder = written("compressed_tensors", model, tmp_path / "out")
    layer = model.layers[NAME]
    group = config_of(folder)["quantization_config"]["config_groups"]["group_0"]
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**group["weights"]))
    state = {
        "weight": dequantize(layer),
        "weight_scale": layer.scale,
        "weight_zero_point": (layer.zero - 8).to(torch.int8),
    }
    theirs = PackedQuantizationCompressor.compress(state, scheme)
    ours = tensors_of(folder)
    assert len(theirs) == 4 and all(torch.equal(ours[f"{NAME}.{part}"], value) for part, value in theirs.items())


def test_the_configuration_says_what_was_packed(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=4, group=32))
    folder = written("compressed_tensors", model, tmp_path / "out")
    assert config_of(folder)["quantization_config"] == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": 32,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
        },
        "kv_cache_scheme": None,
    }
    assert "dequantize=True" not in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "gpt2"])
def test_transformers_loads_every_architecture_with_equal_logits(name: str, tmp_path: Path) -> None:
    model = low_bit_model(saved(name), Grid(bits=4, group=16))
    folder = written("compressed_tensors", model, tmp_path / "out")
    ids = torch.arange(2, 40).unsqueeze(0)
    with torch.no_grad():
        expected = in_memory(saved(name), model)(ids).logits
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, expected)
        assert torch.equal(load_low_bit(folder)(ids).logits, expected)


def test_layers_of_several_grids_and_layers_left_dense_go_into_one_file(tmp_path: Path) -> None:
    whole = low_bit_model(saved("llama"), Grid(bits=4, group=16))
    layers = dict(whole.layers)
    dense = {}
    for name in list(layers):
        if name.endswith("down_proj"):
            layers[name] = quantize(dequantize(layers[name]), Grid(bits=8))
        if name.endswith("v_proj"):
            dense[f"{name}.weight"] = dequantize(layers.pop(name))
    model = replace(whole, layers=layers, others={**whole.others, **dense})
    folder = written("compressed_tensors", model, tmp_path / "out")
    config = config_of(folder)["quantization_config"]
    assert config["ignore"] == ["lm_head", "model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.v_proj"]
    assert [group["weights"]["num_bits"] for group in config["config_groups"].values()] == [4, 8]
    ids = torch.arange(2, 40).unsqueeze(0)
    with torch.no_grad():
        expected = load_low_bit(folder)(ids).logits
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, expected)
    read = dict(read_low_bit(folder).tensors())
    assert bits(read[f"{NAME}.weight"]) == bits(dequantize(layers[NAME]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.filterwarnings(REINSTATED)
def test_sixteen_bit_models_decompress_to_the_weights_that_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    from transformers import CompressedTensorsConfig

    name = str(dtype).removeprefix("torch.")
    model = low_bit_model(tiny_llama(dtype), Grid(bits=4, group=32, scale_dtype=name))  # type: ignore[arg-type]
    folder = written("compressed_tensors", model, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    read = dict(read_low_bit(folder).tensors())
    assert {tensor.dtype for tensor in read.values()} == {dtype}
    assert same_bits(read, {name: tensor for name, tensor in loaded.state_dict().items() if name in read})
    assert bits(read[f"{NAME}.weight"]) == bits(dequantize(model.layers[NAME]))


@pytest.mark.filterwarnings(REINSTATED)
@pytest.mark.parametrize("width", [3, 4])
def test_asymmetric_files_need_the_line_on_their_card(width: int, tmp_path: Path) -> None:
    from transformers import CompressedTensorsConfig

    model = low_bit_model(tiny_llama(), Grid(bits=width, scheme="asym", group=32))
    folder = written("compressed_tensors", model, tmp_path / "out")
    assert "CompressedTensorsConfig(dequantize=True)" in (folder / "README.md").read_text()
    line = CompressedTensorsConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=line)
    assert same_bits(loaded.state_dict(), in_memory(tiny_llama(), model).state_dict())


def test_asymmetric_files_do_not_load_by_default_yet(tmp_path: Path) -> None:
    """When this fails, transformers opens them as they are: the card and the docstring may say so."""
    model = low_bit_model(tiny_llama(), Grid(bits=4, scheme="asym", group=32))
    folder = written("compressed_tensors", model, tmp_path / "out")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_files_of_other_writers_are_read(tmp_path: Path) -> None:
    """Ten 3-bit codes to a word, zero points of a byte each, groups by index, weights of whole numbers."""
    model = low_bit_model(tiny_llama(), Grid(bits=3, scheme="asym", group=32))
    folder = written("compressed_tensors", model, tmp_path / "old")
    found, layer = tensors_of(folder), model.layers[NAME]
    expected = dequantize(layer)
    found[f"{NAME}.weight_packed"] = torch.tensor(
        [ten_to_a_word(row) for row in layer.codes.tolist()], dtype=torch.int32
    )
    found[f"{NAME}.weight_zero_point"] = torch.tensor(
        [ten_to_a_word([int(zero) for zero in column]) for column in layer.zero.T], dtype=torch.int32
    ).T.contiguous()
    save_file(found, folder / "model.safetensors")
    assert bits(dict(read_low_bit(folder).tensors())[f"{NAME}.weight"]) == bits(expected)
    found[f"{NAME}.weight_packed"] = pack(layer.codes, 3)
    found[f"{NAME}.weight_zero_point"] = (layer.zero - 4).to(torch.int8)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    found[f"{NAME}.weight_g_idx"] = (torch.arange(96) // 32)[order].to(torch.int32)
    save_file(found, folder / "model.safetensors")
    index = replace(layer, group_index=found[f"{NAME}.weight_g_idx"])
    assert bits(dict(read_low_bit(folder).tensors())[f"{NAME}.weight"]) == bits(dequantize(index))


@pytest.mark.parametrize("group", ["row", "tensor"])
def test_weights_of_whole_numbers_are_read(group: str, tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=8, group=group))  # type: ignore[arg-type]
    folder = written("compressed_tensors", model, tmp_path / "out")
    found = {name: tensor for name, tensor in tensors_of(folder).items() if ".weight_" not in name}
    for name, layer in model.layers.items():
        found[f"{name}.weight"] = layer.codes.to(torch.int8)
        found[f"{name}.weight_scale"] = layer.scale.reshape(-1) if group == "tensor" else layer.scale
    save_file(found, folder / "model.safetensors")
    edit_config(folder, format="int-quantized")
    assert same_bits(load_low_bit(folder).state_dict(), in_memory(tiny_llama(), model).state_dict())


def test_what_is_not_this_model_without_the_rest_is_refused(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=4, group=32))
    folder = written("compressed_tensors", model, tmp_path / "out")
    group = config_of(folder)["quantization_config"]["config_groups"]["group_0"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"format": "nvfp4-pack-quantized"}, r"'nvfp4-pack-quantized' is not read\. Readable: pack-quantized, int-"),
        (
            {"kv_cache_scheme": {"num_bits": 8}, "format": "pack-quantized"},
            "has kv_cache_scheme with type None, which is not run here",
        ),
        (
            {"transform_config": {"config_groups": {}}, "kv_cache_scheme": None},
            "has transform_config, which is not run here, and its weights alone are not this model",
        ),
        (
            {"config_groups": {"g": {**group, "input_activations": {"num_bits": 8}}}, "transform_config": None},
            "has input_activations with type None",
        ),
        ({"config_groups": {"g": {**group, "targets": ["Conv"]}}}, r"layer model\.layers\.0.*: no group .* names it"),
        (
            {"config_groups": {"g": {**group, "weights": {"num_bits": 4, "type": "float"}}}},
            r"layer model\.layers\.0.*: has float codes of 4 bits\. Readable: whole numbers of 2 to 8 bits",
        ),
    ]
    for changes, words in cases:
        edit_config(folder, **changes)
        with pytest.raises(BadInput, match=words):
            dict(read_low_bit(folder).tensors())


def test_groups_may_name_their_layers_by_pattern(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=4, group=32))
    folder = written("compressed_tensors", model, tmp_path / "out")
    before = dict(read_low_bit(folder).tensors())
    group = config_of(folder)["quantization_config"]["config_groups"]["group_0"]
    edit_config(folder, config_groups={"g": {**group, "targets": [r"re:.*self_attn.*", r"re:.*mlp.*"]}})
    assert same_bits(dict(read_low_bit(folder).tensors()), before)


@pytest.mark.parametrize(
    ("grid", "changes", "words"),
    [
        (Grid(bits=16), {}, "16 bits has no codes"),
        (Grid(scale_dtype="float16"), {"has_group_index": True}, "no place for groups of inputs"),
        (Grid(), {"online": ("R3", "R4")}, "rounds queries too where it rotates keys"),
        (Grid(group=40), {}, r"layer model\.layers\.0\.self_attn\.q_proj and 11 others have 64 inputs, and a group of"),
    ],
)
def test_what_the_file_cannot_hold_is_refused_before(grid: Grid, changes: dict[str, Any], words: str) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=4))
    with pytest.raises(BadInput, match=words):
        build("format", "compressed_tensors").check(plan_of(model, grid, **changes))


def test_scales_that_the_model_s_dtype_does_not_hold_are_refused_before_and_when_written(tmp_path: Path) -> None:
    source = tiny_llama(torch.bfloat16)
    model = low_bit_model(source, Grid(bits=4, group=32))
    writer = build("format", "compressed_tensors")
    with pytest.raises(BadInput, match="stores scales as bfloat16 here, and the grid has them in float32"):
        writer.check(plan_of(model, Grid(bits=4, group=32)))
    pretending: dict[str, Quantized] = {
        name: replace(layer, grid=Grid(bits=4, group=32, scale_dtype="bfloat16"))
        for name, layer in model.layers.items()
    }
    with pytest.raises(
        BadInput, match=r"layer model\.layers\.0\.self_attn\.q_proj: a scale of .* would be rounded to bfl"
    ):
        writer.write(replace(model, layers=pretending), tmp_path)


def test_gpt2_is_refused_by_name(tmp_path: Path) -> None:
    model = low_bit_model(saved("gpt2"), Grid(bits=4))
    with pytest.raises(BadInput, match=r"layer transformer\.h\.0\.attn\.c_attn and 7 others are stored as \(in, out\)"):
        written("compressed_tensors", model, tmp_path / "out")
    with pytest.raises(BadInput, match=r"stored as \(in, out\), which no file of format compressed_tensors can say"):
        build("format", "compressed_tensors").write(model, tmp_path)
