"""Weights cut off before they are rounded: what the largest lose, the others gain by a smaller step.

For every group of a row, M = max|w|, and for each limit c = M, 0.95 M .. 0.55 M (x: the group's inputs, T tokens):
    error = (1/T) sum_t ((Q(clamp(w, -c, c)) - w) . x_t)^2
The first limit with the smallest error is kept. Groups are searched alone: errors of a row's groups are not added up.
Where both ends are cut, an asym zero point is half of a whole number and the last digit of c decides about it; so c is
what the weight's dtype holds, and the search judges what will be rounded.

Source: AWQ arXiv:2306.00978; limits as in its authors' code.
Checked against: a loop over single groups, limits and tokens, in float64.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from letheon.numerics.grids import Grid, fake_quantize

_TRIALS, _STEPS = 10, 20
"""Limits tried, and how many of their steps would make M: half of the range at most is given away."""
_AT_ONCE = 2**24
"""Errors of single tokens held at once."""


@torch.no_grad()
def clip_limits(
    weight: Float[Tensor, "rows inputs"], inputs: Float[Tensor, "tokens inputs"], grid: Grid
) -> Float[Tensor, "rows groups"]:
    """The best limit of every group, float32.

    Args:
        weight: (out, in).
        inputs: what the layer hears.
        grid: by row or by group, 2 to 8 bits.
    """
    size = weight.shape[1] if grid.group == "row" else int(grid.group)
    heard = inputs.float().reshape(len(inputs), -1, size).permute(1, 2, 0)  # (groups, size, tokens)
    at_once = max(1, _AT_ONCE // (heard.shape[0] * heard.shape[2]))
    return torch.cat([_limits(some, heard, grid) for some in torch.split(weight.detach(), at_once)])


def clipped(weight: Float[Tensor, "rows inputs"], limits: Float[Tensor, "rows groups"]) -> Float[Tensor, "rows inputs"]:
    """The weight with every group held between its limits."""
    limit = limits.repeat_interleave(weight.shape[1] // limits.shape[1], dim=1).to(weight.dtype)
    return torch.clamp(weight, -limit, limit)


def _limits(stored: Tensor, heard: Tensor, grid: Grid) -> Tensor:
    weight = stored.float()
    widest = weight.reshape(len(weight), *heard.shape[:2]).abs().amax(dim=-1)
    best_error, best = torch.full_like(widest, torch.inf), widest
    for trial in range(_TRIALS):
        limit = (widest * (1 - trial / _STEPS)).to(stored.dtype).float()
        change = fake_quantize(clipped(weight, limit), grid) - weight
        by_group = change.reshape(len(weight), *heard.shape[:2]).transpose(0, 1)  # (groups, rows, size)
        error = (by_group @ heard).square_().mean(dim=-1).T
        is_better = error < best_error
        best_error, best = torch.where(is_better, error, best_error), torch.where(is_better, limit, best)
    return best
