"""Every matrix of the decoder's blocks rounded to a low-bit grid, embeddings and head kept.

    W <- Q(W) in place, for each linear and each expert of a mixture (routers are kept)
Afterwards W is read again from the file, so it is what it was to the bit (of a file that is packed already, W is what
its codes stand for, and a copy is kept).
The grid must be the one that ships: a deletion can hold on every grid but one.

Source: Zhang et al. 2024, arXiv:2410.16454.  Checked against: bit-equal weights afterwards, `fake_quantize` by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from letheon.errors import BadInput, NotMeasured
from letheon.lowbit.matrices import Matrix, decoder_matrices
from letheon.models import ModelFolder, check_quantizable, read_tensor, stored_name
from letheon.numerics.grids import CodebookGrid, Grid, fake_quantize


@dataclass(frozen=True, kw_only=True)
class QuantizedWeights:
    """Settings of the grid."""

    bits: int = 4
    """2 to 8; of a uniform grid."""
    group: int | Literal["row", "tensor"] = "row"
    """Weights that share a scale; of a uniform grid."""
    scheme: Literal["sym", "sym_clipped", "sym_centred", "asym"] = "sym"
    """Convention of step and codes; of a uniform grid."""
    levels: Literal["uniform", "fp4", "nf4"] = "uniform"
    """A uniform grid, or a table of 16 values with one scale a block of 64 weights."""

    def __post_init__(self) -> None:
        _ = self.grid

    @property
    def grid(self) -> Grid | CodebookGrid:
        """The grid these settings describe."""
        if self.levels != "uniform":
            return CodebookGrid(self.levels)
        return Grid(bits=self.bits, group=self.group, scheme=self.scheme)

    @property
    def provenance(self) -> str:
        """One line for the report."""
        if self.levels != "uniform":
            return f"round to nearest {self.levels.upper()} value, one scale for 64 weights; embeddings and head kept"
        scale = {"row": "one scale a row", "tensor": "one scale a tensor"}.get(
            str(self.group), f"one scale for {self.group} inputs"
        )
        return f"round to nearest, {self.bits} bits, {self.scheme}, {scale}; embeddings and head kept"

    @contextmanager
    def applied(self, model: Any, folder: ModelFolder) -> Iterator[None]:
        """Round in place; put the file's weights back.

        Raises:
            NotMeasured: an architecture whose matrices are not known, or a group that does not divide a layer's inputs.
        """
        try:
            check_quantizable(folder)
            matrices = decoder_matrices(model)
            stored = {} if folder.is_packed else {name: stored_name(folder, f"{name}.weight") for name in matrices}
        except BadInput as error:
            raise NotMeasured(str(error)) from error
        # A packed file has no weight to read again.
        kept = {name: matrix.weight.clone() for name, matrix in matrices.items() if folder.is_packed}
        try:
            for name, matrix in matrices.items():
                _round(name, matrix, self.grid)
            yield
        finally:
            for name, matrix in matrices.items():
                if folder.is_packed:
                    _set(matrix, kept[name])
                else:
                    _set(matrix, matrix.of_file(read_tensor(folder, stored[name])))


def _round(name: str, matrix: Matrix, grid: Grid | CodebookGrid) -> None:
    try:
        rounded = fake_quantize(matrix.weight.contiguous(), grid)
    except BadInput as error:
        raise NotMeasured(f"layer {name}: {error}") from error
    _set(matrix, rounded)


@torch.no_grad()
def _set(matrix: Matrix, weight: torch.Tensor) -> None:
    matrix.weight.copy_(weight.to(matrix.weight.dtype))
