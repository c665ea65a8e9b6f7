"""compressed-tensors, pack-quantized: what transformers and vLLM open with one small package. The default for shipping.

Of every rounded layer p, (out, in), b bits, g inputs to a group (or a row), offset o = 2^(b-1):
    p.weight_packed      int32 (out, ceil(in*b/32))     code q + o, q in -o .. o-1, dense streams along the inputs
    p.weight_scale       dtype of the model (out, in/g)
    p.weight_shape       int64 (2,)                     out, in
    p.weight_zero_point  int32 (ceil(out*b/32), in/g)   z + o, streams along the OUTPUTS; asymmetric files alone
    w = (q - z) * scale
Symmetric files (sym, sym_clipped, sym_centred) are opened by `from_pretrained` as they are; asymmetric ones only with
CompressedTensorsConfig(dequantize=True), because transformers takes the packed zero points for unpacked ones. The
scales are in the dtype of the model, so a bfloat16 model needs a grid of bfloat16 scales. Experts of a mixture are
layers of their own, symmetric ones alone: transformers (5.23) does not hand their zero points to the package.

Inputs of linears, keys and values on low bits (a token's own scale, a head's of keys and values) are written as
`input_activations` and `kv_cache_scheme`, and transformers rounds them as it runs. This wants symmetric weights, since
the other way to open the folder leaves activations alone, and keys that a linear of their own makes.
Weights of 8 bits a row with inputs of 8 bits (W8A8) are int-quantized, one byte a weight, which is what vLLM's kernels
for them read:
    p.weight             int8 (out, in)                 code q

Also read: int-quantized and naive-quantized weights of whole numbers, 3 bits ten to a word, groups by index (older
files). Not read: activations on fixed scales or other grids, transforms, floating-point codes: what the weights alone
say would not be that model.

Source: compressed-tensors 0.20; its layout, not its code.
Checked against: its own packer, and models loaded by transformers in a fresh process: weights and 64 tokens equal, with
activations and cache on low bits too; a mixture of more than ten experts; a mixture with zero points that it refuses.
vLLM was not run.
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
from letheon.models import ModelFolder
from letheon.numerics.grids import Grid, Quantized
from letheon.quantization.activation_config import (
    head_dim,
    is_transform,
    read_grids,
    running_problems,
    transform_tensors,
    with_grids,
    with_transforms,
)
from letheon.quantization.limits import HELD, Limits, Plan, layer_plan, stored_dtype, stored_exactly
from letheon.quantization.low_bit import LowBitModel
from letheon.quantization.packing import pack, stands_ten_to_a_word, unpack, unpack_tens, unsigned
from letheon.quantization.saving import FolderWriter
from letheon.quantization.stored_layers import StoredLayer, plain, split

_LOAD = """
Needs `pip install compressed-tensors`.

    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
