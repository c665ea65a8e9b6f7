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
from letheon.data.sampling import sample
from letheon.errors import BadInput
from letheon.training.losses import Body, Outputs
from letheon.unlearning.reference import cache_log_probs

Until = Literal["none", "holdout"] | float
STRANGERS = 400
"""Most holdout items of a kind that a median is taken over."""


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


def check_strangers(records: Sequence[Record], holdout: Sequence[Record]) -> None:
    """Raise BadInput unless the holdout has each kind of item that is to be forgotten."""
    if not holdout:
        raise BadInput(
            'until="holdout" needs a holdout set (--holdout h.jsonl): '
            "people or texts of the same kind, never trained on"
        )
    kinds = {True: "questions", False: "texts"}
    missing = {record.is_question for record in records} - {record.is_question for record in holdout}
    if missing:
        raise BadInput(
            [
                f'until="holdout": the forget set holds {kinds[kind]} and the gate\'s half of the holdout set none '
                "(every second unit). Add some, or set until to a loss in nats"
                for kind in sorted(missing)
            ]
        )


def make_gate(
    until: Until, records: Sequence[Record], holdout: Sequence[Record], *, body: Body, encoder: Encoder, device: str
) -> Gate | None:
    """The gate that `until` asks for; None for "none".

    Raises:
        BadInput: "holdout" without a holdout, or with one that lacks a kind of item that is to be forgotten.
    """
    if until == "none":
        return None
    if not isinstance(until, str):
        return Gate(torch.full((len(records),), float(until), device=device))
    check_strangers(records, holdout)
    medians: dict[bool, float] = {}
    for is_question in {record.is_question for record in records}:
        strangers = encoder.encode_all(_some([record for record in holdout if record.is_question == is_question]))
        scores = cache_log_probs(body, strangers, reduction="mean", pad=encoder.pad, device=device)
        medians[is_question] = statistics.median((-scores.values).tolist())
    return Gate(torch.tensor([medians[record.is_question] for record in records], device=device))


def _some(strangers: list[Record]) -> list[Record]:
    """At most STRANGERS of them, in all wordings: enough for a median."""
    units, names = [record.unit for record in strangers], [str(record.line) for record in strangers]
    return [strangers[item] for item in sample(units, names, STRANGERS)]
