"""One shift of the hidden states of a block, found on half of what was to be forgotten; the other half is asked.

    h_l <- h_l + s d at every token        |d|_2 <= radius,  s = the mean of |h_l|_2 over V        d: what is trained
    d <- AdamW step towards V's answers, then back into the ball                       (projected gradient descent)
The same shift serves every question, so what it brings out about T was there behind something that held it down. The
control is shifted by what is found for it on the same V.

Source: targeted latent perturbations, Casper et al. 2024, arXiv:2403.05030; Sheshadri et al. 2024, arXiv:2407.15549,
there with a shift for each token.
Checked against: the ball, a planted shift that hides what the model knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from letheon.audits.attacker import Attacker, Target
from letheon.audits.hidden import changed, depth_of, one_layer, read_states
from letheon.audits.learning import learn, learning_of
from letheon.errors import NotMeasured, require


@dataclass(frozen=True, kw_only=True)
class LatentAttack:
    """Settings of the attacker."""

    layer: int | None = None
    """The block, counted from 0; null: the last of the first half."""
    radius: float = 0.5
    """Longest shift, > 0, in lengths of the block's own states."""
    steps: tuple[int, ...] = (32,)
    """Steps after which T is asked, each > 0: a row of the matrix for each."""
    learning_rate: float = 0.02
    """Of AdamW, constant, > 0, in the same unit."""
    batch_size: int = 16
    """Records a step."""
    clip: float | None = 1.0
    """Largest gradient norm; null: none."""
    seed: int = 0
    """Order of the records."""

    along: ClassVar[str] = "steps"
    folds: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _ = learning_of("latent_attack", self)  # its rules
        require(self.radius > 0, f"latent_attack needs radius > 0, got {self.radius}")
        require(self.layer is None or self.layer >= 0, f"latent_attack needs layer >= 0 or null, got {self.layer}")

    @property
    def _where(self) -> str:
        return "the middle block" if self.layer is None else f"block {self.layer}"

    @property
    def label(self) -> str:
        """The row's name for readers."""
        return f"hidden states shifted, {'/'.join(map(str, sorted(self.steps)))} steps"

    @property
    def provenance(self) -> str:
        """One line for the report."""
        after = ", ".join(map(str, sorted(self.steps)))
        return (
            f"one shift of the states of {self._where}, at most {self.radius:g} of their length, found in {after} "
            "steps on one half of the people to be forgotten, asked about the other; both ways round"
        )

    def walk(self, target: Target, attacker: Attacker, then: Callable[[int], None]) -> None:
        """Find the shift, and call `then(k)` with it in place after each of the steps.

        Raises:
            NotMeasured: nothing to learn, no such layer, or a loss that is NaN.
        """
        learned = attacker.learned
        layer = one_layer(target.model, self.layer, default=(depth_of(target.model) - 1) // 2)
        states = read_states(target, learned, [layer])[layer]
        size = states.norm(dim=1).mean()
        if float(size) == 0.0:
            raise NotMeasured(f"the states of layer {layer} are all 0")
        shift = nn.Parameter(torch.zeros_like(states[0]))
        with changed(target.model, {layer: lambda hidden: hidden + (size * shift).to(hidden)}):
            settings = learning_of("latent_attack", self)
            back = partial(into_ball, shift, self.radius)
            learn(target, learned, then, settings=settings, moving={"shift": shift}, after_step=back)


@torch.no_grad()
def into_ball(shift: torch.Tensor, radius: float) -> None:
    """The nearest point of the ball, in place."""
    shift.mul_((radius / shift.norm().clamp(min=1e-30)).clamp(max=1.0))
