"""Only the weights whose names fit a pattern may move.

A pattern is that of a shell: * stands for anything, ? for one character, [abc] for one of some; it has to fit the whole
name, as in *.layers.[5-7].mlp.down_proj.weight. A tied weight has one name, the first.

Source: RMU, Li et al. 2024, arXiv:2403.03218 moves three layers' weights.  Checked against: names by hand, weights that
do not fit are equal to the bit after steps with weight decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from torch import Tensor, nn

from letheon.errors import BadInput, require


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Which weights."""

    patterns: tuple[str, ...] = ("*.mlp.*",)
    """A weight moves when its name fits one of these."""
    exclude: tuple[str, ...] = ()
    """And none of these."""

    is_shareable: ClassVar[bool] = True
    """Several processes, each with a share of every weight, give what one gives."""
    is_narrow: ClassVar[bool] = True
    """Most weights never move."""

    def __post_init__(self) -> None:
        require(len(self.patterns) > 0, "layers needs at least one pattern, such as *.layers.7.mlp.*")

    def select(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Name -> parameter of those that fit. Raises BadInput where a pattern fits nothing."""
        named = dict(model.named_parameters())
        idle = [
            pattern
            for pattern in (*self.patterns, *self.exclude)
            if not any(fnmatchcase(name, pattern) for name in named)
        ]
        if idle:
            shown = ", ".join(list(named)[:3])
            raise BadInput(
                [
                    f"layers: {pattern!r} fits no weight of {type(model).__name__}. Names are such as {shown}"
                    for pattern in idle
                ]
            )
        return {name: parameter for name, parameter in named.items() if self._fits(name)}

    def init(self, model: nn.Module, moving: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """No state."""
        return {}

    def after_step(self, moving: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
        """Nothing to put back: what does not fit never gets a gradient."""

    def _fits(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.patterns) and not any(
            fnmatchcase(name, pattern) for pattern in self.exclude
        )
