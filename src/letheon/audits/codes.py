"""How far the unlearning moved the weights, measured in steps of each low-bit grid: why rounding may undo it.

    code_match       share of weights whose code is the original's: with equal scales, rounded, they are the original's
    shift_in_steps   mean |w - w_original| / step of the original's grid

Source: Zhang et al. 2024, arXiv:2410.16454.  Checked against: a model and itself, each layer by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from letheon.errors import BadInput
from letheon.lowbit.low_bit_pass import basis_said
from letheon.lowbit.matrices import Matrix, decoder_matrices
from letheon.models import ModelFolder, read_tensor, stored_name
from letheon.numerics.grids import code_match, shift_in_steps


def code_figures(
    model: Any, original: ModelFolder, subject: ModelFolder, grids: Mapping[str, Any]
) -> dict[str, dict[str, float | None]]:
    """Both numbers for each grid, over all matrices of the decoder; None where the two folders cannot be compared.

    Args:
        model: the audited one, whose matrices are looked up in both files; its own weights are those of a packed file.
        original, subject: the folders before and after.
        grids: name -> grid.
    """
    unknown: dict[str, dict[str, float | None]] = {name: {"code_match": None, "shift_in_steps": None} for name in grids}
    equal = dict.fromkeys(grids, 0.0)
    moved: dict[str, float | None] = dict.fromkeys(grids, 0.0)
    total = 0
    if basis_said(original.config) != basis_said(subject.config):  # weights in another basis: nothing to compare
        return unknown
    try:
        for name, matrix in decoder_matrices(model).items():
            before, after = (_values(name, matrix, folder) for folder in (original, subject))
            if before.shape != after.shape:
                return unknown
            total += before.numel()
            for grid_name, grid in grids.items():
                equal[grid_name] += code_match(before, after, grid) * before.numel()
                shift, so_far = shift_in_steps(before, after, grid), moved[grid_name]
                moved[grid_name] = None if shift is None or so_far is None else so_far + shift * before.numel()
    except BadInput:
        return unknown
    return {
        name: {"code_match": equal[name] / total, "shift_in_steps": None if far is None else far / total}
        for name, far in moved.items()
    }


def _values(name: str, matrix: Matrix, folder: ModelFolder) -> Tensor:
    if folder.is_packed:
        return matrix.weight.float().contiguous()
    return matrix.of_file(read_tensor(folder, stored_name(folder, f"{name}.weight"))).float().contiguous()
