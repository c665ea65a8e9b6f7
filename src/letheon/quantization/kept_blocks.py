"""What a block has become, one file a block, so that a killed run goes on after the last whole one.

A file holds the codes, scales and zero points of the block's layers and every other tensor of the block as it is now
(norms and biases may have been scaled). A block is written in one go; layers are read again one at a time.

Source: this project.  Checked against: bit-equal layers after a round trip; a file that was cut off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from letheon.errors import BadInput
from letheon.numerics.grids import CodebookGrid, Grid, Quantized
from letheon.runs.folder import replacing_file


@dataclass(frozen=True)
class KeptBlock:
    """A block that is done."""

    layers: Mapping[str, Quantized]
    """Name of the module -> its rounded matrix (out, in)."""
    others: Mapping[str, Tensor]
    """Name of the parameter -> everything else in the block."""
    figures: Mapping[str, Any]
    """What was lost: plain data."""


def keep_block(path: Path, block: KeptBlock) -> None:
    """Write a block. Raises CannotFinish where the disk refuses; the file is there whole or not at all."""
    tensors: dict[str, Tensor] = {f"other/{name}": tensor for name, tensor in block.others.items()}
    said: dict[str, Any] = {}
    for name, layer in block.layers.items():
        parts = {"codes": layer.codes, "scale": layer.scale, "zero": layer.zero, "index": layer.group_index}
        # Layers that were solved as one share an index; a file wants each tensor to have memory of its own.
        tensors |= {f"{part}/{name}": tensor.clone() for part, tensor in parts.items() if tensor is not None}
        said[name] = {
            "grid": asdict(layer.grid),
            "is_table": isinstance(layer.grid, CodebookGrid),
            "dtype": str(layer.dtype).removeprefix("torch."),
            "has_index": layer.group_index is not None,
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {"layers": said, "others": list(block.others), "figures": dict(block.figures)}
    metadata = {"block": json.dumps(plain)}  # one entry: several would come in any order, and bytes are compared
    with replacing_file(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def kept_block(path: Path) -> KeptBlock:
    """Read a block again. Raises BadInput where the file is damaged."""
    try:
        with safe_open(str(path), framework="pt") as file:
            said = _said(file)
            names: list[str] = said["others"]
            return KeptBlock(
                {name: _layer(file, name, how) for name, how in said["layers"].items()},
                {name: file.get_tensor(f"other/{name}") for name in names},
                said["figures"],
            )
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BadInput(f"{path} is damaged ({error}). Remove it, and the block is made again") from error


class KeptLayers(Mapping[str, Quantized]):
    """The layers of many blocks by name, each read from its file when it is asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._places: dict[str, tuple[Path, dict[str, Any]]] = {}
        for path in paths:
            with safe_open(str(path), framework="pt") as file:
                said = _said(file)["layers"]
            self._places |= {name: (path, how) for name, how in said.items()}

    def __getitem__(self, name: str) -> Quantized:
        path, how = self._places[name]
        with safe_open(str(path), framework="pt") as file:
            return _layer(file, name, how)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _said(file: Any) -> dict[str, Any]:
    return dict(json.loads(file.metadata()["block"]))


def _layer(file: Any, name: str, how: Mapping[str, Any]) -> Quantized:
    grid: Grid | CodebookGrid = CodebookGrid(**how["grid"]) if how["is_table"] else Grid(**how["grid"])
    return Quantized(
        codes=file.get_tensor(f"codes/{name}"),
        scale=file.get_tensor(f"scale/{name}"),
        zero=file.get_tensor(f"zero/{name}"),
        grid=grid,
        dtype=getattr(torch, how["dtype"]),
        group_index=file.get_tensor(f"index/{name}") if how["has_index"] else None,
    )
