"""Return the mean of the weights over the last part of the run, in place of the last ones.

    from step `start` on, every `every` steps, mean <- mean + (w - mean) / n;   at the end w <- mean
The steps themselves are those of the unsmoothed method.

Source: arXiv:2502.05374.  Checked against: the arithmetic mean of snapshots, one snapshot = no averaging, resuming.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from letheon.errors import CannotFinish, require
from letheon.training.gradients import Gradient


@dataclass(frozen=True, kw_only=True)
class WeightAverage:
    """Settings of weight averaging."""

    start: int = 100
    """First step, counted from 1, after which a snapshot is taken."""
    every: int = 5
    """Steps between snapshots, >= 1."""

    is_identity: ClassVar[bool] = True
    """The gradient is the loss's own."""
    is_shareable: ClassVar[bool] = True
    """Several processes, each with a share of every weight, give what one gives."""
    averages_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.start >= 1, f"weight_average needs start >= 1, got {self.start}")
        require(self.every >= 1, f"weight_average needs every >= 1, got {self.every}")

    def init(self, parameters: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """The running mean, and how many steps and snapshots went into it."""
        means = {f"mean/{name}": torch.zeros_like(parameter.detach()) for name, parameter in parameters.items()}
        return {**means, "steps": torch.zeros((), dtype=torch.int64), "snapshots": torch.zeros((), dtype=torch.int64)}

    def wrap(self, gradient: Gradient, parameters: Sequence[Tensor], state: dict[str, Tensor]) -> Gradient:
        """The gradient as it is."""
        return gradient

    @torch.no_grad()
    def after_step(self, parameters: Mapping[str, Tensor], state: dict[str, Tensor]) -> None:
        """Take a snapshot when it is time to."""
        state["steps"] += 1
        step = int(state["steps"])
        if step < self.start or (step - self.start) % self.every:
            return
        state["snapshots"] += 1
        for name, parameter in parameters.items():
            state[f"mean/{name}"].add_((parameter - state[f"mean/{name}"]) / int(state["snapshots"]))

    @torch.no_grad()
    def finish(self, parameters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Put the mean in place. Raises CannotFinish where there is none."""
        if int(state["snapshots"]) == 0:
            raise CannotFinish(
                f"weight_average: no snapshot was taken, since it starts at step {self.start} and the run ended after "
                f"step {int(state['steps'])}. Set start to an earlier step"
            )
        for name, parameter in parameters.items():
            parameter.copy_(state[f"mean/{name}"])
