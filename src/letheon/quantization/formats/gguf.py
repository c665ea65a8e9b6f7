"""A GGUF file, as llama.cpp runs it on laptops: blocks of 32 weights with a float16 scale, and the tokenizer inside.

    4 bits  Q4_0  float16 d, 16 bytes: byte i = code[i] | code[i + 16] << 4      w = d * (code - 8)
    8 bits  Q8_0  float16 d, 32 int8                                             w = d * code
A symmetric grid goes in exactly, whatever solved it; a group of several blocks repeats its scale in each. Asymmetric
grids do not: Q4_1 has w = d * code + m with m in float16, which holds d * zero of few groups (it is read). Norms are
float32, other tensors as they are. Rows of q and k of Llama and Mistral are interleaved, as llama.cpp's rotary position
embedding wants them: row i of a head's first half is followed by row i of its second. config.json and the tokenizer
stand beside the file for whoever reads it again; llama.cpp needs the file alone.

Not covered: architectures other than llama, mistral and qwen2; a sliding window; rotary scaling other than none or
Llama 3's; tokenizers other than byte-level BPE (see `gguf_tokenizer`); rounded embeddings and heads.

Source: the ggml repository (blocks), llama.cpp's converter (names, interleaving, keys): the layout, not the code.
Checked against: a loop over single nibbles; the gguf package; 64 tokens of a model that transformers' reader opens in a
fresh process. llama.cpp itself was not there to run it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.models import ModelFolder, StoredTensor
from letheon.numerics.grids import Grid, Quantized
from letheon.quantization.gguf_config import (
    ARCHITECTURES,
    ROPE_FACTORS,
    configuration,
    entries,
    key_heads,
    metadata,
    rope_factors,
    uncovered,
)
from letheon.quantization.gguf_file import BF16, F16, F32, Q4_0, Q4_1, Q8_0, read_gguf, write_gguf
from letheon.quantization.gguf_tokenizer import tokenizer_metadata
from letheon.quantization.limits import Limits, Plan, layer_plan, stored_exactly
from letheon.quantization.low_bit import LowBitModel
from letheon.quantization.packing import unsigned
from letheon.quantization.saving import FolderWriter, check_finite

FILE = "model.gguf"
_LIMITS = Limits(
    format="gguf",
    bits=(4, 8),
    schemes=("sym", "sym_clipped", "sym_centred"),
    scale_dtype="float16",
    inputs=32,
    group=32,
)
_LOAD = f"""
    llama-cli -m {FILE}

or, with `pip install gguf accelerate`:

    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file="{FILE}")
