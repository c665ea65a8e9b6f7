"""The attacker's training: AdamW on what the attacker knows, and a look between the steps. One loop for all attacks.

    theta <- AdamW step on the mean over a batch's labelled tokens of -log p          theta: whatever may move
Which weights move, or whether it is weights at all (a low-rank change, a soft prompt, a shift of hidden states), is the
attack's own choice; so the same steps can be counted for all of them.

Source: this project.  Checked against: AdamW by hand on the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from letheon.audits.attacker import Target
from letheon.data.batches import EpochOrder, collate
from letheon.data.encode import Example
from letheon.errors import CannotFinish, NotMeasured, require
from letheon.methods import build
from letheon.training.gradients import MeanGradient, Parts
from letheon.training.loop import Look, Loop, run_loop
from letheon.training.losses import TokenLoss
from letheon.training.stepping import OptimizerSettings


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How an attacker trains."""

    name: str
    """The attack, for faults."""
    steps: tuple[int, ...]
    """After which the model is asked; different ones, each > 0."""
    learning_rate: float
    batch_size: int
    """Records a step."""
    clip: float | None
    seed: int

    def __post_init__(self) -> None:
        usable = len(self.steps) > 0 and min(self.steps) > 0 and len(set(self.steps)) == len(self.steps)
        require(usable, f"{self.name} needs different steps > 0, got {list(self.steps)}")
        require(self.batch_size > 0, f"{self.name} needs batch_size > 0, got {self.batch_size}")
        require(self.seed >= 0, f"{self.name} needs seed >= 0, got {self.seed}")
        _ = self.optimizer  # its rules

    @property
    def optimizer(self) -> OptimizerSettings:
        """What the loop is told about AdamW."""
        return OptimizerSettings(learning_rate=self.learning_rate, clip=self.clip)


def learning_of(name: str, attack: Any) -> Learning:
    """The part of an attack's settings that the loop is told. Raises BadInput where they cannot be."""
    return Learning(
        name=name,
        steps=attack.steps,
        learning_rate=attack.learning_rate,
        batch_size=attack.batch_size,
        clip=attack.clip,
        seed=attack.seed,
    )


def learn(
    target: Target,
    examples: Sequence[Example],
    then: Callable[[int], None],
    *,
    settings: Learning,
    moving: dict[str, nn.Parameter],
    after_step: Callable[[], None] | None = None,
) -> None:
    """Train `moving` on the examples, and call `then(k)` after each of the steps.

    Args:
        after_step: called behind every step, to put back what may not be (a ball).
    Raises:
        NotMeasured: a loss that is NaN.
    """
    order = EpochOrder(tuple(len(example.ids) for example in examples), settings.batch_size, settings.seed)

    def batches(step: int) -> Parts:
        items = order.items(step)
        batch = collate([examples[item] for item in items], items, pad=target.encoder.pad)
        return {"data": [batch.to(target.device)]}

    loop = Loop(
        model=target.model,
        moving=moving,
        gradient=MeanGradient(TokenLoss(target.body), "data", list(moving.values())),
        parts=batches,
        steps=max(settings.steps),
        optimizer=settings.optimizer,
        rate=build("rate", "constant"),
        after_step=None if after_step is None else lambda _: after_step(),
        look=_Asking(settings.steps, then),
    )
    try:
        run_loop(loop)
    except CannotFinish as error:
        raise NotMeasured(f"the attack could not go on: {error}") from error


@dataclass
class _Asking:
    """Asks between steps."""

    at: Sequence[int]
    then: Callable[[int], None]
    every: int = 1
    state: dict[str, Any] = field(default_factory=dict)

    def __call__(self, step: int, model: Any) -> Look:
        """Ask after the steps that were chosen."""
        if step in self.at:
            self.then(step)
        return Look()
