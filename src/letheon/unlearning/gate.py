"""Push an item only until it stands where a stranger stands, and no further.

    open(i) = (mean loss per labelled token of item i under the current model) < threshold(i)
Without it the forgotten texts become less likely than texts that were never seen, which gives them away as surely.
"holdout" takes the median loss of the holdout's items of the same kind (question, text) under the original model.

Source: this project (measured on the embedded world).  Checked against: medians by hand, an item above and one below.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from letheon.data.batches import Batch
from letheon.data.encode import Encoder
from letheon.data.records import Record
from letheon.errors import BadInput
from letheon.training.losses import Body, Outputs
from letheon.unlearning.reference import cache_log_probs

Until = Literal["none", "holdout"] | float


@dataclass(frozen=True)
class Gate:
    """Threshold of every forget item, nats per labelled token."""

    thresholds: Float[Tensor, " items"]

    def open_items(self, outputs: Outputs) -> Bool[Tensor, " batch"]:
        """Which sequences of the batch still count."""
        with torch.no_grad():
            return -outputs.log_probs("mean") < self.of(outputs.batch)

    def of(self, batch: Batch) -> Float[Tensor, " batch"]:
        """The thresholds of a batch's items."""
        return self.thresholds[batch.items]


def make_gate(
    until: Until, records: Sequence[Record], holdout: Sequence[Record], *, body: Body, encoder: Encoder, device: str
) -> Gate | None:
    """The gate that `until` asks for; None for "none".

    Raises:
        BadInput: "holdout" without a holdout, or with one that lacks a kind of item that is to be forgotten.
    """
    if until == "none":
        return None
    if isinstance(until, float):
        return Gate(torch.full((len(records),), until, device=device))
    if not holdout:
        raise BadInput('until="holdout" needs a holdout set (--holdout h.jsonl): people or texts of the same kind, never trained on')
    medians: dict[bool, float] = {}
    for is_question in {record.is_question for record in records}:
        strangers = [record for record in holdout if record.is_question == is_question]
        if not strangers:
            kind = "questions" if is_question else "texts"
            raise BadInput(
                f'until="holdout": the forget set holds {kind} and the holdout set none. Add some, or set until to a loss in nats'
            )
        examples = encoder.encode_all(strangers)
        scores = cache_log_probs(body, examples, reduction="mean", pad=encoder.pad, device=device)
        medians[is_question] = statistics.median((-scores.values).tolist())
    return Gate(torch.tensor([medians[record.is_question] for record in records], device=device))
