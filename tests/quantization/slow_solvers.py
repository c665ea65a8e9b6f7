"""Solvers that are slow and obvious: float64, one row at a time, every correction computed anew from the tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from letheon.numerics.grids import Quantized, dequantize
from letheon.quantization.statistics import Statistics


@dataclass(frozen=True)
class Layer:
    """A made-up layer: its weights, and what reaches it in the partly quantized model and in the untouched one."""

    weight: Tensor
    """(out, in) float64."""
    found: Tensor
    """X, (tokens, in) float64."""
    original: Tensor
    """X + dX."""

    @property
    def statistics(self) -> Statistics:
        """H and C, float64."""
        tokens = len(self.found)
        gram, drift = self.found.T @ self.found, (self.original - self.found).T @ self.found
        return Statistics(gram=gram / tokens, drift=drift / tokens, tokens=tokens)

    @property
    def undrifted(self) -> Statistics:
        """H alone."""
        return Statistics(gram=self.statistics.gram, tokens=len(self.found))

    def loss(self, rounded: Quantized | Tensor) -> float:
        """|| Q X - W (X + dX) ||^2 / || W (X + dX) ||^2."""
        weight = (dequantize(rounded) if isinstance(rounded, Quantized) else rounded).double()
        target = self.original @ self.weight.T
        return float((self.found @ weight.T - target).square().sum() / target.square().sum())


def made_up(seed: int = 0, *, rows: int = 6, inputs: int = 24, tokens: int = 96, noise: float = 0.3) -> Layer:
    """Correlated inputs of unequal power, which have drifted by noise that is correlated too."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mixed = draw(inputs, inputs) / inputs**0.5 * torch.logspace(0.5, -0.5, inputs, dtype=torch.float64)
    power = torch.linspace(0.5, 2, inputs, dtype=torch.float64)[torch.randperm(inputs, generator=generator)]
    original = draw(tokens, inputs) @ mixed.T * power + 0.3 * draw(tokens, inputs) * power
    found = original + noise * (
        draw(tokens, inputs) * power + 0.5 * original[:, torch.randperm(inputs, generator=generator)]
    )
    return Layer(draw(rows, inputs) * 0.05, found, original)


def slow_codes(
    layer: Layer,
    *,
    order: list[int],
    step: Tensor,
    zero: Tensor,
    code_range: tuple[int, int],
    damping: float,
    alpha: float = 0.0,
    alpha2: float = 0.0,
    block: int = 1,
    beyond: str = "before",
) -> list[list[int]]:
    """GPTQ, GPTAQ and ResComp by their definitions. `step`, `zero`: of every weight, in the layer's own order.

    `beyond`: what a column counts as for columns outside its block: "before", "quantized", "clipped" (by its own grid).
    """
    weights, steps, zeros = (values.double().numpy()[:, order] for values in (layer.weight, step, zero))
    found, original = (values.double().numpy()[:, order].T for values in (layer.found, layer.original))
    moved, tokens = original - found, found.shape[1]
    gram = found @ found.T / tokens
    gram += damping * np.diag(gram).mean() * np.eye(len(gram))
    low, high = code_range
    codes = np.zeros(weights.shape, dtype=int)
    for row, first in enumerate(weights):
        values = first.copy()
        for column, position in enumerate(order):
            size, centre, value = steps[row, column], zeros[row, column], values[column]
            code = min(max(round(value / size) + centre, low), high)
            codes[row, position] = code
            rounded = (code - centre) * size
            rest = np.arange(column + 1, len(order))
            if not len(rest):
                continue
            from_here = np.linalg.inv(gram[column:, column:])
            trailing = np.linalg.inv(gram[column + 1 :, column + 1 :])
            # What a later column is told about this one depends on whether it is in the same block.
            told = np.where(
                rest // block == column // block,
                value,
                {
                    "before": value,
                    "quantized": rounded,
                    "clipped": min(max(value, (low - centre) * size), (high - centre) * size),
                }[beyond],
            )
            own_drift = moved[column] @ found[rest].T / tokens @ trailing
            own_target = original[column] @ found[rest].T / tokens @ trailing
            values[rest] += (rounded - value) / from_here[0, 0] * from_here[0, 1:]
            values[rest] += alpha * told * own_drift + alpha2 * (first[column] - told) * own_target
    return codes.tolist()


def least_squares_codes(
    layer: Layer, *, order: list[int], step: Tensor, zero: Tensor, code_range: tuple[int, int], damping: float
) -> list[list[int]]:
    """GPTQ as what it stands for: with some columns fixed, the others are the least-squares answer on the tokens.

    Damping d adds tokens that show one input each, with the power N d.
    """
    weights, steps, zeros = (values.double().numpy() for values in (layer.weight, step, zero))
    found = layer.found.double().numpy()
    extra = (damping * np.square(found).sum(axis=0).mean()) ** 0.5
    seen = np.concatenate([found, extra * np.eye(found.shape[1])])
    low, high = code_range
    codes = np.zeros(weights.shape, dtype=int)
    for row, first in enumerate(weights):
        wanted, values = seen @ first, first.copy()
        for number, position in enumerate(order):
            size, centre = steps[row, position], zeros[row, position]
            codes[row, position] = min(max(round(values[position] / size) + centre, low), high)
            values[position] = (codes[row, position] - centre) * size
            fixed, free = order[: number + 1], order[number + 1 :]
            if free:
                missing = wanted - seen[:, fixed] @ values[fixed]
                values[free] = np.linalg.lstsq(seen[:, free], missing, rcond=None)[0]
    return codes.tolist()


def order_of(layer: Layer, act_order: str) -> list[int]:
    """The inputs by falling power, or as they stand."""
    inputs = layer.found.shape[1]
    if act_order == "none":
        return list(range(inputs))
    return sorted(range(inputs), key=lambda one: -float(layer.found[:, one].square().sum()))


def by_weight(found: Quantized, values: Tensor) -> Tensor:
    """Scales or zero points, spread over the weights that have them."""
    rows, inputs = found.codes.shape
    if found.group_index is not None:
        return values[:, found.group_index.long()]
    return values[:, :, None].expand(rows, -1, inputs // values.shape[1]).reshape(rows, inputs)


def synthetic(seed: int, *, noise: float = 0.15) -> Layer:
    """A layer of 256 inputs of a decaying spectrum and 48 outputs, 1024 tokens, drifted by plain noise."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    original = draw(1024, 256) @ (draw(256, 256) / 16 * torch.logspace(0, -1, 256, dtype=torch.float64)).T
    found = original + noise * original.std() * draw(1024, 256)
    return Layer(draw(48, 256) / 16, found, original)
