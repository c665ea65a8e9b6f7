"""Fine-tuned for a few steps on half of what was to be forgotten; the other half is asked.

    V, T = the forget set cut in two by unit;  for (V, T) and for (T, V):
        AdamW on the trained questions of V, from the file's weights;  after k steps T is asked
One training gives the rows of all k. What comes back about people whom the attacker never trained on was hidden, not
gone. The control is trained in the same way on the same V: what fine-tuning teaches anybody counts for nothing.

Source: Deeb and Roger 2024, arXiv:2410.08827; Fan et al. 2025, arXiv:2502.05374.  Checked against: AdamW by hand on the
same batches, a target that knows, a reference that never did, weights restored to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from letheon.audits.attacker import Attacker, Target
from letheon.audits.learning import learn, learning_of


@dataclass(frozen=True, kw_only=True)
class Relearn:
    """Settings of the attacker."""

    steps: tuple[int, ...] = (5, 10, 20, 40)
    """Steps after which T is asked, each > 0: a row of the matrix for each."""
    learning_rate: float = 3e-4
    """Of AdamW, constant, > 0. Fits the tiny world's 0.85 M weights (1e-4 is slower and ends slightly lower there);
    published attacks on models of 7 to 8 billion use 1e-5 to 2e-4."""
    batch_size: int = 16
    """Records a step."""
    clip: float | None = 1.0
    """Largest global gradient norm; null: none."""
    seed: int = 0
    """Order of the records."""

    along: ClassVar[str] = "steps"
    folds: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _ = learning_of("relearn", self)  # its rules

    @property
    def label(self) -> str:
        """The row's name for readers."""
        return f"relearned, {'/'.join(map(str, sorted(self.steps)))} steps"

    @property
    def provenance(self) -> str:
        """One line for the report."""
        after = ", ".join(map(str, sorted(self.steps)))
        return (
            f"fine-tuned for {after} steps (AdamW, {self.learning_rate:g}, batch {self.batch_size}) on one half of the "
            "people to be forgotten, asked about the other; both ways round"
        )

    def walk(self, target: Target, attacker: Attacker, then: Callable[[int], None]) -> None:
        """Train the target on what the attacker learns, and call `then(k)` after each of the steps.

        Raises:
            NotMeasured: nothing to learn, or a loss that is NaN.
        """
        settings, moving = learning_of("relearn", self), dict(target.model.named_parameters())
        learn(target, attacker.learned, then, settings=settings, moving=moving)
