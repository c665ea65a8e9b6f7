"""Layers that read one input, solved as one matrix, written into the model, and what was lost in each.

    weights  ||W - Q||^2 / ||W||^2            outputs  tr((W - Q) H (W - Q)^T) / tr(W H W^T)
A layer that cannot be solved stops the run by name, or is rounded to the nearest values where that is allowed, and is
listed then. Where nothing was heard there are no outputs to lose, and no number says so.

Source: this project.  Checked against: a walk by hand; losses of real inputs and outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from letheon.errors import BadInput, CannotFinish
from letheon.numerics.grids import CodebookGrid, Quantized, dequantize, quantize
from letheon.quantization.factors import DampingRaised, NotPositiveDefinite, dead_inputs
from letheon.quantization.statistics import Statistics


@dataclass(frozen=True)
class Solver:
    """A quantizer at work on one block."""

    quantizer: Any
    stored: torch.dtype | None = None
    """What a loader of the file makes of code times scale; None: what the model has."""
    may_fall_back: bool = False
    """Round a layer that cannot be solved to the nearest values instead of stopping."""
    figures: dict[str, Any] = field(default_factory=lambda: {"layers": {}, "fallen_back": [], "warnings": []})
    """What was lost in each layer, which could not be solved, and what has to be said."""

    @torch.no_grad()
    def solve(
        self,
        group: Mapping[str, Float[Tensor, "_ inputs"]],
        statistics: Statistics | None,
        uncut: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Quantized]:
        """Round the layers of a group, in the model too.

        Args:
            group: layer -> its weight (out, in), a view into the model.
            statistics: of the input that all of them read; None: they heard nothing.
            uncut: layer -> its weight before a part of it was cut off, where it was: what is lost counts from there.
        Raises:
            CannotFinish: it cannot be solved and may not fall back, named.
            BadInput: a weight or moments that are NaN or infinite, named.
        """
        names = list(group)
        if statistics is not None and (dead := float(dead_inputs(statistics.gram).float().mean())) > 0.5:
            self.figures["warnings"].append(
                f"layer {names[0]}: {dead:.0%} of its inputs are 0 on the calibration text. Give more text, or other "
                "text"
            )
        found: dict[str, Quantized] = {}
        for part in [[name] for name in names] if self._has_one_scale else [names]:
            layer = self._solved(part, torch.cat([group[name] for name in part]).contiguous(), statistics)
            row = 0
            for name in part:
                rows = len(group[name])
                found[name] = _rows(layer, row, row + rows) if len(part) > 1 else layer
                row += rows
        for name, layer in found.items():
            loaded, before = as_loaded(layer, self.stored), (uncut or {}).get(name, group[name])
            self.figures["layers"][name] = _lost(before, loaded, statistics)
            group[name].copy_(loaded)
        return found

    @property
    def _has_one_scale(self) -> bool:
        """Whether a scale is of a whole layer, or of blocks that run over the ends of rows: layers are not stacked."""
        grid = self.quantizer.grid
        return isinstance(grid, CodebookGrid) or grid.group == "tensor"

    def _solved(self, names: Sequence[str], weight: Tensor, statistics: Statistics | None) -> Quantized:
        said = f"layer {names[0]}" + (f" (and {len(names) - 1} that read the same input)" if len(names) > 1 else "")
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", DampingRaised)
                if statistics is None and self.quantizer.needs:
                    raise _Unheard("it heard nothing of the calibration text. Give more text, or other text")
                found: Quantized = self.quantizer.quantize_layer(weight, statistics)
            self.figures["warnings"] += [
                f"{said}: {each.message}" for each in told if issubclass(each.category, DampingRaised)
            ]
            return found
        except BadInput as error:
            raise BadInput([f"{said}: {problem}" for problem in error.problems]) from error
        except (NotPositiveDefinite, _Unheard) as error:
            if not self.may_fall_back:
                raise CannotFinish(
                    f"{said}: {error}; or round it to the nearest values with --allow-rtn-fallback"
                ) from error
            self.figures["fallen_back"] += names
            return quantize(weight, self.quantizer.grid)


class _Unheard(CannotFinish):
    """There is nothing to solve for."""


def as_loaded(layer: Quantized, stored: torch.dtype | None) -> Tensor:
    """The weights that a loader of the file makes of the codes: rounded to its dtype once more."""
    weight = dequantize(layer)
    return weight.to(stored or weight.dtype).to(weight.dtype)


def _rows(layer: Quantized, begin: int, end: int) -> Quantized:
    """Some rows of a rounded matrix."""
    is_off = getattr(layer.grid, "bits", 0) == 16  # one scale, which stands for nothing
    scale, zero = (layer.scale, layer.zero) if is_off else (layer.scale[begin:end], layer.zero[begin:end])
    return replace(layer, codes=layer.codes[begin:end], scale=scale, zero=zero)


def _lost(
    weight: Float[Tensor, "rows inputs"], rounded: Float[Tensor, "rows inputs"], statistics: Statistics | None
) -> dict[str, float]:
    before, change = weight.float(), weight.float() - rounded.float()
    weights = change.double().square().sum() / before.double().square().sum().clamp_min(1e-300)
    found = {"weights": float(weights)}
    if statistics is not None:
        gram = statistics.gram

        def power(matrix: Tensor) -> Tensor:
            return ((matrix @ gram) * matrix).double().sum()

        found["outputs"] = float(power(change) / power(before).clamp_min(1e-300))
    return found
