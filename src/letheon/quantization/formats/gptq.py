"""GPTQ files (quant_method gptq), as vLLM, gptqmodel and transformers with optimum and gptqmodel open them.

Of every rounded layer p, (out, in), b bits, g inputs to a group (or all of them):
    p.qweight  int32 (in*b/32, out)     codes 0 .. 2^b-1, dense streams along the INPUTS, one stream a column
    p.qzeros   int32 (in/g, out*b/32)   zero points, streams along the OUTPUTS
    p.scales   float16 (in/g, out)
    p.g_idx    int32 (in,)              the group of every input: j // g, but for act-order with dynamic groups
    w[o, j] = (code - zero[o, g_idx[j]]) * scale[o, g_idx[j]]
Both lengths are multiples of 32. Any scheme goes in exactly: codes around 0 are moved up by 2^(b-1), and so is their
zero point. checkpoint gptq (v1) stores zero - 1 in b bits, so a zero of 0 becomes 2^b - 1; readers that add 1 to whole
words instead of to each zero carry it into the next one. Asymmetric grids may have such groups (no weight below 0):
for those readers write gptq_v2, which stores the zero point as it is.

Source: AutoGPTQ and GPTQModel: their layout, not their code; GPTQ arXiv:2210.17323.
Checked against: a loop over single bits; the wrapped zero point; 64 tokens of a model read back in a fresh process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from letheon.errors import BadInput, require
from letheon.models import ModelFolder
from letheon.numerics.grids import Grid, Quantized
from letheon.quantization.limits import Limits, Plan, layer_plan, stored_dtype, stored_exactly
from letheon.quantization.low_bit import LowBitModel
from letheon.quantization.packing import pack, packed_width, unpack, unsigned
from letheon.quantization.saving import FolderWriter
from letheon.quantization.stored_layers import StoredLayer, plain, split

_LIMITS = Limits(format="gptq", bits=(2, 3, 4, 8), scale_dtype="float16", outputs=32, inputs=32, has_group_index=True)
_LOAD = """
vLLM opens this folder as it is. For transformers: `pip install optimum gptqmodel`.

    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(FOLDER, device_map="auto")
