"""A block on disk: the same bits again, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from letheon.errors import BadInput
from letheon.numerics.grids import CodebookGrid, Grid, Quantized, dequantize, quantize
from letheon.quantization.kept_blocks import KeptBlock, KeptLayers, keep_block, kept_block
from tests.toys import bits

GRIDS = {
    "row": Grid(bits=4),
    "asym": Grid(bits=3, scheme="asym", group=8, clip="mse", scale_dtype="bfloat16"),
    "table": CodebookGrid("nf4"),
    "off": Grid(bits=16),
}


def layers() -> dict[str, Quantized]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: quantize(torch.randn(6, 16, generator=generator).to(torch.bfloat16), grid) for name, grid in GRIDS.items()
    }


def with_index(layer: Quantized) -> Quantized:
    index = torch.arange(16, dtype=torch.int32) // 8
    return Quantized(**{**vars(layer), "group_index": index.flip(0)})


def test_what_is_kept_comes_back_to_the_bit(tmp_path: Path) -> None:
    indexed = with_index(layers()["asym"])
    made = {**layers(), "indexed": indexed, "sharing its index": indexed}
    others = {"norm.weight": torch.ones(16, dtype=torch.bfloat16), "q.bias": torch.randn(6)}
    keep_block(tmp_path / "deep" / "block.safetensors", KeptBlock(made, others, {"layers": {"row": {"weights": 0.1}}}))
    found = kept_block(tmp_path / "deep" / "block.safetensors")
    assert list(found.layers) == list(made) and found.figures == {"layers": {"row": {"weights": 0.1}}}
    assert {name: bits(tensor) for name, tensor in found.others.items()} == {
        name: bits(tensor) for name, tensor in others.items()
    }
    lazily = KeptLayers([tmp_path / "deep" / "block.safetensors"])
    for name, layer in made.items():
        for again in (found.layers[name], lazily[name]):
            assert (again.grid, again.dtype) == (layer.grid, layer.dtype)
            assert bits(dequantize(again)) == bits(dequantize(layer))
            for part in ("codes", "scale", "zero"):
                assert bits(getattr(again, part)) == bits(getattr(layer, part))
            assert (again.group_index is None) == (layer.group_index is None)


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "block.safetensors"
    keep_block(path, KeptBlock(layers(), {}, {}))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        BadInput, match=r"block\.safetensors is damaged \(.*\)\. Remove it, and the block is made again"
    ):
        kept_block(path)