"""
_TYPES = {F32: "F32", F16: "F16", BF16: "BF16", Q4_0: "Q4_0", Q4_1: "Q4_1", Q8_0: "Q8_0"}
_PLAIN = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}
_WHOLE = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
_IN_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True, kw_only=True)
class GGUFFormat:
    """Settings of GGUF files: the grid says it all."""

    quant_method: ClassVar[str] = "gguf"

    def scale_dtype(self, folder: ModelFolder) -> str:
        """What the file of a model stores scales as."""
        return "float16"

    def loads_as(self, folder: ModelFolder) -> str:
        """What a loader makes of code times scale."""
        return "float32"

    def check(self, plan: Plan) -> None:
        """Raise BadInput for what the file cannot hold, before anything is solved."""
        found = uncovered(plan.original.config)
        try:
            tokenizer_metadata(plan.original.path, entries(plan.original.config))
        except BadInput as error:
            found += error.problems
        _LIMITS.check(plan, *found)

    def write(self, model: LowBitModel, target: Path) -> None:
        """Write the model into an empty folder.

        Raises:
            BadInput: a layer, a scale or a tokenizer that the file cannot hold.
            CannotFinish: NaN or infinity.
        """
        folder = FolderWriter(target, model)
        config = {**model.original.config, **model.config}
        if problems := uncovered(config):
            raise BadInput(problems)
        names = [f"{name}.weight" for name in model.layers] + [
            name for name in model.others if name not in folder.tied_again and not name.endswith("rotary_emb.inv_freq")
        ]
        axes = {_to_gguf(name): 1 if "norm" in name or name.endswith(".bias") else 2 for name in names}
        factors = rope_factors(config)
        if factors is not None:
            axes[ROPE_FACTORS] = 1
        first = next(iter(model.layers.values())).grid
        bits = first.bits if isinstance(first, Grid) else 0
        keys = metadata(config, bits) | tokenizer_metadata(model.original.path, entries(config))
        tensors = _tensors(model, config, [_to_gguf(name) for name in names], names, factors)
        write_gguf(target / FILE, keys, axes, tensors)
        folder.finish(quantization=None, load=_LOAD)

    @staticmethod
    def open(path: Path, *, role: str = "MODEL") -> ModelFolder:
        """Configuration and table of a file: config.json beside it, or what the metadata say.

        Raises:
            BadInput: not a whole GGUF file, an architecture or a configuration that is not read.
        """
        file = read_gguf(path, role=role)
        found = str(file.metadata.get("general.architecture", ""))
        if found not in ARCHITECTURES.values():
            raise BadInput(
                f"{role} {path}: GGUF files of the architecture {found!r} are not read. "
                f"Readable: {', '.join(sorted(set(ARCHITECTURES.values())))}"
            )
        tensors = {
            _from_gguf(name): StoredTensor(path.name, _TYPES[entry.type], entry.shape)
            for name, entry in file.entries.items()
            if name != ROPE_FACTORS
        }
        return ModelFolder(path=path.parent, config=configuration(path, file, found, role), tensors=tensors)

    @staticmethod
    def read(folder: ModelFolder) -> Iterator[tuple[str, Tensor]]:
        """Every tensor under its name in a dense file, float32. Raises what `open` raises."""
        file = read_gguf(folder.path / next(iter(folder.tensors.values())).file)
        is_interleaved = file.metadata["general.architecture"] == "llama"
        for name in folder.tensors:
            entry = file.entries[_to_gguf(name)]
            raw = torch.from_numpy(file.bytes_of(entry).copy())
            values = _values(raw, entry.type).reshape(entry.shape)
            heads = _heads(name, folder.config) if is_interleaved else None
            yield name, values if heads is None else _halves(values, heads)


def _tensors(
    model: LowBitModel, config: Mapping[str, Any], targets: list[str], names: list[str], factors: Tensor | None
) -> Iterator[tuple[str, int, tuple[int, ...], bytes]]:
    is_interleaved = ARCHITECTURES[str(config["model_type"])] == "llama"
    rounded = set(model.layers)  # asking a lazy mapping for a name may read it
    for target, name in zip(targets, names, strict=True):
        heads = _heads(name, config) if is_interleaved else None
        if name.removesuffix(".weight") in rounded:
            layer = model.layers[name.removesuffix(".weight")]
            _LIMITS.check(layer_plan(model, name.removesuffix(".weight"), layer))
            kind, blocks = _blocks(name.removesuffix(".weight"), layer)
            rows, columns = layer.codes.shape
            data = blocks if heads is None else _interleaved(blocks, heads)
            yield target, kind, (rows, columns), data.contiguous().numpy().tobytes()
            continue
        tensor = model.others[name].detach().cpu()
        check_finite(name, tensor)
        if tensor.ndim == 1:
            tensor = tensor.float()  # llama.cpp adds and multiplies in it
        kinds = [number for number, dtype in _PLAIN.items() if dtype == tensor.dtype]
        if not kinds:
            raise BadInput(f"tensor {name} is {tensor.dtype}, which a GGUF file has no place for. Use --format dense")
        tensor = tensor if heads is None else _interleaved(tensor, heads)
        yield target, kinds[0], tuple(tensor.shape), tensor.contiguous().view(torch.uint8).numpy().tobytes()
    if factors is not None:
        yield ROPE_FACTORS, F32, tuple(factors.shape), factors.numpy().tobytes()


def _blocks(name: str, layer: Quantized) -> tuple[int, Tensor]:
    """Type and bytes of a layer, uint8 (out, bytes of a row)."""
    grid, parts = layer.grid, unsigned(layer)
    assert isinstance(grid, Grid)
    rows, columns = parts.codes.shape
    blocks = columns // 32
    scale = stored_exactly(name, parts.scale, torch.float16).repeat_interleave(blocks // parts.scale.shape[1], dim=1)
    steps = scale.contiguous().view(torch.uint8).view(rows, blocks, 2)
    codes = parts.codes.view(rows, blocks, 32)
    if grid.bits == 4:
        low, high = codes[:, :, :16].to(torch.uint8), codes[:, :, 16:].to(torch.uint8)
        packed, kind = low | (high << 4), Q4_0
    else:
        packed, kind = (codes - 128).to(torch.int8).view(torch.uint8), Q8_0
    return kind, torch.cat([steps, packed], dim=2).view(rows, -1)


def _values(raw: Tensor, kind: int) -> Tensor:
    """A tensor's bytes as float32, flat."""
    if kind in _PLAIN:
        return raw.view(_PLAIN[kind]).float()
    if kind == Q8_0:
        blocks = raw.view(-1, 34)
        return blocks[:, 2:].contiguous().view(torch.int8).float() * _float16(blocks[:, :2])
    size = 18 if kind == Q4_0 else 20
    blocks = raw.view(-1, size)
    packed = blocks[:, size - 16 :]
    codes = torch.cat([packed & 15, packed >> 4], dim=1).float()
    if kind == Q4_0:
        return (codes - 8) * _float16(blocks[:, :2])
    return codes * _float16(blocks[:, :2]) + _float16(blocks[:, 2:4])


def _float16(pairs: Tensor) -> Tensor:
    return pairs.contiguous().view(torch.float16).float()


def _interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows of every head from halves to pairs: what turns together is i and i + d/2 there, 2i and 2i + 1 here."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _halves(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `_interleaved`."""
    return rows.reshape(heads, len(rows) // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _heads(name: str, config: Mapping[str, Any]) -> int | None:
    """Heads of a tensor whose rows are interleaved; None for others."""
    if ".q_proj." in name:
        return int(config["num_attention_heads"])
    return key_heads(config) if ".k_proj." in name else None


def _to_gguf(name: str) -> str:
    module, part = name.removeprefix("model.").rsplit(".", 1)
    if module in _WHOLE:
        return f"{_WHOLE[module]}.{part}"
    found = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
    if found is None or found[2] not in _IN_BLOCK:
        raise BadInput(f"tensor {name} has no name in a GGUF file. Use --format compressed_tensors")
    return f"blk.{found[1]}.{_IN_BLOCK[found[2]]}.{part}"


def _from_gguf(name: str) -> str:
    module, _, part = name.rpartition(".")
    whole = {theirs: ours for ours, theirs in _WHOLE.items()}
    if module in whole:
        return f"{'' if module == 'output' else 'model.'}{whole[module]}.{part}"
    found = re.fullmatch(r"blk\.(\d+)\.(.+)", module)
    inside = {theirs: ours for ours, theirs in _IN_BLOCK.items()}
    if found is None or found[2] not in inside:
        raise BadInput(f"tensor {name} of the GGUF file belongs to no part that is known here")
    return f"model.layers.{found[1]}.{inside[found[2]]}.{part}"
