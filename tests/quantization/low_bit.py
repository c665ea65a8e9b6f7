"""Low-bit models as formats are given them, and the same rounding in memory: small ones, made from a folder on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from letheon.lowbit.matrices import decoder_matrices
from letheon.methods import build
from letheon.models import inspect_model, load_model, read_tensor
from letheon.numerics.grids import CodebookGrid, Grid, Quantized, dequantize, quantize
from letheon.quantization.limits import Plan
from letheon.quantization.low_bit import LowBitModel
from tests.architectures.models import make_from, mixture, save_model_folder
from tests.toys import bits

PROMPT = [[5, 77, 301, 12, 640, 9]]
TOKENS = 64


class FromDisk(Mapping[str, Tensor]):
    """Tensors of a folder, read when they are asked for, and counted."""

    def __init__(self, folder: Any, names: list[str]) -> None:
        self.folder, self.names, self.asked = folder, names, 0

    def __getitem__(self, name: str) -> Tensor:
        self.asked += 1
        return read_tensor(self.folder, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def low_bit_model(source: Path, grid: Grid | CodebookGrid, **changes: Any) -> LowBitModel:
    """The matrices of the folder's decoder rounded to nearest."""
    folder = inspect_model(source)
    matrices = decoder_matrices(load_model(source))
    layers: dict[str, Quantized] = {}
    for name, matrix in matrices.items():
        layers[name] = quantize(matrix.of_file(read_tensor(folder, f"{name}.weight")).contiguous(), grid)
    made = LowBitModel(
        original=folder,
        layers=layers,
        others=FromDisk(folder, [name for name in folder.tensors if name.removesuffix(".weight") not in layers]),
        transposed=frozenset(name for name, matrix in matrices.items() if matrix.is_turned),
        experts=frozenset(name for name, matrix in matrices.items() if matrix.is_expert),
    )
    return replace(made, **changes)


def plan_of(model: LowBitModel, grid: Grid | CodebookGrid, **changes: Any) -> Plan:
    """What a pipeline knows before it solves anything."""
    shapes = {name: (layer.codes.shape[0], layer.codes.shape[1]) for name, layer in model.layers.items()}
    plan = Plan(original=model.original, shapes=shapes, grid=grid, transposed=model.transposed, experts=model.experts)
    return replace(plan, **changes)


def written(name: str | dict[str, Any], model: LowBitModel, target: Path) -> Path:
    """The model in a format, checked as the pipeline checks it."""
    writer = build("format", name)
    writer.check(plan_of(model, next(iter(model.layers.values())).grid))
    target.mkdir()
    writer.write(model, target)
    return target


def in_memory(source: Path, model: LowBitModel) -> Any:
    """The folder's model with every layer at the values that its codes stand for."""
    loaded = load_model(source)
    matrices = decoder_matrices(loaded)
    for name, layer in model.layers.items():
        matrices[name].weight.copy_(dequantize(layer).float())
    return loaded


def greedy(model: Any) -> list[int]:
    """64 tokens, whatever they are."""
    ids = torch.tensor(PROMPT)
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=TOKENS, max_new_tokens=TOKENS
    )
    return [int(token) for token in made[0, ids.shape[1] :]]


@cache
def tiny_llama(dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A Llama whose layers go into every format: 64 wide, two key heads for four of queries."""
    from transformers import LlamaConfig

    settings: dict[str, Any] = {
        "vocab_size": 768,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    model = make_from(LlamaConfig(**{**settings, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # as trained: a writer that mixes norms up is found
                parameter.add_(torch.linspace(-0.2, 0.3, parameter.numel()).view_as(parameter))
    name = "-".join(["tiny", str(dtype), *(f"{key}-{value}" for key, value in changes.items())])
    return save_model_folder(model, Path(os.environ["LETHEON_HOME"]) / "formats" / name, dtype=dtype)


@cache
def tiny_mixture(experts: int = 12) -> Path:
    """A Mixtral of more experts than one digit counts, three of which hear a token."""
    model = mixture(num_local_experts=experts, num_experts_per_tok=3, initializer_range=0.3, hidden_size=64)
    return save_model_folder(model, Path(os.environ["LETHEON_HOME"]) / "formats" / f"mixture-{experts}")


def same_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(bits(left[name]) == bits(right[name]) for name in left)


def fresh(script: str, *arguments: str) -> Any:
    """What a script prints as JSON, in a new process that warns about nothing."""
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def config_of(folder: Path) -> dict[str, Any]:
    """What config.json says."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def edit_config(folder: Path, **changes: Any) -> None:
    """Change what config.json says of the quantization."""
    config = config_of(folder)
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
