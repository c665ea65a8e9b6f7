"""KL divergence to the original on the retain set: keep not only the answer but the whole distribution.

At each labelled token, over the vocabulary, in float32:
    KL(p_ref || p) = sum_v p_ref(v) (log p_ref(v) - log p(v))          >= 0, nats, 0 at the original
    loss = mean over labelled tokens                        denominator "token"
    loss = sum over labelled tokens / sequences             denominator "sequence": the SURE code's reduction
The original's last hidden states are cached, not its distributions; its head is applied again.

Source: the KLR regulariser of MUSE, arXiv:2407.06460, as a true divergence (the published code hands raw logits to a
routine that wants log-probabilities); the sum is that of the SURE code, arXiv:2410.16454.
Checked against: 0 and a zero gradient at the original, non-negativity, invariance to a constant added to all logits,
torch's kl_div, finite differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax


@dataclass(frozen=True, kw_only=True)
class KLR:
    """Settings of the divergence to the original."""

    denominator: Literal["token", "sequence"] = "token"
    """Labelled tokens, or sequences: the latter sums over tokens and makes long texts weigh by their length."""

    needs: ClassVar[tuple[str, ...]] = ("logits", "reference_logits")

    def loss(
        self, current: Float[Tensor, "labels vocabulary"], reference: Float[Tensor, "labels vocabulary"]
    ) -> tuple[Float[Tensor, ""], int]:
        """Sum of the divergence over labelled tokens, and their number (the loop counts sequences where asked to)."""
        total = kl_div(log_softmax(current, -1), log_softmax(reference, -1), reduction="sum", log_target=True)
        return total, len(current)
