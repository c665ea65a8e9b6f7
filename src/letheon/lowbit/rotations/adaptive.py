"""Rotate only where it helps: every layer's R2, R3 and R4 is switched on if calibration text says it lowers the error.

R1 is merged first, for the whole model (as in `hadamard`). Then, for each block and site, what rounding weights and
activations costs is measured with R = I and with R = H (E of `letheon.lowbit.site_errors`), and the less wins.
A gain below `least_gain` keeps I, which is cheaper. H is a random Hadamard: a plain one collects the mean of the
channels in one of them (whole numbers 0..15: E 0.045 against 0.010). Sites do not look at one another: inputs are those
of the model at full precision, and all errors come from one pass over the calibration text.

Source: RoSTE arXiv:2502.09003 (the choice, once before training); the rule for ties is this project's.
Checked against: a site whose whole numbers H would spoil, a planted outlier, ties, and E measured from outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from letheon.data.batches import Batch
from letheon.errors import BadInput, require
from letheon.lowbit.architectures import BlockLayout, model_layout
from letheon.lowbit.online import OnlineRotations
from letheon.lowbit.rotating import (
    SITES,
    Rotated,
    check_rotatable,
    fold_norms,
    mark_rotated,
    rotate_residual,
    site_rotation,
    turn_site,
    turned_parameters,
    widths,
)
from letheon.lowbit.site_errors import Candidates, SiteChoice, SiteError, SiteGrids, site_errors
from letheon.methods import describe
from letheon.numerics.grids import Grid
from letheon.numerics.hadamard import Hadamard
from letheon.numerics.token_grids import TokenGrid

_CHOSEN = ("values", "keys", "down")
"""Sites that are decided block by block."""
_BITS = 4
"""Where nobody says how many."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveRotation:
    """For which grids the choice is made, and when a rotation is worth it."""

    bits: int | None = None
    """Of the weights: sym, a step for every output channel. 16: their errors do not count. null, here and in the next
    two: as what follows rounds them, or 4 where nothing says it."""
    input_bits: int | None = None
    """Of the inputs of linears: asym, per token."""
    cache_bits: int | None = None
    """Of keys and values: asym, per token and head."""
    residual: bool = True
    """R1 for the whole model. Unties a tied head: the file grows by an embedding."""
    values: bool = True
    """Whether R2 may be chosen."""
    keys: bool | None = None
    """Whether R3 may be. null: where what follows can have it; no file that ships can."""
    down: bool | None = None
    """Whether R4 may be; needs a runtime that knows it. null: where what follows can have it."""
    plain: bool = False
    """Try the Hadamard matrix without signs as a third candidate."""
    least_gain: float = 0.01
    """Share of E(I) that a rotation has to take off, at least 0 and below 1."""
    seed: int = 0
    """Of the signs, at least 0."""
    block_diagonal: bool = False
    """Where no Hadamard matrix of a width is known, rotate in blocks of the largest power of two that divides it."""
    refresh_every: int | None = None
    """While a model is trained through low bits: choose anew after so many steps, > 0, with the weights as they are
    then; what is rotated otherwise is written in its new basis, so that the function stays. null: once, before the
    first step, as the paper's released code does."""

    needs: ClassVar[tuple[str, ...]] = ("calibration",)

    def __post_init__(self) -> None:
        require(
            bool(self.sites),
            "an adaptive rotation with every site off does nothing. Use rotation none, or switch a site on",
        )
        for name in ("bits", "input_bits", "cache_bits"):
            bits = getattr(self, name)
            require(
                bits in (None, 2, 3, 4, 5, 6, 7, 8, 16),
                f"rotation adaptive: {name} {bits} does not exist. Use 2 to 8, or 16 to let these errors not count",
            )
        require(
            self.refresh_every is None or self.refresh_every > 0,
            f"refresh_every must be > 0 steps, got {self.refresh_every}; null to choose once",
        )
        require(self.seed >= 0, f"a rotation's seed of {self.seed} is not usable. Use 0 or more")
        require(
            0 <= self.least_gain < 1,
            f"a least_gain of {self.least_gain} is not usable. Use a share such as 0.01, at least 0 and below 1",
        )

    @property
    def sites(self) -> tuple[str, ...]:
        """Those that may be rotated."""
        return tuple(site for site in SITES if getattr(self, site) is not False)

    def check(self, model: Any) -> None:
        """Refuse, with all reasons, a model that cannot be rotated; its weights are not needed for that."""
        check_rotatable(model, self.sites, block_diagonal=self.block_diagonal)

    def rotate(self, model: Any, calibration: Sequence[Batch]) -> Rotated:
        """Choose on the calibration text, rotate in place, and mark the model in its configuration.

        Raises:
            BadInput: what `check` raises, weights that are not loaded, a norm that cannot be folded, no calibration
                text, or inputs that are NaN or infinite.
        """
        layout = check_rotatable(model, self.sites, block_diagonal=self.block_diagonal)
        if not calibration:
            raise BadInput("rotation adaptive chooses on calibration text and got none. Give --calibration c.jsonl")
        sizes, is_untied = widths(model, layout), False
        if self.residual:
            is_untied = fold_norms(model, layout)
            rotate_residual(model, layout, site_rotation("residual", sizes["residual"], seed=self.seed))
        candidates = self._all_candidates(sizes)
        choices = self._choose_all(model, layout.blocks, candidates, calibration)
        online = _apply(model, layout.blocks, candidates, choices)
        mark_rotated(model, describe(self), online)
        return Rotated(online=online, is_untied=is_untied, choices=choices)

    def rotate_again(self, model: Any, before: Sequence[SiteChoice], calibration: Sequence[Batch]) -> Rotated:
        """Choose anew for a model that was rotated by these choices, and write its weights in the new basis, in place.

        A site whose choice stays is not touched, to the bit.

        Raises:
            BadInput: no calibration text, or inputs that are NaN or infinite.
        """
        layout = model_layout(model)
        candidates = self._all_candidates(widths(model, layout))
        names = {name for block in layout.blocks for name in turned_parameters(model, block)}
        kept = {name: model.get_parameter(name).detach().clone() for name in names}
        for choice in before:
            turn_site(
                model, layout.blocks[choice.block], choice.site, candidates[choice.site][choice.chosen], back=True
            )
        choices = self._choose_all(model, layout.blocks, candidates, calibration)
        online = _apply(model, layout.blocks, candidates, choices)
        same = {(one.block, one.site) for one in before} - {(one.block, one.site) for one in changed(before, choices)}
        with torch.no_grad():
            for index, site in same:
                for name in turned_parameters(model, layout.blocks[index], site):
                    model.get_parameter(name).copy_(kept[name])
        mark_rotated(model, describe(self), online)
        return Rotated(online=online, is_untied=False, choices=choices)

    def online_of(self, model: Any, choices: Sequence[SiteChoice]) -> OnlineRotations:
        """What these choices leave in the forward pass; weights are not looked at."""
        return _online(self._all_candidates(widths(model, model_layout(model))), choices)

    def rotation_of(self, model: Any, site: str, name: str) -> Hadamard | None:
        """The rotation that a candidate's name stands for at a site."""
        return self._all_candidates(widths(model, model_layout(model)))[site][name]

    def choose(self, errors: Mapping[str, SiteError]) -> str:
        """The candidate with the smallest E, or identity where that gains too little."""
        best = min(errors, key=lambda name: errors[name].total)
        is_worth_it = errors[best].total < (1 - self.least_gain) * errors["identity"].total
        return best if is_worth_it else "identity"

    def _all_candidates(self, sizes: Mapping[str, int]) -> dict[str, Candidates]:
        return {site: self._candidates(site, sizes[site]) for site in _CHOSEN if site in self.sites}

    def _candidates(self, site: str, size: int) -> Candidates:
        found: dict[str, Hadamard | None] = {"identity": None, "hadamard": site_rotation(site, size, seed=self.seed)}
        return {**found, "plain": Hadamard(size=size)} if self.plain else found

    def _choose_all(
        self,
        model: Any,
        blocks: Sequence[BlockLayout],
        candidates: Mapping[str, Candidates],
        calibration: Sequence[Batch],
    ) -> tuple[SiteChoice, ...]:
        """For a model of which no such site is rotated."""
        grids = SiteGrids(
            weights=Grid(bits=self.bits or _BITS),
            inputs=TokenGrid(bits=self.input_bits or _BITS),
            cache=TokenGrid(bits=self.cache_bits or _BITS),
        )
        errors = site_errors(model, blocks, candidates, calibration, grids=grids)
        return tuple(
            SiteChoice(
                block=block.index,
                site=site,
                errors=errors[block.index, site],
                chosen=self.choose(errors[block.index, site]),
            )
            for block in blocks
            for site in candidates
        )


def changed(before: Sequence[SiteChoice], after: Sequence[SiteChoice]) -> tuple[SiteChoice, ...]:
    """The choices that are not what they were before."""
    was = {(one.block, one.site): one.chosen for one in before}
    return tuple(one for one in after if one.chosen != was[one.block, one.site])


def _apply(
    model: Any, blocks: Sequence[BlockLayout], candidates: Mapping[str, Candidates], choices: Sequence[SiteChoice]
) -> OnlineRotations:
    """Merge what is chosen; what has to stay in the forward pass is returned."""
    for choice in choices:
        turn_site(model, blocks[choice.block], choice.site, candidates[choice.site][choice.chosen])
    return _online(candidates, choices)


def _online(candidates: Mapping[str, Candidates], choices: Sequence[SiteChoice]) -> OnlineRotations:
    found = {(one.block, one.site): candidates[one.site][one.chosen] for one in choices}
    chosen = {place: rotation for place, rotation in found.items() if rotation is not None}
    return OnlineRotations(
        keys={block: rotation for (block, site), rotation in chosen.items() if site == "keys"},
        down={block: rotation for (block, site), rotation in chosen.items() if site == "down"},
    )
