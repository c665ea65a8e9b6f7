"""Negative preference optimization: lower the forget answers against a frozen reference, with a pull that fades.

For a forget batch of B sequences, log p reduced over labelled tokens only:
    r = log p(answer) - log p_ref(answer)            shape (B,), nats
    loss = -(2 / beta) * mean(log_sigmoid(-beta * r))
At r = 0 the gradient is that of gradient ascent; as beta -> 0 it stays there; as r -> -inf it vanishes.

reduction "muse-logits" is what the code of MUSE and SURE runs in its place, to reproduce their tables and for nothing
else: with raw logits z, loss = -(2 / beta) * mean over tokens and vocabulary of log_sigmoid(-beta * (z - z_ref)). It
has no normaliser and never looks at the token that was to be forgotten.

Source: Zhang et al. 2024, arXiv:2404.05868, equation of the NPO loss, in its sequence form; muse-logits:
github.com/jaechan-repo/muse_bench, where the departure is acknowledged (issue 2).
Checked against: the value (2 / beta) ln 2 and the ascent gradient at the reference, the beta -> 0 limit, a two-token
closed form, finite differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from letheon.errors import require

_LOG_PROBS = ("log_probs", "reference_log_probs")
_LOGITS = ("logits", "reference_logits")


@dataclass(frozen=True, kw_only=True)
class NPO:
    """Settings of negative preference optimization."""

    beta: float = 1.0
    """Sharpness, 1/nats, > 0; larger stops pushing a sequence sooner. The paper: 0.1 with reduction "sum". On the tiny
    world (seed 0, learning rate 5e-4, with gdr) that lets a text of 36 tokens outweigh an answer of 3: exact answers on
    retained facts fall to 0.06 at step 30 and are back at 0.77 by step 90; with the mean and beta 1 they never fall
    below 0.79 and end at 0.91."""
    reduction: Literal["mean", "sum", "muse-logits"] = "mean"
    """Over a sequence's labelled tokens: mean (length-normalised), or the paper's sum. "muse-logits": see above."""
    until: Literal["none", "holdout"] | float = "none"
    """How far an item is pushed: "none"; a loss in nats per token, > 0; or "holdout", the median loss of the holdout's
    items of its kind under the original. An item counts only while its own mean loss is below."""

    def __post_init__(self) -> None:
        require(self.beta > 0, f"npo needs beta > 0, got {self.beta}. Use gradient_ascent for the limit beta -> 0")
        require(isinstance(self.until, str) or self.until > 0, f"npo needs until > 0 nats per token, got {self.until}")

    @property
    def needs(self) -> tuple[str, ...]:
        """Log-probabilities of sequences; logits where the published code takes them."""
        return _LOGITS if self.reduction == "muse-logits" else _LOG_PROBS

    @property
    def denominator(self) -> str:
        """Sequences; labelled tokens where the published code counts those."""
        return "token" if self.reduction == "muse-logits" else "sequence"

    def loss(
        self, current: Float[Tensor, "items ..."], reference: Float[Tensor, "items ..."]
    ) -> tuple[Float[Tensor, ""], int]:
        """Sum over the batch, and how many sequences (or labelled tokens: of these the mean over the vocabulary)."""
        pull = -(2 / self.beta) * logsigmoid(-self.beta * (current - reference))
        return pull.flatten(1).mean(1).sum() if pull.ndim > 1 else pull.sum(), len(pull)
