"""AWQ files: words against a loop over single nibbles, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from letheon.errors import BadInput
from letheon.methods import build
from letheon.numerics.grids import Grid, dequantize, quantize
from letheon.quantization.reading import load_low_bit, read_low_bit
from tests.architectures.models import saved
from tests.quantization.low_bit import in_memory, low_bit_model, plan_of, same_bits, tiny_llama, written

NAME = "model.layers.1.mlp.down_proj"
HALF: dict[str, Any] = {"scale_dtype": "float16"}
PLACES = {0: 0, 1: 4, 2: 1, 3: 5, 4: 2, 5: 6, 6: 3, 7: 7}
"""Output within a word -> its nibble, from the lowest."""


def by_single_nibbles(line: list[int]) -> list[int]:
    words = []
    for start in range(0, len(line), 8):
        word = sum(code << (4 * PLACES[place]) for place, code in enumerate(line[start : start + 8]))
        words.append(word - 2**32 if word >= 2**31 else word)
    return words


@pytest.mark.parametrize("group", ["row", "tensor", 32])
@pytest.mark.parametrize("scheme", ["sym", "sym_clipped", "sym_centred", "asym"])
def test_every_part_of_a_layer_is_stored_as_the_layout_says(scheme: str, group: str | int, tmp_path: Path) -> None:
    grid = Grid(bits=4, scheme=scheme, group=group, **HALF)  # type: ignore[arg-type]
    model = low_bit_model(tiny_llama(), grid)
    folder = written("awq", model, tmp_path / "out")
    found, layer = load_file(folder / "model.safetensors"), model.layers[NAME]
    offset = 0 if scheme in ("asym", "sym_centred") else 8
    assert found[f"{NAME}.qweight"].shape == (96, 8) and found[f"{NAME}.qweight"].dtype == torch.int32
    assert found[f"{NAME}.qweight"].tolist() == [by_single_nibbles(line) for line in (layer.codes.T + offset).tolist()]
    zeros = (layer.zero.expand(64, layer.zero.shape[1]).T + offset).tolist()
    assert found[f"{NAME}.qzeros"].tolist() == [by_single_nibbles(line) for line in zeros]
    assert found[f"{NAME}.scales"].dtype == torch.float16
    assert torch.equal(found[f"{NAME}.scales"].T.float(), layer.scale.expand(64, layer.scale.shape[1]))
    assert same_bits(load_low_bit(folder).state_dict(), in_memory(tiny_llama(), model).state_dict())


def test_the_configuration_says_what_was_packed(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=4, group=32, **HALF))
    config = json.loads((written("awq", model, tmp_path / "out") / "config.json").read_text())
    assert config["quantization_config"] == {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": 32,
        "zero_point": True,
        "modules_to_not_convert": ["lm_head"],
    }


@pytest.mark.parametrize(
    ("name", "grid", "changes", "words"),
    [
        ("llama", Grid(bits=3, **HALF), {}, r"no layout for 3 bits \(it has: 4\)"),
        ("llama", Grid(bits=4), {}, "stores scales as float16"),
        (
            "llama",
            Grid(bits=4, **HALF),
            {"shapes": {"a.k": (12, 64)}},
            "layer a.k has 12 outputs, and format awq needs a",
        ),
        ("llama", Grid(bits=4, **HALF), {"has_group_index": True}, "--format gptq"),
        ("llama", Grid(bits=4, **HALF), {"online": ("R3",)}, "Rotate with R1 and R2 alone"),
        ("gpt2", Grid(bits=4, **HALF), {}, r"stored as \(in, out\)"),
    ],
)
def test_what_the_file_cannot_hold_is_refused_before(
    name: str, grid: Grid, changes: dict[str, Any], words: str
) -> None:
    model = low_bit_model(saved(name), Grid(bits=4))
    with pytest.raises(BadInput, match=words):
        build("format", "awq").check(plan_of(model, grid, **changes))


def test_groups_of_several_sizes_are_refused(tmp_path: Path) -> None:
    model = low_bit_model(tiny_llama(), Grid(bits=4, group=32, **HALF))
    other = quantize(dequantize(model.layers[NAME]), Grid(bits=4, **HALF))
    with pytest.raises(
        BadInput, match=rf"layer {NAME} has groups of another size than layer model\.layers\.0\.self_attn\.q"
    ):
        build("format", "awq").write(replace(model, layers={**model.layers, NAME: other}), tmp_path)


@pytest.mark.parametrize("changes", [{"version": "gemv"}, {"bits": 8}])
def test_other_files_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = written("awq", low_bit_model(tiny_llama(), Grid(bits=4, group=32, **HALF)), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"are not read\. Readable: gemm, 4 bits"):
        dict(read_low_bit(folder).tensors())
