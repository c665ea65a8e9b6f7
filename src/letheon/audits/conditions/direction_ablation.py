"""The direction in which hidden states of forgotten questions differ from retained ones is taken out of every block.

    u_l = mean of h_l over V - mean of h_l over retained records, as a unit vector        h_l <- h_l - (h_l . u_l) u_l
An unlearning that steers questions about the forgotten aside (RMU, a refusal) has to tell them apart; where a single
direction does, taking it out takes the steering out, and the answers come back. h is read at the prompt's last token
(of texts: the mean over all tokens) and changed at every token. V tells the direction, T is asked; both ways round. The
control is treated in the same way.

Source: Arditi et al. 2024, arXiv:2406.11717; on unlearned models, Lucki et al. 2024, arXiv:2409.18025.
Checked against: nothing left along u, twice = once, a planted direction that hides what the model knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from letheon.audits.attacker import Attacker, Target
from letheon.audits.hidden import Without, changed, depth_of, one_layer, read_states
from letheon.errors import NotMeasured, require


@dataclass(frozen=True, kw_only=True)
class DirectionAblation:
    """Where the direction is taken out."""

    layer: int | None = None
    """One block, counted from 0; null: every block, each with its own direction."""

    along: ClassVar[str] = ""
    folds: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require(self.layer is None or self.layer >= 0, f"direction_ablation needs layer >= 0 or null, got {self.layer}")

    @property
    def _where(self) -> str:
        return "every block" if self.layer is None else f"block {self.layer}"

    @property
    def label(self) -> str:
        """The row's name for readers."""
        return f"one direction taken out of {self._where}"

    @property
    def provenance(self) -> str:
        """One line for the report."""
        return (
            f"the mean difference between hidden states of forgotten and retained records taken out of {self._where}, "
            "from one half of the people to be forgotten, asked about the other; both ways round"
        )

    def walk(self, target: Target, attacker: Attacker, then: Callable[[int], None]) -> None:
        """Find the directions, and call `then(0)` while they are taken out.

        Raises:
            NotMeasured: nothing learned, no retained records of the kind, no such layer, or no difference.
        """
        learned = attacker.learned
        is_question = learned[0].labelled_from > 1
        kept = [example for example in attacker.kept("retain") if (example.labelled_from > 1) == is_question]
        if not kept:
            kind = "questions" if is_question else "texts"
            raise NotMeasured(f"the retain set holds no {kind} that forgotten {kind} could be told from")
        depth = depth_of(target.model)
        layers = range(depth) if self.layer is None else [one_layer(target.model, self.layer, default=0)]
        forgotten, retained = (read_states(target, examples, layers) for examples in (learned, kept))
        directions = {layer: direction(forgotten[layer], retained[layer], layer) for layer in layers}
        with changed(target.model, {layer: Without(one) for layer, one in directions.items()}):
            then(0)


def direction(
    forgotten: Float[Tensor, "some width"], retained: Float[Tensor, "others width"], layer: int
) -> Float[Tensor, " width"]:
    """u. Raises NotMeasured where the means do not differ."""
    difference = forgotten.double().mean(0) - retained.double().mean(0)
    length = difference.norm()
    if not bool(torch.isfinite(length)) or float(length) == 0.0:
        raise NotMeasured(f"hidden states of layer {layer} do not differ between forgotten and retained records")
    unit: Tensor = (difference / length).to(forgotten.dtype)
    return unit
