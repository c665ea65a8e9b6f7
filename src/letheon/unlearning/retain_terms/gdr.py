"""Gradient descent on the retain set: go on learning what must stay.

For a retain batch of B sequences, log p reduced over labelled tokens only:
    loss = -mean over sequences of (mean over its labelled tokens of log p)      denominator "sequence"
    loss = -mean over all labelled tokens of log p                               denominator "token"

Source: the GDR regulariser of MUSE, arXiv:2407.06460 (GradDiff: Liu et al. 2022, arXiv:2203.12817).
Checked against: plain cross-entropy, a closed form, finite differences, one batch of 8 = 8 of 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GDR:
    """Settings of gradient descent on the retain set."""

    denominator: Literal["sequence", "token"] = "sequence"
    """What the mean is over: sequences (a text weighs as much as an answer) or labelled tokens (as Hugging Face's
    loss)."""

    needs: ClassVar[tuple[str, ...]] = ("log_probs",)

    @property
    def reduction(self) -> Literal["mean", "sum"]:
        """How a sequence's labelled tokens are reduced before `loss` sees them."""
        return "mean" if self.denominator == "sequence" else "sum"

    def loss(self, current: Float[Tensor, " batch"]) -> tuple[Float[Tensor, ""], int]:
        """Sum of -log p over the batch, and how many sequences it holds (the loop counts tokens where asked to)."""
        return -current.sum(), len(current)
