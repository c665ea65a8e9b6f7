"""bitsandbytes' 4-bit files: NF4 or FP4 codes with one scale for 64 weights, as QLoRA trains on them.

Of every rounded layer p, (out, in), the matrix flattened row by row:
    p.weight              uint8 (ceil(out*in/2), 1)   two codes a byte, the FIRST in the high nibble
    p.weight.absmax       float32 (blocks,)           of every 64 weights; blocks run over the ends of rows
    p.weight.quant_map    float32 (16,)               the table
    p.weight.quant_state.bitsandbytes__nf4   uint8    JSON: quant_type, blocksize, dtype, shape
    w = table[code] * absmax of its block
Also read: absmax quantized once more (uint8 codes of a table of 256 values, times a float32 for 256 of them, plus an
offset), and LLM.int8 files: p.weight int8 (out, in), p.SCB float32 (out,), w = code * SCB / 127.

Source: bitsandbytes, QLoRA arXiv:2305.14314, LLM.int8 arXiv:2208.07339: layouts, not code.
Checked against: a loop over single nibbles; scales of scales by hand. bitsandbytes itself was not there to compare.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.models import DTYPES, ModelFolder
from letheon.numerics.grids import CodebookGrid, Quantized, dequantize
from letheon.quantization.limits import Limits, Plan, layer_plan, stored_dtype
from letheon.quantization.low_bit import LowBitModel
from letheon.quantization.saving import FolderWriter
from letheon.quantization.stored_layers import StoredLayer, plain, split

_LIMITS = Limits(format="bitsandbytes", codebooks=("nf4", "fp4"))
_LOAD = """
Needs `pip install bitsandbytes accelerate`.

    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
"""
_BLOCK = 64
_PARTS = ("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map")
_STATES = tuple(f"weight.quant_state.bitsandbytes__{name}" for name in ("nf4", "fp4"))
_EIGHT_BIT_PARTS = ("weight", "SCB", "weight_format")


@dataclass(frozen=True, kw_only=True)
class BitsAndBytes:
    """Settings of bitsandbytes' files: the table of the grid says it all."""

    quant_method: ClassVar[str] = "bitsandbytes"

    def loads_as(self, folder: ModelFolder) -> str:
        """What a loader makes of code times scale."""
        return stored_dtype(folder)

    def check(self, plan: Plan) -> None:
        """Raise BadInput for what the file cannot hold, before anything is solved."""
        _LIMITS.check(plan, *_block_problems(plan.grid))

    def write(self, model: LowBitModel, target: Path) -> None:
        """Write the model into an empty folder.

        Raises:
            BadInput: a layer that the file cannot hold, layers of different tables.
            CannotFinish: NaN or infinity.
        """
        folder = FolderWriter(target, model)
        tables: dict[str, str] = {}
        folder.write_shards(_tensors(model, folder, tables))
        quantization: dict[str, Any] = {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": next(iter(tables)),
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": model.original.dtype,
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": [folder.head, *folder.left_dense],
        }
        folder.finish(quantization=quantization, load=_LOAD)

    @staticmethod
    def read(folder: ModelFolder) -> Iterator[tuple[str, Tensor]]:
        """Every tensor under its name in a dense file. Raises BadInput for what does not fit."""
        if folder.config["quantization_config"].get("load_in_8bit"):
            layers, others = split(folder, "SCB", _EIGHT_BIT_PARTS)
        else:
            layers, others = split(folder, "weight.absmax", _PARTS + _STATES)
        yield from plain(folder, others)
        for layer in layers:
            with layer.named_in_faults():
                found = _eight_bit(layer) if layer.has("SCB") else _unpacked(layer)
            yield found


def _block_problems(grid: Any) -> list[str]:
    if isinstance(grid, CodebookGrid) and grid.block != _BLOCK:
        return [f"bitsandbytes files have blocks of {_BLOCK} weights here, and the grid of {grid.block}. Use {_BLOCK}"]
    return []


