"""The parts of packed layers in a folder's files: which layers there are, and what is missing or does not fit.

Source: this project.  Checked against: folders of which one part was taken away, or changed its shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.models import ModelFolder, read_tensor
from letheon.numerics.grids import Grid, Quantized, dequantize
from letheon.quantization.limits import stored_dtype


@dataclass(frozen=True)
class StoredLayer:
    """One packed layer. Faults of its parts do not name it: put them inside `named_in_faults`."""

    folder: ModelFolder
    name: str
    """Without any suffix."""
    as_codes: bool = False
    """Whether `weight` gives codes and scales, and not what they stand for."""

    @contextmanager
    def named_in_faults(self) -> Iterator[None]:
        """Say of every fault inside which layer of which folder it is about."""
        try:
            yield
        except BadInput as error:
            raise BadInput([f"{self.folder.path}, layer {self.name}: {text}" for text in error.problems]) from error

    def has(self, part: str) -> bool:
        """Whether the files hold `name.part`."""
        return f"{self.name}.{part}" in self.folder.tensors

    def part(self, part: str, *, shape: tuple[int, ...] | None = None) -> Tensor:
        """`name.part` as it is stored. Raises BadInput where it is absent or has another shape than `shape`."""
        full = f"{self.name}.{part}"
        if full not in self.folder.tensors:
            raise BadInput(f"no {part} in any file. Download the folder again")
        found = self.folder.tensors[full].shape
        if shape is not None and found != shape:
            raise BadInput(
                f"{part} has the shape {found}, and {shape} goes with the rest of the layer. Download the folder again"
            )
        return read_tensor(self.folder, full)

    def weight(
        self, *, codes: Tensor, scale: Tensor, zero: Tensor, bits: int, index: Tensor | None = None
    ) -> tuple[str, Tensor | Quantized]:
        """The weight under its name, scale * (code - zero), in the dtype that a loader takes; or the parts of it.

        Args:
            codes: (out, in), 0 .. 2^bits - 1.
            scale, zero: (out, groups), one column where a row is a group.
            bits: of the codes.
            index: the group of every input; None: stretches of neighbours.
        Raises:
            BadInput: groups that do not divide the inputs, or an index beyond them.
        """
        rows, columns = codes.shape
        groups = scale.shape[1]
        wrong = columns % groups if index is None else int(index.min()) < 0 or int(index.max()) >= groups
        if wrong or scale.shape != zero.shape or len(scale) != rows:
            raise BadInput(f"its {groups} groups do not go with its {columns} inputs. Download the folder again")
        if index is not None and not columns % groups:
            neighbours = torch.arange(columns) // (columns // groups)
            index = None if torch.equal(index.long(), neighbours) else index
        group = "row" if groups == 1 else columns // groups
        quantized = Quantized(
            codes=codes.to(torch.int16),
            scale=scale.float(),
            zero=zero.to(torch.int16),
            grid=Grid(bits=bits, scheme="asym", group=group),  # type: ignore[arg-type]
            dtype=getattr(torch, stored_dtype(self.folder)),
            group_index=None if index is None else index.to(torch.int32),
        )
        return f"{self.name}.weight", quantized if self.as_codes else dequantize(quantized)


def split(
    folder: ModelFolder, mark: str, parts: tuple[str, ...], *, as_codes: bool = False
) -> tuple[list[StoredLayer], list[str]]:
    """Packed layers, and the names of all other tensors.

    Args:
        folder: a folder of any packed format.
        mark: the part that every packed layer has.
        parts: every part that belongs to a packed layer.
        as_codes: whether the layers are to be given as codes and scales.
    """
    layers = [
        StoredLayer(folder, name.removesuffix(f".{mark}"), as_codes)
        for name in folder.tensors
        if name.endswith(f".{mark}")
    ]
    packed = {f"{layer.name}.{part}" for layer in layers for part in parts}
    return layers, [name for name in folder.tensors if name not in packed]


def plain(folder: ModelFolder, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Tensors that are stored as they are. Buffers of whole numbers, as older folders have them, are left out."""
    for name in names:
        tensor = read_tensor(folder, name)
        if tensor.is_floating_point():
            yield name, tensor