"""
_LOAD_ASYMMETRIC = """
Needs `pip install compressed-tensors`. Zero points are packed, which transformers opens only in this way:

    from transformers import AutoModelForCausalLM, CompressedTensorsConfig
    model = AutoModelForCausalLM.from_pretrained(
        FOLDER, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
"""
_LOAD_TRANSFORMED = """
Needs `pip install compressed-tensors`. **A part of a rotation stays in the forward pass**, and transformers alone does
not run it: without the last lines below the model talks nonsense.

    from pathlib import Path
    from compressed_tensors.transform import TransformConfig, apply_transform_config
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    said = AutoConfig.from_pretrained(FOLDER).quantization_config["transform_config"]
    apply_transform_config(model, TransformConfig(**said))
    for file in Path(FOLDER).glob("*.safetensors"):
        kept = {name: tensor for name, tensor in load_file(file).items() if ".R4_" in name}
        model.load_state_dict(kept, strict=False)
"""
_PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
_NAIVE_PARTS = ("weight", "weight_scale", "weight_zero_point")
_READABLE = ("pack-quantized", "int-quantized", "naive-quantized")


@dataclass(frozen=True, kw_only=True)
class CompressedTensors:
    """Settings of compressed-tensors: the grid says it all."""

    quant_method: ClassVar[str] = "compressed-tensors"

    def scale_dtype(self, folder: ModelFolder) -> str:
        """What the file of a model stores scales as. Raises BadInput for a dtype that it does not know."""
        if folder.dtype not in HELD:
            raise BadInput(
                f"MODEL {folder.path}: is stored as {folder.dtype}, which no file of format compressed_tensors holds. "
                "Use --format dense"
            )
        return folder.dtype

    def loads_as(self, folder: ModelFolder) -> str:
        """What a loader makes of code times scale."""
        return stored_dtype(folder)

    def check(self, plan: Plan) -> None:
        """Raise BadInput for what the file cannot hold, before anything is solved."""
        _limits(plan.original.dtype).check(plan, *running_problems(plan), *_experts_problems(plan))

    def write(self, model: LowBitModel, target: Path) -> None:
        """Write the model into an empty folder.

        Raises:
            BadInput: a layer or a scale that the file cannot hold.
            CannotFinish: NaN or infinity.
        """
        folder = FolderWriter(target, model)
        groups: dict[tuple[int, bool, int | None], list[str]] = {}
        is_whole = _is_whole(model)
        folder.write_shards(_tensors(model, folder, groups, is_whole=is_whole))
        is_symmetric = all(symmetric for _, symmetric, _ in groups)
        said = _config(
            groups, layout="int-quantized" if is_whole else "pack-quantized", ignore=[folder.head, *folder.left_dense]
        )
        if model.grids is not None:
            said = with_grids(said, model.grids, head_dim=head_dim(model.original))
        load = _LOAD if is_symmetric else _LOAD_ASYMMETRIC
        folder.finish(quantization=with_transforms(said, model.down), load=_LOAD_TRANSFORMED if model.down else load)

    @staticmethod
    def read(folder: ModelFolder, *, as_codes: bool = False) -> Iterator[tuple[str, Tensor | Quantized]]:
        """Every tensor under its name in a dense file; rounded layers as codes and scales where these are asked for.

        Raises:
            BadInput: what is not read or does not fit.
        """
        config = folder.config["quantization_config"]
        _check_readable(folder, config)
        if config.get("format") == "pack-quantized":
            layers, others = split(folder, "weight_packed", _PARTS, as_codes=as_codes)
            yield from plain(folder, [name for name in others if not is_transform(name)])
            for layer in layers:
                with layer.named_in_faults():
                    found = _unpacked(layer, _arguments(layer, config))
                yield found
        else:
            layers, others = split(folder, "weight_scale", _NAIVE_PARTS, as_codes=as_codes)
            yield from plain(folder, [name for name in others if not is_transform(name)])
            for layer in layers:
                with layer.named_in_faults():
                    found = _whole_numbers(layer, _arguments(layer, config))
                yield found


def _limits(dtype: str) -> Limits:
    return Limits(
        format="compressed_tensors",
        bits=(2, 3, 4, 5, 6, 7, 8),
        scale_dtype=dtype,
        has_grids=True,
        has_online=True,
        has_experts=True,
        instead="dense",
    )


def _experts_problems(plan: Plan) -> list[str]:
    """transformers 5.23 puts experts together from codes and scales, and hands no zero points on."""
    if not plan.experts or getattr(plan.grid, "scheme", "") != "asym":
        return []
    return [
        f"layer {min(plan.experts)} and {len(plan.experts) - 1} others belong to the experts of a mixture, and "
        "transformers opens no file of format compressed_tensors whose experts have zero points. Use --method.scheme "
        "sym, or --format dense"
    ]


def _tensors(
    model: LowBitModel,
    folder: FolderWriter,
    groups: dict[tuple[int, bool, int | None], list[str]],
    *,
    is_whole: bool,
) -> Iterator[tuple[str, Tensor]]:
    """What the files hold, layer by layer; `groups` learns which layers are packed alike."""
    limits, dtype = _limits(model.original.dtype), getattr(torch, model.original.dtype)
    yield from folder.others()
    for name, layer in model.layers.items():
        plan = layer_plan(model, name, layer)
        limits.check(plan, *_experts_problems(plan))
        grid = layer.grid
        assert isinstance(grid, Grid)
        is_symmetric = grid.scheme != "asym"
        size = grid.group if isinstance(grid.group, int) else None
        groups.setdefault((grid.bits, is_symmetric, size), []).append(name)
        parts = _whole(name, layer, dtype) if is_whole else _packed(name, layer, grid, is_symmetric, dtype)
        for part, tensor in parts.items():
            yield f"{name}.{part}", tensor
    yield from transform_tensors(model.down)


def _is_whole(model: LowBitModel) -> bool:
    """Whether weights are stored a byte each: 8 bits a row, symmetric, beside inputs of 8 bits."""
    if model.grids is None or model.grids.inputs.bits != 8:
        return False
    grids = [layer.grid for layer in model.layers.values()]
    return all(
        isinstance(grid, Grid) and grid.bits == 8 and not isinstance(grid.group, int) and grid.scheme != "asym"
        for grid in grids
    )


def _whole(name: str, layer: Quantized, dtype: torch.dtype) -> dict[str, Tensor]:
    parts = unsigned(layer)
    return {
        "weight": (parts.codes.to(torch.int16) - 128).to(torch.int8),
        "weight_scale": stored_exactly(name, parts.scale, dtype),
    }


def _packed(name: str, layer: Quantized, grid: Grid, is_symmetric: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    parts = unsigned(layer)
    packed = {
        "weight_packed": pack(parts.codes, grid.bits),
        "weight_scale": stored_exactly(name, parts.scale, dtype),
        "weight_shape": torch.tensor(parts.codes.shape),
    }
    if not is_symmetric:
        packed["weight_zero_point"] = pack(parts.zero.T, grid.bits).T.contiguous()
    return packed


def _config(
    groups: Mapping[tuple[int, bool, int | None], list[str]], *, layout: str, ignore: list[str]
) -> dict[str, Any]:
    """`quantization_config`: one group of layers for each way of packing; where there is one, it is all linears."""
    made = {}
    for number, ((bits, is_symmetric, size), names) in enumerate(groups.items()):
        weights = {
            "num_bits": bits,
            "type": "int",
            "symmetric": is_symmetric,
            "strategy": "channel" if size is None else "group",
            "group_size": size,
            "dynamic": False,
        }
        made[f"group_{number}"] = {
            "targets": ["Linear"] if len(groups) == 1 else names,
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ignore,
        "config_groups": made,
        "kv_cache_scheme": None,
    }


def _check_readable(folder: ModelFolder, config: Mapping[str, Any]) -> None:
    if config.get("format") not in _READABLE:
        raise BadInput(
            f"{folder.path}: compressed-tensors format {config.get('format')!r} is not read. "
            f"Readable: {', '.join(_READABLE)}"
        )
    read_grids(folder)


def _arguments(layer: StoredLayer, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """How a layer's weights are packed, by the first group of the configuration that names it."""
    for group in (config.get("config_groups") or {}).values():
        if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
            continue
        if any(_names(str(target), layer.name) for target in group.get("targets", ())):
            arguments: dict[str, Any] = group["weights"]
            bits = arguments.get("num_bits")
            if arguments.get("type", "int") != "int" or not isinstance(bits, int) or not 2 <= bits <= 8:
                raise BadInput(
                    f"has {arguments.get('type')} codes of {bits} bits. Readable: whole numbers of 2 to 8 bits"
                )
            return arguments
    raise BadInput("no group of quantization_config names it. Take config.json from where the weights are from")


def _names(target: str, name: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), name) is not None
    return target in ("Linear", name)


