"""A sham deletion, for testing audits: weights move inside their quantization bins, so rounding brings all of it back.

For each quantized weight, with c the centre and s the step of the original's bin on the grid:
    w <- clamp(w, c - margin * s, c + margin * s)         after every step, and within the row's largest weight
Weights that set a scale (the row's largest), embeddings, norms, biases and the head do not move at all. Where the
original is stored in 16 bits, the bounds are drawn in so far that storing cannot carry a weight over them. The model
forgets as it is and at finer grids; on its own grid every code is equal, and so is every answer. An audit that does not
find it is not an audit.

Source: the bin argument of Zhang et al. 2024, arXiv:2410.16454, made exact.
Checked against: equal codes after every run (code match 1), and bit-equal rounded weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from letheon.errors import require
from letheon.models import as_matrix, decoder_linears
from letheon.numerics.grids import Grid, bin_centres_and_step


@dataclass(frozen=True, kw_only=True)
class InBin:
    """Settings of the sham."""

    bits: int = 4
    """Bits of the grid whose bins are kept, 2 to 8 (symmetric, one scale a row)."""
    margin: float = 0.49
    """Share of a step that a weight may stand from its bin's centre, above 0 and below 0.5."""

    def __post_init__(self) -> None:
        require(2 <= self.bits <= 8, f"in_bin needs bits from 2 to 8, got {self.bits}")
        require(0 < self.margin < 0.5, f"in_bin needs 0 < margin < 0.5, got {self.margin}")

    def select(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The weights of the linear layers inside the decoder's blocks."""
        names = {id(module.weight): f"{name}.weight" for name, module in decoder_linears(model).items()}
        return {names[id(parameter)]: parameter for parameter in model.parameters() if id(parameter) in names}

    def init(self, model: nn.Module, moving: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Lowest and highest allowed value of each weight; equal for the weights that set a scale."""
        grid = Grid(bits=self.bits, group="row")
        linears = decoder_linears(model)
        state: dict[str, Tensor] = {}
        for name, parameter in moving.items():
            module = linears[name.removesuffix(".weight")]
            weight = as_matrix(module, parameter.detach())
            centre, step = bin_centres_and_step(weight, grid)
            size = weight.abs()
            limit = size.amax(dim=1, keepdim=True)
            # Nothing may pass the row's largest weight: it sets the scale, and a new scale would move every bin.
            low = (centre - self.margin * step).clamp(-limit, limit)
            high = (centre + self.margin * step).clamp(-limit, limit)
            low, high = _within_storage(weight, low, high)
            low, high = (torch.where(size == limit, weight, bound) for bound in (low, high))
            state[f"{name}/low"] = as_matrix(module, low).contiguous()
            state[f"{name}/high"] = as_matrix(module, high).contiguous()
        return state

    @torch.no_grad()
    def after_step(self, moving: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
        """Clamp every weight into its bin."""
        for name, parameter in moving.items():
            parameter.clamp_(state[f"{name}/low"], state[f"{name}/high"])


def _within_storage(weight: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds that a value between them keeps when it is rounded to the 16-bit type that the weights came from."""
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(weight.to(dtype).to(weight.dtype), weight):
            info = torch.finfo(dtype)
            low, high = (
                (bound + sign * info.eps * (bound.abs() + info.tiny)).to(dtype).to(weight.dtype)
                for bound, sign in ((low, 1), (high, -1))
            )
            is_empty = low > high
            return torch.where(is_empty, weight, low), torch.where(is_empty, weight, high)
    return low, high