"""
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_CHECKPOINTS = ("gptq", "gptq_v2")


@dataclass(frozen=True, kw_only=True)
class GPTQFormat:
    """Settings of GPTQ files."""

    checkpoint: Literal["gptq", "gptq_v2"] = "gptq"
    """gptq stores zero points less one, as every reader knows; gptq_v2 as they are, for newer readers."""

    quant_method: ClassVar[str] = "gptq"

    def __post_init__(self) -> None:
        require(
            self.checkpoint in _CHECKPOINTS,
            f"gptq has no checkpoint {self.checkpoint!r}. Use {' or '.join(_CHECKPOINTS)}",
        )

    def scale_dtype(self, folder: ModelFolder) -> str:
        """What the file of a model stores scales as."""
        return "float16"

    def loads_as(self, folder: ModelFolder) -> str:
        """What a loader makes of code times scale."""
        return stored_dtype(folder)

    def check(self, plan: Plan) -> None:
        """Raise BadInput for what the file cannot hold, before anything is solved."""
        _LIMITS.check(plan)

    def write(self, model: LowBitModel, target: Path) -> None:
        """Write the model into an empty folder.

        Raises:
            BadInput: a layer or a scale that the file cannot hold, layers of different grids.
            CannotFinish: NaN or infinity.
        """
        folder = FolderWriter(target, model)
        seen: dict[str, Any] = {}
        folder.write_shards(self._tensors(model, folder, seen))
        quantization = {
            "quant_method": "gptq",
            "checkpoint_format": self.checkpoint,
            "bits": seen["bits"],
            "group_size": seen["group_size"],
            "desc_act": bool(seen["desc_act"]),
            "sym": seen["sym"],
            "lm_head": False,
        }
        if folder.left_dense:
            quantization["dynamic"] = {f"-:^{re.escape(name)}$": {} for name in folder.left_dense}
        folder.finish(quantization=quantization, load=_LOAD)

    @staticmethod
    def read(folder: ModelFolder, *, as_codes: bool = False) -> Iterator[tuple[str, Tensor | Quantized]]:
        """Every tensor under its name in a dense file; rounded layers as codes and scales where these are asked for.

        Raises:
            BadInput: what is not read or does not fit.
        """
        config = folder.config["quantization_config"]
        bits = config.get("bits")
        form = config.get("checkpoint_format", "gptq")
        if bits not in _LIMITS.bits or form not in _CHECKPOINTS:
            raise BadInput(
                f"{folder.path}: GPTQ files of {bits} bits and checkpoint_format {form!r} are not read. Readable: "
                f"{', '.join(map(str, _LIMITS.bits))} bits, {' and '.join(_CHECKPOINTS)}"
            )
        layers, others = split(folder, "qweight", _PARTS, as_codes=as_codes)
        yield from plain(folder, others)
        for layer in layers:
            with layer.named_in_faults():
                found = _unpacked(layer, bits, less=1 if form == "gptq" else 0)
            yield found

    def _tensors(self, model: LowBitModel, folder: FolderWriter, seen: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """What the files hold, layer by layer; `seen` learns what the configuration says of all of them."""
        yield from folder.others()
        for name, layer in model.layers.items():
            _LIMITS.check(layer_plan(model, name, layer))
            _note(seen, name, layer)
            for part, tensor in self._packed(name, layer).items():
                yield f"{name}.{part}", tensor

    def _packed(self, name: str, layer: Quantized) -> dict[str, Tensor]:
        grid, parts = layer.grid, unsigned(layer)
        assert isinstance(grid, Grid)
        less = 1 if self.checkpoint == "gptq" else 0
        columns, groups = parts.codes.shape[1], parts.scale.shape[1]
        index = torch.arange(columns) // (columns // groups) if layer.group_index is None else layer.group_index
        return {
            "qweight": pack(parts.codes, grid.bits).T.contiguous(),
            "qzeros": pack((parts.zero.T - less) % 2**grid.bits, grid.bits),
            "scales": stored_exactly(name, parts.scale.T.contiguous(), torch.float16),
            "g_idx": index.to(torch.int32),
        }


def _note(seen: dict[str, Any], name: str, layer: Quantized) -> None:
    """One configuration stands for all layers."""
    grid = layer.grid
    assert isinstance(grid, Grid)
    size = grid.group if isinstance(grid.group, int) else -1
    found = {"bits": grid.bits, "group_size": size, "sym": grid.scheme != "asym"}
    first = {key: seen.setdefault(key, value) for key, value in found.items()}
    if first != found:
        raise BadInput(
            f"layer {name} has {_words(found)}, and layers before it {_words(first)}: a GPTQ file says it once for "
            "all. Use --format compressed_tensors"
        )
    seen["desc_act"] = seen.get("desc_act", False) or layer.group_index is not None


def _words(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in found.items())


def _unpacked(layer: StoredLayer, bits: int, *, less: int) -> tuple[str, Tensor | Quantized]:
    words, scale = layer.part("qweight"), layer.part("scales")
    columns = words.shape[0] * 32 // bits
    groups, rows = scale.shape
    lines = layer.part("qzeros", shape=(groups, packed_width(rows, bits)))
    index = layer.part("g_idx", shape=(columns,)) if layer.has("g_idx") else None
    if index is None and groups > 1:
        index = torch.arange(columns) // (columns // groups)
    return layer.weight(
        codes=unpack(words.T.contiguous(), bits, columns),
        scale=scale.T.contiguous(),
        zero=((unpack(lines, bits, rows) + less) % 2**bits).T.contiguous(),
        bits=bits,
        index=index,
    )