def _tensors(model: LowBitModel, folder: FolderWriter, tables: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """What the files hold, layer by layer; `tables` learns the table, of which there is one."""
    yield from folder.others()
    for name, layer in model.layers.items():
        _LIMITS.check(layer_plan(model, name, layer), *_block_problems(layer.grid))
        assert isinstance(layer.grid, CodebookGrid)
        tables.setdefault(layer.grid.name, name)
        if len(tables) > 1:
            raise BadInput(
                f"layer {name} has another table than layer {next(iter(tables.values()))}: a bitsandbytes file says it "
                "once for all. Use --format dense"
            )
        for part, tensor in _packed(layer, layer.grid, model.original.dtype).items():
            yield f"{name}.{part}", tensor


def _packed(layer: Quantized, grid: CodebookGrid, dtype: str) -> dict[str, Tensor]:
    codes = layer.codes.cpu().to(torch.uint8).reshape(-1)
    pairs = torch.nn.functional.pad(codes, (0, len(codes) % 2)).view(-1, 2)
    state = {"quant_type": grid.name, "blocksize": grid.block, "dtype": dtype, "shape": list(layer.codes.shape)}
    return {
        "weight": ((pairs[:, 0] << 4) | pairs[:, 1]).unsqueeze(1),
        "weight.absmax": layer.scale.cpu().reshape(-1),
        "weight.quant_map": _table(grid.name),
        f"weight.quant_state.bitsandbytes__{grid.name}": _as_bytes(json.dumps(state)),
    }


def _table(name: str) -> Tensor:
    """The values of the 16 codes, float32: what they stand for in a block whose absmax is 1."""
    one = torch.ones(1, 1)
    codes = torch.arange(16, dtype=torch.int16).view(1, 16)
    grid = CodebookGrid(name, block=16)  # type: ignore[arg-type]
    zero = one.to(torch.int16)
    return dequantize(Quantized(codes=codes, scale=one, zero=zero, grid=grid, dtype=torch.float32)).view(16)


def _as_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode("utf-8")), dtype=torch.uint8)


def _unpacked(layer: StoredLayer) -> tuple[str, Tensor]:
    kept = next((part for part in _STATES if layer.has(part)), _STATES[0])
    said = bytes(layer.part(kept).tolist())
    try:
        state = json.loads(said)
        rows, columns = (int(length) for length in state["shape"])
        block = int(state["blocksize"])
        nested_block, offset = int(state.get("nested_blocksize", 256)), float(state.get("nested_offset", 0.0))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{kept} is damaged. Download the folder again") from error
    count = rows * columns
    absmax = layer.part("weight.absmax", shape=(-(-count // block),))
    if absmax.dtype == torch.uint8:
        table, scales = layer.part("weight.nested_quant_map"), layer.part("weight.nested_absmax")
        absmax = table[absmax.int()] * scales.repeat_interleave(nested_block)[: len(absmax)] + offset
    stored = layer.part("weight").reshape(-1)
    if stored.dtype != torch.uint8:
        stored = stored.view(torch.uint8)
    if len(stored) != -(-count // 2):
        raise BadInput(f"{len(stored)} bytes are not the {rows} x {columns} codes of its state. Download it again")
    codes = torch.stack([stored >> 4, stored & 15], dim=1).reshape(-1)[:count]
    values = layer.part("weight.quant_map", shape=(16,)).float()[codes.int()]
    weight = values * absmax.float().repeat_interleave(block)[:count]
    dtype = state.get("dtype")
    wanted = dtype if dtype in DTYPES.values() else stored_dtype(layer.folder)
    return f"{layer.name}.weight", weight.view(rows, columns).to(getattr(torch, wanted))


def _eight_bit(layer: StoredLayer) -> tuple[str, Tensor]:
    codes = layer.part("weight")
    scale = layer.part("SCB", shape=(codes.shape[0],)).float()
    weight = codes.float() * (scale / 127).unsqueeze(1)
    return f"{layer.name}.weight", weight.to(getattr(torch, stored_dtype(layer.folder)))