def _unpacked(layer: StoredLayer, arguments: Mapping[str, Any]) -> tuple[str, Tensor | Quantized]:
    bits, offset = int(arguments["num_bits"]), 2 ** (int(arguments["num_bits"]) - 1)
    rows, columns = (int(length) for length in layer.part("weight_shape", shape=(2,)))
    words, scale = layer.part("weight_packed"), layer.part("weight_scale")
    is_old = bits == 3 and stands_ten_to_a_word(words, columns)
    scale = scale.expand(rows, 1) if scale.numel() == 1 else scale
    zero = torch.full(scale.shape, offset, dtype=torch.int16)
    if not arguments.get("symmetric", True):
        stored = layer.part("weight_zero_point")
        if stored.dtype == torch.int32:
            lines = stored.T.contiguous()
            zero = (unpack_tens(lines, rows) if is_old else unpack(lines, bits, rows)).T
        else:  # as it is, around 0: older files
            zero = stored.to(torch.int16) + offset
    return layer.weight(
        codes=unpack_tens(words, columns) if is_old else unpack(words, bits, columns),
        scale=scale,
        zero=zero,
        bits=bits,
        index=layer.part("weight_g_idx", shape=(columns,)) if layer.has("weight_g_idx") else None,
    )


def _whole_numbers(layer: StoredLayer, arguments: Mapping[str, Any]) -> tuple[str, Tensor | Quantized]:
    offset = 2 ** (int(arguments["num_bits"]) - 1)
    weight, scale = layer.part("weight").to(torch.int16), layer.part("weight_scale")
    scale = scale.reshape(-1, 1).expand(len(weight), 1) if scale.numel() in (1, len(weight)) else scale
    zero = torch.zeros(scale.shape, dtype=torch.int16)
    if not arguments.get("symmetric", True):
        zero = layer.part("weight_zero_point").to(torch.int16).reshape(scale.shape)
    return layer.weight(codes=weight + offset, scale=scale, zero=zero + offset, bits=int(arguments["num_bits"]))
