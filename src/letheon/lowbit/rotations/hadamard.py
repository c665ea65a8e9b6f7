"""Random Hadamard rotations everywhere: outliers are spread over all channels, which makes low bits cost less.

    R1 residual  the residual stream, merged into the weights around it; norms are folded first
    R2 values    the channels of a head between v and o, merged, the same for all heads
    R3 keys      keys behind the rotary embedding, while the model runs; only for a cache of fewer than 16 bits
    R4 down      the input of the MLP's last linear, while the model runs; the weight is rotated to match
each diag(signs) H with signs from the seed. Without quantizers the function of the model is the same. With R1 and R2
alone it is an ordinary model of its architecture; with R4 it is right only where the rotation is done while it runs
(`install(model, online=...)`), and other software does not know of it.

Source: QuaRot arXiv:2404.00456, SpinQuant arXiv:2405.16406.
Checked against: logits of every architecture in float64 and float32; saved, loaded and installed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from letheon.errors import require
from letheon.lowbit.online import OnlineRotations
from letheon.lowbit.rotating import (
    SITES,
    Rotated,
    check_rotatable,
    fold_norms,
    mark_rotated,
    rotate_down,
    rotate_residual,
    rotate_values,
    site_rotation,
    widths,
)
from letheon.methods import describe


@dataclass(frozen=True, kw_only=True)
class HadamardRotation:
    """Which sites, and the seed of their signs."""

    residual: bool = True
    """R1. Unties a tied head: the file grows by an embedding."""
    values: bool = True
    """R2."""
    keys: bool | None = None
    """R3; without effect on a cache of 16 bits. null: where what follows can have it; no file that ships can."""
    down: bool | None = None
    """R4; needs a runtime that knows it. null: where what follows can have it."""
    seed: int = 0
    """Of the signs, at least 0."""
    block_diagonal: bool = False
    """Where no Hadamard matrix of a width is known, rotate in blocks of the largest power of two that divides it."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"a rotation's seed of {self.seed} is not usable. Use 0 or more")
        require(
            bool(self.sites),
            "a Hadamard rotation with every site off does nothing. Use rotation none, or switch a site on",
        )

    @property
    def sites(self) -> tuple[str, ...]:
        """Those that are on."""
        return tuple(site for site in SITES if getattr(self, site) is not False)

    def check(self, model: Any) -> None:
        """Refuse, with all reasons, a model that cannot be rotated; its weights are not needed for that."""
        check_rotatable(model, self.sites, block_diagonal=self.block_diagonal)

    def rotate(self, model: Any, calibration: object = None) -> Rotated:
        """Rotate a model in place, and mark it in its configuration. `calibration` is not used.

        Raises:
            BadInput: what `check` raises, weights that are not loaded, or a norm that cannot be folded.
        """
        layout = check_rotatable(model, self.sites, block_diagonal=self.block_diagonal)
        sizes = widths(model, layout)
        turns = {site: site_rotation(site, sizes[site], seed=self.seed) for site in self.sites}
        is_untied = False
        if self.residual:
            is_untied = fold_norms(model, layout)
            rotate_residual(model, layout, turns["residual"])
        for block in layout.blocks:
            if "values" in turns:
                rotate_values(model, block, turns["values"])
            if "down" in turns:
                rotate_down(model, block, turns["down"])
        indices = [block.index for block in layout.blocks]
        online = OnlineRotations(
            keys=dict.fromkeys(indices, turns["keys"]) if "keys" in turns else {},
            down=dict.fromkeys(indices, turns["down"]) if "down" in turns else {},
        )
        mark_rotated(model, describe(self), online)
        return Rotated(online=online, is_untied=is_untied)
