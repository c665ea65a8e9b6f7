"""AWQ files (quant_method awq, version gemm): 4 bits, as vLLM and transformers with gptqmodel open them.

Of every rounded layer p, (out, in), g inputs to a group (or all of them):
    p.qweight  int32 (in, out/8)     codes 0 .. 15, words along the OUTPUTS, nibbles in the order 0 2 4 6 1 3 5 7
    p.qzeros   int32 (in/g, out/8)   zero points in the same order, as they are
    p.scales   float16 (in/g, out)
    w[o, j] = (code - zero[o, j // g]) * scale[o, j // g]
Outputs are a multiple of 8. Any scheme goes in exactly: codes around 0 are moved up by 8, and so is their zero point.
The files say nothing of how codes were found: a GPTQ solution may be written in this form as well.

Source: AutoAWQ (gemm): its layout, not its code; AWQ arXiv:2306.00978.
Checked against: a loop over single nibbles, a word by hand; 64 tokens of a model read back in a fresh process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.models import ModelFolder
from letheon.numerics.grids import Grid, Quantized
from letheon.quantization.limits import Limits, Plan, layer_plan, stored_dtype, stored_exactly
from letheon.quantization.low_bit import LowBitModel
from letheon.quantization.packing import pack_awq, unpack_awq, unsigned
from letheon.quantization.saving import FolderWriter
from letheon.quantization.stored_layers import StoredLayer, plain, split

_LIMITS = Limits(format="awq", bits=(4,), scale_dtype="float16", outputs=8)
_LOAD = """
vLLM opens this folder as it is. For transformers: `pip install gptqmodel accelerate`.

    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(FOLDER, device_map="auto")
"""
_PARTS = ("qweight", "qzeros", "scales")


@dataclass(frozen=True, kw_only=True)
class AWQFormat:
    """Settings of AWQ files: the grid says it all."""

    quant_method: ClassVar[str] = "awq"

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
            BadInput: a layer or a scale that the file cannot hold, layers of different groups.
            CannotFinish: NaN or infinity.
        """
        folder = FolderWriter(target, model)
        sizes: dict[int, str] = {}
        folder.write_shards(_tensors(model, folder, sizes))
        quantization: dict[str, Any] = {
            "quant_method": "awq",
            "version": "gemm",
            "bits": 4,
            "group_size": next(iter(sizes)),
            "zero_point": True,
            "modules_to_not_convert": [folder.head, *folder.left_dense],
        }
        folder.finish(quantization=quantization, load=_LOAD)

    @staticmethod
    def read(folder: ModelFolder, *, as_codes: bool = False) -> Iterator[tuple[str, Tensor | Quantized]]:
        """Every tensor under its name in a dense file; rounded layers as codes and scales where these are asked for.

        Raises:
            BadInput: what is not read or does not fit.
        """
        config = folder.config["quantization_config"]
        version, bits = str(config.get("version", "gemm")).lower(), config.get("bits", 4)
        if version != "gemm" or bits != 4:
            raise BadInput(
                f"{folder.path}: AWQ files of version {version!r} and {bits} bits are not read. Readable: gemm, 4 bits"
            )
        layers, others = split(folder, "qweight", _PARTS, as_codes=as_codes)
        yield from plain(folder, others)
        for layer in layers:
            with layer.named_in_faults():
                found = _unpacked(layer)
            yield found


def _tensors(model: LowBitModel, folder: FolderWriter, sizes: dict[int, str]) -> Iterator[tuple[str, Tensor]]:
    """What the files hold, layer by layer; `sizes` learns the group size, of which there is one."""
    yield from folder.others()
    for name, layer in model.layers.items():
        _LIMITS.check(layer_plan(model, name, layer))
        assert isinstance(layer.grid, Grid)
        sizes.setdefault(layer.grid.group if isinstance(layer.grid.group, int) else -1, name)
        if len(sizes) > 1:
            raise BadInput(
                f"layer {name} has groups of another size than layer {next(iter(sizes.values()))}: an AWQ file says it "
                "once for all. Use --format compressed_tensors"
            )
        for part, tensor in _packed(name, layer).items():
            yield f"{name}.{part}", tensor


def _packed(name: str, layer: Quantized) -> dict[str, Tensor]:
    parts = unsigned(layer)
    return {
        "qweight": pack_awq(parts.codes.T.contiguous()),
        "qzeros": pack_awq(parts.zero.T.contiguous()),
        "scales": stored_exactly(name, parts.scale.T.contiguous(), torch.float16),
    }


def _unpacked(layer: StoredLayer) -> tuple[str, Tensor | Quantized]:
    words, scale = layer.part("qweight"), layer.part("scales")
    groups, rows = scale.shape
    lines = layer.part("qzeros", shape=(groups, rows // 8))
    return layer.weight(
        codes=unpack_awq(words).T.contiguous(),
        scale=scale.T.contiguous(),
        zero=unpack_awq(lines).T.contiguous(),
        bits=4,
    )
