"""Gradient ascent: raise the forget answers' loss, without a bound.

For a forget batch of B sequences, log p reduced over labelled tokens only:
    loss = mean(log p(answer))            shape () from (B,), nats
Minimising it is ascent on the negative log-likelihood. It never vanishes: without a retain term or a stop rule the
model collapses, and a collapsed model is not one that has forgotten.

Source: Jang et al. 2023, arXiv:2210.01504; the GA baseline of MUSE, arXiv:2407.06460.
Checked against: a two-token closed form, finite differences, one batch of 8 = 8 of 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from letheon.errors import require


@dataclass(frozen=True, kw_only=True)
class GradientAscent:
    """Settings of gradient ascent."""

    reduction: Literal["mean", "sum"] = "mean"
    """Over a sequence's labelled tokens. A sum lets one long text drive the gradient."""
    until: Literal["none", "holdout"] | float = "none"
    """How far an item is pushed: "none"; a loss in nats per token, > 0; or "holdout", the median loss of the holdout's
    items of its kind under the original. An item counts only while its own mean loss is below."""

    needs: ClassVar[tuple[str, ...]] = ("log_probs",)
    denominator: ClassVar[str] = "sequence"

    def __post_init__(self) -> None:
        require(
            isinstance(self.until, str) or self.until > 0,
            f"gradient_ascent needs until > 0 nats per token, got {self.until}",
        )

    def loss(self, current: Float[Tensor, " batch"]) -> tuple[Float[Tensor, ""], int]:
        """Sum of log p over the batch, and how many sequences it holds."""
        return current.sum(), len(current)
