"""Fine-tuned for a few steps on what nobody wants forgotten; all that was to be forgotten is asked.

    AdamW on the retained (or general) questions and texts, from the file's weights;  after k steps everything is asked
No forgotten fact is learned, so nothing has to be cut, and what is answered afterwards was in the weights. Records that
stand in the forget set as well are left out. The control is trained in the same way: a reference on the same records, a
stranger is asked of the same model. Utility is asked too: a model that answers nothing any more is not robust.

Source: benign relearning, Hu et al. 2024, arXiv:2406.13356; Lucki et al. 2024, arXiv:2409.18025 (10 to 5,000 unrelated
samples).  Checked against: `relearn` on the same records, a planted copy of a forgotten record, one trajectory = two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from letheon.audits.attacker import Attacker, Target
from letheon.audits.learning import learn, learning_of


@dataclass(frozen=True, kw_only=True)
class RelearnOut:
    """Settings of the attacker."""

    on: Literal["retain", "general"] = "retain"
    """Which records are trained on."""
    steps: tuple[int, ...] = (10, 40)
    """Steps after which everything is asked, each > 0: a row of the matrix for each."""
    learning_rate: float = 3e-4
    """Of AdamW, constant, > 0; as for `relearn`."""
    batch_size: int = 16
    """Records a step."""
    clip: float | None = 1.0
    """Largest global gradient norm; null: none."""
    seed: int = 0
    """Order of the records."""

    along: ClassVar[str] = "steps"
    folds: ClassVar[int] = 0

    def __post_init__(self) -> None:
        _ = learning_of("relearn_out", self)  # its rules

    @property
    def label(self) -> str:
        """The row's name for readers."""
        return f"relearned on {_SAID[self.on]}, {'/'.join(map(str, sorted(self.steps)))} steps"

    @property
    def provenance(self) -> str:
        """One line for the report."""
        after = ", ".join(map(str, sorted(self.steps)))
        return (
            f"fine-tuned for {after} steps (AdamW, {self.learning_rate:g}, batch {self.batch_size}) on "
            f"{_SAID[self.on]}, none of it to be forgotten; asked about everything"
        )

    def walk(self, target: Target, attacker: Attacker, then: Callable[[int], None]) -> None:
        """Train the target on what is kept, and call `then(k)` after each of the steps.

        Raises:
            NotMeasured: no such records, or a loss that is NaN.
        """
        settings, moving = learning_of("relearn_out", self), dict(target.model.named_parameters())
        learn(target, attacker.kept(self.on), then, settings=settings, moving=moving)


_SAID = {"retain": "retained records", "general": "general knowledge"}
