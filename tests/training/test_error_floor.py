"""Least squares through rounding: where training ends is set by how well the grid holds the weights in their basis."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from letheon.numerics.grids import Grid, fake_quantize

DIMENSIONS, SAMPLES, STEPS = 64, 32, 400
GRID = Grid(bits=4)


def basis(number: int, generator: torch.Generator) -> Tensor:
    """From the identity (0) towards a random rotation (1): heavy tails are spread by degrees."""
    share = number / 10
    skew = torch.randn(DIMENSIONS, DIMENSIONS, generator=generator, dtype=torch.float64)
    skew = skew - skew.T
    turned: Tensor = torch.matrix_exp(share * skew / skew.norm() * 8)
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


def test_the_floor_follows_the_error_of_the_converged_weights() -> None:
    """Theory of RoSTE arXiv:2502.09003: floor <= constant x ||Q(R w) - R w||^2, over eleven bases and four problems."""
    found = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(SAMPLES, DIMENSIONS, generator=generator, dtype=torch.float64)
        truth = torch.randn(DIMENSIONS, generator=generator, dtype=torch.float64) ** 3  # heavy tails
        truth /= truth.norm()
        y = x @ truth
        for number in range(11):
            turn = basis(number, generator)
            found.append(trained(x @ turn.T, y, turn @ truth))
    floors, errors = np.array(found).T
    assert np.corrcoef(np.log(floors), np.log(errors))[0, 1] > 0.9
    by_basis = errors.reshape(4, 11).mean(0), floors.reshape(4, 11).mean(0)
    assert by_basis[0][-1] < 0.5 * by_basis[0][0] and by_basis[1][-1] < 0.5 * by_basis[1][0]  # a rotation lowers both
