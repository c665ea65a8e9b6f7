"""Low-bit grids for what flows through a model: every token gets its own step from its own values, as it comes.

A token's channels x (or a group of them) share one step; b bits, clip ratio c:
    asym  lo = c min(x, 0), hi = c max(x, 0), s = (hi - lo) / (2^b - 1), z = round(-lo / s)
          Q(x) = s (clamp(round(x / s) + z, 0, 2^b - 1) - z)
    sym   s = c max|x| / (2^(b-1) - 1)           Q(x) = s clamp(round(x / s), -2^(b-1), 2^(b-1) - 1)
round: half to even; float32, or float64 where x is. 0 stays 0, and a token of zeros stays one. Keys and values are
rounded for each token and head alone, so a cache that grows token by token holds what one pass over all would give.

Through rounding the gradient passes as if nothing had been rounded: dL/dx := dL/dQ(x). Steps are data, not parameters.
With mask="clip" it is 0 where x lies outside [lo, hi] (sym: c max|x| on both sides).

Source: QuaRot arXiv:2404.00456 (grids, clip ratios), RoSTE arXiv:2502.09003 (error, straight-through training).
Checked against: a loop over single values; |Q(x) - x| <= s/2 within the range; x + (Q(x) - x).detach() for gradients;
measured errors of Gaussian tokens, of an outlier channel and of whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from letheon.errors import BadInput, require


@dataclass(frozen=True, kw_only=True)
class TokenGrid:
    """How a token is rounded. See the module's docstring for the formulas."""

    bits: int = 4
    """2 to 8; 16 means off (values pass unchanged)."""
    scheme: Literal["asym", "sym"] = "asym"
    """asym spends its levels on the range that is there; sym has a level for 0 in its middle."""
    clip: float = 1.0
    """c, above 0 and at most 1. After training QuaRot uses 0.9 for activations and 0.95 for keys and values."""
    group: int | None = None
    """Neighbouring channels that share a step; null: all of them (of a head, for keys and values)."""
    mask: Literal["none", "clip"] = "none"
    """Which gradients pass: all, or those of values within the range. At clip 1.0 there is no difference."""

    def __post_init__(self) -> None:
        require(
            self.bits in (2, 3, 4, 5, 6, 7, 8, 16),
            f"a token grid of {self.bits} bits does not exist. Use 2 to 8, or 16 to leave values as they are",
        )
        require(0 < self.clip <= 1, f"a clip ratio of {self.clip} is not usable. Use a number above 0, at most 1")
        require(
            self.group is None or self.group >= 1,
            f"a token group of {self.group} channels is not usable. Use a number such as 128, or null for all",
        )

    @property
    def is_off(self) -> bool:
        """Whether values pass unchanged."""
        return self.bits == 16


def round_tokens(x: Float[Tensor, "*tokens channels"], grid: TokenGrid) -> Float[Tensor, "*tokens channels"]:
    """The nearest values on each token's grid, in the dtype of x; the gradient passes straight.

    Args:
        x: any floating dtype. A NaN or infinite value makes its token NaN, which whoever looks at losses will see.
        grid: with 16 bits x itself is returned.
    Raises:
        BadInput: a group that does not divide the channels.

    >>> round_tokens(torch.tensor([[0.0, 1.0, 7.4, 15.0]]), TokenGrid(bits=4))
    tensor([[ 0.,  1.,  7., 15.]])
    """
    if grid.is_off:
        return x
    _check(x, grid)
    rounded: Tensor = _Straight.apply(x, grid)  # type: ignore[no-untyped-call]
    return rounded


def token_errors(x: Float[Tensor, "*tokens channels"], grid: TokenGrid) -> Float[Tensor, "*tokens"]:
    """||Q(x) - x||^2 / ||x||^2 of every token, float64; 0 for a token of zeros. Raises what `round_tokens` raises."""
    x = x.detach()
    rounded = round_tokens(x, grid).double()
    wide = x.double()
    return (rounded - wide).square().sum(-1) / wide.square().sum(-1).clamp_min(torch.finfo(torch.float64).tiny)


class _Straight(torch.autograd.Function):
    """Rounded tokens, and the gradient as if nothing had been rounded. Keeps nothing, or one byte a value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: TokenGrid) -> Tensor:
        grouped = x.detach().reshape(*x.shape[:-1], -1, grid.group or x.shape[-1])
        wide = grouped if grouped.dtype == torch.float64 else grouped.float()
        low, high = _range(wide, grid)
        ctx.is_masked = grid.mask == "clip"
        if ctx.is_masked:
            ctx.save_for_backward(((wide >= low) & (wide <= high)).view(x.shape))
        return _rounded(wide, low, high, grid).to(x.dtype).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        if not ctx.is_masked:
            return gradients[0], None
        is_within: Bool[Tensor, "*tokens channels"] = ctx.saved_tensors[0]
        return gradients[0] * is_within, None


def _check(x: Tensor, grid: TokenGrid) -> None:
    if grid.group is not None and x.shape[-1] % grid.group:
        raise BadInput(
            f"a token group of {grid.group} does not divide {x.shape[-1]} channels. "
            f"Use a divisor of {x.shape[-1]}, or null for all of them"
        )


def _range(wide: Tensor, grid: TokenGrid) -> tuple[Tensor, Tensor]:
    """lo and hi of every group, (..., groups, 1)."""
    smallest, largest = wide.aminmax(dim=-1, keepdim=True)
    if grid.scheme == "sym":
        largest = torch.maximum(-smallest, largest)
        smallest = -largest
    return smallest.clamp(max=0) * grid.clip, largest.clamp(min=0) * grid.clip


def _rounded(wide: Tensor, low: Tensor, high: Tensor, grid: TokenGrid) -> Tensor:
    if grid.scheme == "sym":
        lowest, highest = -(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1
        step = high / highest
    else:
        lowest, highest = 0, 2**grid.bits - 1
        step = (high - low) / highest
    step = step.masked_fill(step == 0, 1)  # zeros, or a range so small that float32 has no step for it
    zero = torch.zeros_like(step) if grid.scheme == "sym" else (-low / step).round_()
    codes: Tensor = (wide / step).round_().add_(zero).clamp_(lowest, highest)
    return codes.sub_(zero).mul_(step)
