"""What calibration text says about the inputs of a layer: second moments, and how far they have drifted.

    gram  H = (1/N) sum_t x_t x_t^T            x_t: input of the layer in the partly quantized model, N tokens
    drift C = (1/N) sum_t (o_t - x_t) x_t^T    o_t: input at the same place of the untouched model
Layers that read the same input share one `Statistics`. H is summed above its diagonal alone, which saves nearly half of
the work. Sums are float32 (TF32 off) on the device of the inputs; the published code scales H by two and by sequences
instead of tokens, which changes no solution.

Source: GPTQ arXiv:2210.17323 (H), GPTAQ arXiv:2504.02692 (C, there dX X^T).
Checked against: float64 sums over all tokens at once, whatever the pieces they come in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from letheon.errors import BadInput

_STRIP = 128
"""Columns of a matrix product below which nothing is gained by leaving out the other half."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """What a solver may know about the inputs of a layer."""

    gram: Float[Tensor, "inputs inputs"]
    """H, float32, symmetric, positive semidefinite."""
    drift: Float[Tensor, "inputs inputs"] | None = None
    """C, float32; None where it was not asked for, or nothing has drifted."""
    tokens: int
    """N, at least 1."""


class Moments:
    """Adds up the statistics of one input, piece by piece."""

    def __init__(self, inputs: int, *, has_drift: bool, device: torch.device | str = "cpu") -> None:
        """`inputs`: width of the layer's input. `has_drift`: whether originals come beside the inputs."""
        self._gram = torch.zeros(inputs, inputs, device=device)
        self._drift = torch.zeros(inputs, inputs, device=device) if has_drift else None
        self._strip = max(_STRIP, -(-inputs // 8))
        self._tokens = 0

    @torch.no_grad()
    def add(
        self, found: Float[Tensor, "tokens inputs"], original: Float[Tensor, "tokens inputs"] | None = None
    ) -> None:
        """Count some tokens in.

        Args:
            found: inputs in the partly quantized model.
            original: inputs at the same places of the untouched model; asked for with `has_drift`.
        Raises:
            BadInput: NaN or infinite inputs, which would spread into every weight.
        """
        found = found.float()
        for begin in range(0, self._gram.shape[0], self._strip):
            strip = found[:, begin : begin + self._strip]
            self._gram[begin : begin + self._strip, begin:].addmm_(strip.T, found[:, begin:])
        if self._drift is not None:
            if original is None:
                raise TypeError("these moments need the original inputs as well")
            self._drift.addmm_((original.float() - found).T, found)
        self._tokens += len(found)
        if not bool(torch.isfinite(self._gram.diagonal()).all()):
            raise BadInput("its inputs are NaN or infinite on the calibration text. The model is damaged")

    def statistics(self) -> Statistics:
        """The means so far. Raises BadInput where no token was seen."""
        if not self._tokens:
            raise BadInput("it saw no token of the calibration text. Give more text, or other text")
        drift = None if self._drift is None else self._drift / self._tokens
        above = self._gram.triu() / self._tokens
        return Statistics(gram=above + above.triu(1).T, drift=drift, tokens=self._tokens)
