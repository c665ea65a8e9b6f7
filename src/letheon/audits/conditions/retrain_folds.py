"""Retraining on T: fine-tuned on all folds of the people to be forgotten but one, which is asked; every fold once.

    the forget set cut into K folds by unit;  for each fold T:
        AdamW on the trained questions of the other K - 1, from the file's weights;  after k steps T is asked
As `relearn`, with an attacker who knows more: K - 1 of K parts instead of half. What is reported is over the items of
all folds together, which is the average over folds weighted by their size. The control is trained on the same folds.

Source: Deeb and Roger 2024, arXiv:2410.08827 (RTT: K folds, 6 epochs, the rate from a logarithmic grid).
Checked against: two folds = `relearn` to the bit, every unit asked once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from letheon.audits.attacker import Attacker, Target
from letheon.audits.learning import learn, learning_of
from letheon.errors import require


@dataclass(frozen=True, kw_only=True)
class RetrainFolds:
    """Settings of the attacker."""

    folds: int = 5
    """K, at least 2, and at most the units to be forgotten: as many models are trained."""
    steps: tuple[int, ...] = (40,)
    """Steps after which T is asked, each > 0: a row of the matrix for each. RTT trains for 6 epochs."""
    learning_rate: float = 3e-4
    """Of AdamW, constant, > 0; as for `relearn`. RTT: 1e-7 to 5e-6 on models of 7 billion weights."""
    batch_size: int = 16
    """Records a step."""
    clip: float | None = 1.0
    """Largest global gradient norm; null: none."""
    seed: int = 0
    """Order of the records."""

    along: ClassVar[str] = "steps"

    def __post_init__(self) -> None:
        _ = learning_of("retrain_folds", self)  # its rules
        require(self.folds >= 2, f"retrain_folds needs folds >= 2, got {self.folds}")

    @property
    def label(self) -> str:
        """The row's name for readers."""
        return f"retrained in {self.folds} folds, {'/'.join(map(str, sorted(self.steps)))} steps"

    @property
    def provenance(self) -> str:
        """One line for the report."""
        after = ", ".join(map(str, sorted(self.steps)))
        return (
            f"fine-tuned for {after} steps (AdamW, {self.learning_rate:g}, batch {self.batch_size}) on "
            f"{self.folds - 1} of {self.folds} folds of the people to be forgotten, asked about the last; each once"
        )

    def walk(self, target: Target, attacker: Attacker, then: Callable[[int], None]) -> None:
        """Train the target on what the attacker learns, and call `then(k)` after each of the steps.

        Raises:
            NotMeasured: nothing to learn, or a loss that is NaN.
        """
        settings, moving = learning_of("retrain_folds", self), dict(target.model.named_parameters())
        learn(target, attacker.learned, then, settings=settings, moving=moving)
