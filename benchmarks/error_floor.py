"""Least squares through rounding: where training ends, against how well the grid holds the weights in their basis.

    min_w mean (X Q(w) - y)^2, gradient steps straight through Q (4 bits, one step for all weights)
for problems with heavy-tailed weights, each in eleven bases from the one it was made in to a random rotation of it.
The theory bounds the floor by a constant times the error of the converged weights on the grid, ||Q(R w) - R w||^2.

    OMP_NUM_THREADS=1 python benchmarks/error_floor.py

Source: RoSTE arXiv:2502.09003.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import write
from numpy.typing import NDArray
from torch import Tensor

from letheon.numerics.grids import Grid, fake_quantize

DIMENSIONS, SAMPLES, STEPS = 64, 32, 400
PROBLEMS, BASES = 4, 11
GRID = Grid(bits=4)
TARGET = Path(__file__).parents[1] / "docs" / "images" / "error_floor.svg"


def basis(number: int, generator: torch.Generator) -> Tensor:
    """From the identity (0) towards a random rotation: heavy tails are spread by degrees."""
    skew = torch.randn(DIMENSIONS, DIMENSIONS, generator=generator, dtype=torch.float64)
    skew = skew - skew.T
    turned: Tensor = torch.matrix_exp(number / (BASES - 1) * skew / skew.norm() * 8)
    return turned


def trained(x: Tensor, y: Tensor, start: Tensor) -> tuple[float, float]:
    """Mean prediction error of the last steps through the grid, and the weights' error on it there."""
    weight, rate = start.clone(), 0.5 / float(torch.linalg.matrix_norm(x, 2) ** 2)
    errors, lost = [], []
    for step in range(STEPS):
        rounded = fake_quantize(weight[None], GRID)[0]
        residual = x @ rounded - y
        weight -= rate * (x.T @ residual)  # straight through: the gradient at the rounded weights moves the weights
        if step >= STEPS // 2:
            errors.append(float(residual.square().mean()))
            lost.append(float((rounded - weight).square().sum()))
    return float(np.mean(errors)), float(np.mean(lost))


def floors_and_errors() -> NDArray[np.float64]:
    """(problems, bases, 2): floor of the prediction error, and error of the weights on the grid."""
    found = []
    for seed in range(PROBLEMS):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(SAMPLES, DIMENSIONS, generator=generator, dtype=torch.float64)
        truth = torch.randn(DIMENSIONS, generator=generator, dtype=torch.float64) ** 3  # heavy tails
        truth /= truth.norm()
        turns = (basis(number, generator) for number in range(BASES))
        found.append([trained(x @ turn.T, x @ truth, turn @ truth) for turn in turns])
    return np.array(found)


def correlations(found: NDArray[np.float64]) -> dict[str, float]:
    """Of floor and error, as they are and of their logarithms."""
    floors, errors = found.reshape(-1, 2).T
    return {
        "plain": float(np.corrcoef(floors, errors)[0, 1]),
        "logarithms": float(np.corrcoef(np.log(floors), np.log(errors))[0, 1]),
    }


def draw(found: NDArray[np.float64]) -> None:
    """One point a basis, one colour a problem; a line of slope one through the middle."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "letheon", "font.size": 9, "svg.fonttype": "none"})
    figure, axis = plt.subplots(figsize=(4.8, 3.6), layout="constrained")
    for number, (points, colour) in enumerate(zip(found, ("#2166ac", "#b2182b", "#4dac26", "#7b3294"), strict=True)):
        axis.scatter(points[1:, 1], points[1:, 0], s=18, color=colour, label=f"problem {number + 1}")
        axis.scatter(points[:1, 1], points[:1, 0], s=46, color=colour, marker="D", edgecolor="#333333", lw=0.6)
    floors, errors = found.reshape(-1, 2).T
    ends = np.array([errors.min(), errors.max()])
    axis.plot(ends, ends * np.exp(np.mean(np.log(floors / errors))), color="#666666", lw=0.9, ls="--")
    axis.set(
        xscale="log", yscale="log", xlabel="error of the weights on the grid", ylabel="floor of the prediction error"
    )
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.3, which="both", lw=0.4)
    figure.savefig(TARGET, metadata={"Date": None})


def main() -> None:
    """The correlations, and the picture."""
    found = floors_and_errors()
    draw(found)
    means: list[dict[str, Any]] = [
        {"basis": number, "error": float(error), "floor": float(floor)}
        for number, (floor, error) in enumerate(found.mean(0))
    ]
    write("error_floor", {"problems": PROBLEMS, "bases": means, "correlation": correlations(found)})


if __name__ == "__main__":
    main()
