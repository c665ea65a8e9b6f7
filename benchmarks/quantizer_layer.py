"""Which quantizers are compared, how, and what they do to one made-up layer; see quantizers.py."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from exam import interval
from torch import Tensor

from letheon.methods import build
from letheon.numerics.grids import dequantize
from letheon.quantization.statistics import Statistics

METHODS: dict[str, dict[str, Any]] = {
    "rtn": {"name": "rtn"},
    "awq": {"name": "awq"},
    "gptq": {"name": "gptq"},
    "gptaq": {"name": "gptaq", "alpha": 0.25},
    "gptaq 1": {"name": "gptaq", "alpha": 1.0},
    "rescomp": {"name": "rescomp", "alpha": 0.25, "alpha2": 0.25},
    "refit": {"name": "refit", "alpha": 0.25},
    "refit 1": {"name": "refit", "alpha": 1.0},
}
COMPENSATED = ("gptq", "gptaq", "gptaq 1", "rescomp", "refit", "refit 1")
PAIRS = (
    *(("rtn", name) for name in METHODS if name != "rtn"),
    *(("gptq", name) for name in COMPENSATED if name != "gptq"),
    ("awq", "gptq"),
    ("gptaq", "rescomp"),
    ("rescomp", "refit"),
    ("refit", "refit 1"),
)
"""Differences that are shown: the second minus the first."""
LAYER_SEEDS = 12
NOISES = (0.0, 0.15, 0.3)
"""Of the layer's inputs, in units of their own spread."""
TOKENS = (320, 1024)


def made(name: str, *, bits: int, group: int | str) -> Any:
    """The quantizer on the symmetric grid with a search for its range; AWQ searches its range in its own way."""
    clip = {} if name == "awq" else {"clip": "mse"}
    return build("quantizer", {**METHODS[name], "bits": bits, "group": group, "scheme": "sym", **clip})


@dataclass(frozen=True)
class Inputs:
    """What reaches a layer in the rounded model, and in the untouched one; (tokens, 256) float64."""

    found: Tensor
    original: Tensor

    def error(self, weight: Tensor, rounded: Tensor) -> float:
        """|| Q X - W (X + dX) ||^2 / || W (X + dX) ||^2."""
        target = self.original @ weight.T
        return float((self.found @ rounded.T - target).square().sum() / target.square().sum())


def layer_errors(seed: int, *, noise: float, tokens: int) -> dict[str, dict[str, float]]:
    """Method -> error on the tokens it was fitted to ("calibration"), and on as many fresh ones ("held_out")."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mixed = draw(256, 256) / 16 * torch.logspace(0, -1, 256, dtype=torch.float64)
    weight = draw(48, 256) / 16
    spread = float(mixed.square().sum(1).mean().sqrt())

    def inputs() -> Inputs:
        original = draw(tokens, 256) @ mixed.T
        return Inputs(original + noise * spread * draw(tokens, 256), original)

    fitted, fresh = inputs(), inputs()
    drift = (fitted.original - fitted.found).T @ fitted.found / tokens
    known = Statistics(gram=fitted.found.T @ fitted.found / tokens, drift=drift if noise else None, tokens=tokens)
    found = {}
    for name in METHODS:
        if name != "awq":  # looks at a whole block
            rounded = dequantize(made(name, bits=3, group="row").quantize_layer(weight, known)).double()
            found[name] = {"calibration": fitted.error(weight, rounded), "held_out": fresh.error(weight, rounded)}
    return found


def layer_table() -> dict[str, Any]:
    """Noise and tokens -> figures of every method, and their differences."""
    return {
        f"noise {noise:g}, {tokens} tokens": compared(
            [layer_errors(seed, noise=noise, tokens=tokens) for seed in range(LAYER_SEEDS)], ("calibration", "held_out")
        )
        for noise, tokens in itertools.product(NOISES, TOKENS)
    }


def compared(
    runs: Sequence[Mapping[str, Mapping[str, float]]], figures: Sequence[str], beside: Sequence[str] = ()
) -> dict[str, Any]:
    """Figure -> interval of every method, and of paired differences. A run: method -> figure -> number.

    Args:
        runs: one a seed.
        figures: what is compared.
        beside: what is told of every method alone.
    """
    found: dict[str, Any] = {
        figure: {"of": {name: interval([run[name][figure] for run in runs], digits=5) for name in runs[0]}}
        for figure in (*figures, *beside)
    }
    for figure in figures:
        found[figure]["differences"] = {
            f"{second} - {first}": interval([run[second][figure] - run[first][figure] for run in runs], digits=5)
            for first, second in PAIRS
            if {first, second} <= set(runs[0])
        }
    return found
