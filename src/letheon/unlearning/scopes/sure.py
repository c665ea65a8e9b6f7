"""Only the units that the forget loss is most sensitive to may move, so that they can move far.

    s_i = || dL_f / dw_i ||_2 over the forget set        gamma = the P-th percentile of all s_i, pooled over the model
    unit i may move where s_i >= gamma; every other keeps its value to the bit
A unit is an output neuron's weights (a row), a whole module or a single weight. With a larger learning rate the change
of a few rows is wider than a bin of the grid that the model ships in. At the original the gradient of NPO is that of
gradient ascent with the weight 1, so both give one map.

The published code differs from the paper: its mask is never applied (the method that holds it is not called by the
trainer), its map is made anew in every step, and the forget gradient counts twice. Here the paper is followed.

With refresh = "step" the map is what that code means it to be: that of the step's own forget gradient, of its
mini-batch and at the weights as they then are (before a smoother moves them). What is outside of it does not move in
that step, to the bit; the optimizer's moments are full-size, and those of a unit, like its count of steps, change in
the steps alone in which it is in the map. Where that gradient is 0 everywhere (a gate has closed every item), nothing
moves. At P = 0 every unit is in every map: the plain run.

Source: Zhang et al. 2024, arXiv:2410.16454.
Checked against: P = 0 is the plain run to the bit, P = 100 moves the largest unit alone (with refresh = "step": of
every step), inactive units bit by bit under weight decay and momentum, AdamW over a unit's own steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil
from typing import Literal

import torch
from torch import Tensor, nn

from letheon.errors import BadInput, CannotFinish, require
from letheon.training.active import Active

COUNTS = "steps/"
"""What the names of the counts of steps begin with."""


@dataclass(frozen=True, kw_only=True)
class Sure:
    """Which units, and how many."""

    percentile: float = 90.0
    """P, in [0, 100]: units below this percentile of the saliency stay as they are. The published code: 90."""
    granularity: Literal["row", "module", "element"] = "row"
    """A unit: an output neuron's weights (and each entry of a bias or norm), a whole tensor, or a single weight."""
    normalise: Literal["none", "rms"] = "none"
    """"none" compares norms of narrow and wide units as they are; "rms" divides by the root of their size first."""
    refresh: Literal["once", "step"] = "once"
    """"once" makes the map at the original, over the whole forget set; "step" anew for every step, from its batch."""
    exclude: tuple[str, ...] = ()
    """Patterns of weights that never move, such as lm_head.*: a row of the head is a word of the vocabulary."""

    def __post_init__(self) -> None:
        require(0 <= self.percentile <= 100, f"sure needs 0 <= percentile <= 100, got {self.percentile}")

    @property
    def is_refreshed(self) -> bool:
        """Whether steps choose their own units."""
        return self.refresh == "step" and self.percentile > 0

    @property
    def is_narrow(self) -> bool:
        """Whether most weights never move."""
        return not self.is_refreshed and self.percentile >= 50

    def select(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Name -> parameter of all whose units are compared; tied parameters once."""
        named = dict(model.named_parameters())
        idle = [pattern for pattern in self.exclude if not any(fnmatchcase(name, pattern) for name in named)]
        if idle:
            raise BadInput([f"sure: exclude {pattern!r} fits no weight of {type(model).__name__}" for pattern in idle])
        return {
            name: parameter
            for name, parameter in named.items()
            if not any(fnmatchcase(name, pattern) for pattern in self.exclude)
        }

    def init(self, model: nn.Module, moving: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """How many steps each unit has made, where steps choose their own; else no state."""
        if not self.is_refreshed:
            return {}
        return {f"{COUNTS}{name}": self._counts(parameter, name, model) for name, parameter in moving.items()}

    def counts(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same by the names of the parameters."""
        return {key.removeprefix(COUNTS): count for key, count in state.items() if key.startswith(COUNTS)}

    def active(
        self, model: nn.Module, moving: Mapping[str, nn.Parameter], saliency: Iterable[Tensor]
    ) -> dict[str, Active]:
        """Name -> its active units, for the names that have some.

        Args:
            model: whose layers say which dimension of a weight counts its outputs.
            moving: what `select` returned.
            saliency: the forget loss's gradient, one tensor a moving parameter; each is looked at once, in turn.
        Raises:
            CannotFinish: a gradient that is not finite (names the tensor), or zero everywhere.
        """
        dims = {name: self._dim(name, model) for name in moving}
        scores = {name: self._scores(gradient, dims[name]) for name, gradient in zip(moving, saliency, strict=True)}
        broken = next((name for name, score in scores.items() if not torch.isfinite(score).all()), None)
        if broken is not None:
            raise CannotFinish(f"sure: the forget loss's gradient is not finite in {broken}, so no unit can be chosen")
        pooled = torch.cat(list(scores.values()))
        if not bool(pooled.any()):
            raise CannotFinish("sure: the forget loss has no gradient anywhere, so no unit can be chosen")
        return self._chosen(pooled, scores, moving, dims)

    def active_now(
        self, model: nn.Module, moving: Mapping[str, nn.Parameter], gradient: Sequence[Tensor]
    ) -> dict[str, Active] | None:
        """The map of one step, from its forget gradient: empty where that is 0, None where it is not finite."""
        dims = {name: self._dim(name, model) for name in moving}
        scores = {name: self._scores(tensor, dims[name]) for name, tensor in zip(moving, gradient, strict=True)}
        pooled = torch.cat(list(scores.values()))
        largest = float(pooled.max())  # NaN goes through it
        if not math.isfinite(largest):
            return None
        return self._chosen(pooled, scores, moving, dims) if largest > 0 else {}

    def likely(self, moving: Mapping[str, nn.Parameter]) -> dict[str, Active]:
        """As many units of each parameter as are active in the mean, the first ones: for an estimate of memory."""
        share = 1 - self.percentile / 100
        found: dict[str, Active] = {}
        for name, parameter in moving.items():
            is_flat = self.granularity == "element"
            units = parameter.numel() if is_flat else parameter.shape[0]
            count = max(1, round(units * share))
            found[name] = Active(torch.arange(count, device=parameter.device), is_flat=is_flat)
        return found

    def after_step(self, moving: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
        """Nothing to put back: what is not active is never written."""

    def _chosen(
        self,
        pooled: Tensor,
        scores: Mapping[str, Tensor],
        moving: Mapping[str, nn.Parameter],
        dims: Mapping[str, int],
    ) -> dict[str, Active]:
        """What is not below the percentile."""
        threshold = percentile(pooled, self.percentile)
        found: dict[str, Active] = {}
        for name, score in scores.items():
            chosen = torch.nonzero(score >= threshold).flatten()
            if len(chosen):
                found[name] = self._units(chosen, moving[name], dims[name])
        return found

    def _counts(self, parameter: Tensor, name: str, model: nn.Module) -> Tensor:
        if self.granularity == "element":
            return torch.zeros(parameter.numel(), dtype=torch.int32, device=parameter.device)
        dim = self._dim(name, model) if self.granularity == "row" else 0
        return torch.zeros(parameter.shape[dim], dtype=torch.int32, device=parameter.device)

    def _dim(self, name: str, model: nn.Module) -> int:
        """The dimension that counts outputs: the second of GPT-2's Conv1D, else the first."""
        from transformers.pytorch_utils import Conv1D

        owner = model.get_submodule(name.rpartition(".")[0])
        return 1 if isinstance(owner, Conv1D) and name.endswith(".weight") else 0

    def _scores(self, gradient: Tensor, dim: int) -> Tensor:
        """One number a unit."""
        if self.granularity == "element":
            return gradient.abs().flatten()
        is_module = self.granularity == "module"
        units = gradient.reshape(1, -1) if is_module else gradient.movedim(dim, 0).reshape(gradient.shape[dim], -1)
        norms: Tensor = torch.linalg.vector_norm(units, dim=1, dtype=torch.promote_types(units.dtype, torch.float32))
        return norms / units.shape[1] ** 0.5 if self.normalise == "rms" else norms

    def _units(self, chosen: Tensor, parameter: Tensor, dim: int) -> Active:
        if self.granularity == "element":
            return Active(chosen, is_flat=True)
        if self.granularity == "module":
            return Active(torch.arange(parameter.shape[0], device=parameter.device))
        return Active(chosen, dim)


def percentile(values: Tensor, share: float) -> Tensor:
    """The value `share` percent of the way up, rounded up to one that is there: 0 the least, 100 the largest.

    >>> float(percentile(torch.tensor([3.0, 1.0, 2.0]), 50))
    2.0
    """
    place = ceil(share / 100 * (len(values) - 1))
    found: Tensor = torch.kthvalue(values, place + 1).values
    return found
