"""Moved part of the way back to the original: what lies on the straight line between the two.

    theta(a) = theta_u + a (theta_0 - theta_u)        a = 0: the file as it is; a = 1: the original, both to the bit
The attacker has the original, and with it everything that was to be forgotten. So this is an upper bound and no leak by
itself: it says how far the knowledge is from the weights, and a model that answers again at a small a was hardly moved.
The control is moved to the original in the same way, which gives it the original's knowledge as well; what is counted
is how much sooner the audited model has it. Buffers are kept.

Source: task vectors, Ilharco et al. 2022, arXiv:2212.04089; linear paths, Frankle et al. 2019, arXiv:1912.05671.
Checked against: both ends to the bit, float64 by hand, an original that was moved by less than half a 4-bit step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from letheon.audits.attacker import Attacker, Target
from letheon.errors import NotMeasured, require
from letheon.lowbit.online import MARKER
from letheon.models import ModelFolder, load_model


@dataclass(frozen=True, kw_only=True)
class Interpolate:
    """How far."""

    shares: tuple[float, ...] = (0.1, 0.25, 0.5)
    """Values of a, each in [0, 1]: a row of the matrix for each."""

    along: ClassVar[str] = "shares"
    folds: ClassVar[int] = 0

    def __post_init__(self) -> None:
        usable = len(self.shares) > 0 and all(0 <= share <= 1 for share in self.shares)
        require(
            usable and len(set(self.shares)) == len(self.shares),
            f"interpolate needs different shares in [0, 1], got {list(self.shares)}",
        )

    @property
    def label(self) -> str:
        """The row's name for readers."""
        return f"{'/'.join(f'{share:g}' for share in sorted(self.shares))} of the way back to the original"

    @property
    def provenance(self) -> str:
        """One line for the report."""
        shares = ", ".join(f"{share:g}" for share in sorted(self.shares))
        return f"weights moved by {shares} of the way to the original's; the attacker has it: an upper bound"

    def walk(self, target: Target, attacker: Attacker, then: Callable[[float], None]) -> None:
        """Move the weights, and call `then(a)` at each share.

        Raises:
            NotMeasured: no original, another architecture, or codes and turned bases in place of weights.
        """
        _require_weights(target.folder, attacker.original)
        model = target.model
        original = dict(load_model(attacker.original.path, device=target.device).named_parameters())
        moving = {name: parameter.detach() for name, parameter in model.named_parameters()}
        if misfit := _misfit(moving, original):
            raise NotMeasured(f"{attacker.original.path} is not the same architecture: {misfit}")
        if all(torch.equal(tensor, original[name]) for name, tensor in moving.items()):
            raise NotMeasured("the model has the original's weights: there is no way between them")
        start = {name: tensor.clone() for name, tensor in moving.items()}
        for share in sorted(self.shares):
            for name, tensor in moving.items():
                # lerp counts from the nearer end, so that both ends are met to the bit
                tensor.copy_(torch.lerp(start[name], original[name].detach(), share))
            then(share)


def _require_weights(*folders: ModelFolder | None) -> None:
    for folder in folders:
        if folder is not None and (folder.is_packed or folder.config.get(MARKER)):
            raise NotMeasured(
                f"needs weights in the original's own basis; {folder.path} holds codes of a low-bit format, or turned "
                "weights. Audit the full-precision folder, with this one as --shipped"
            )


def _misfit(mine: dict[str, torch.Tensor], theirs: dict[str, Any]) -> str:
    """A parameter that one of the models does not have, or has in another shape; empty where there is none."""
    for name in (*mine, *theirs):
        if name not in mine or name not in theirs:
            return f"{name} is in one of them alone"
        if mine[name].shape != theirs[name].shape:
            return f"{name} has the shape {list(theirs[name].shape)} and not {list(mine[name].shape)}"
    return ""
