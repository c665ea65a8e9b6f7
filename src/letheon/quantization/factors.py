"""What a solver computes once from a layer's inputs: the inverse of their moments, and what later columns are given.

Columns are rounded one by one; the later ones make up for the earlier. With d = damping times the mean of diag H:
    (H + d I)^-1 = U^T U,  U upper             row i of U / U_ii: how the columns after i answer an error of column i
    P(M) = alpha * striu(M U^T) U              row i: alpha * M[i, i+1:] (H + d I)[i+1:, i+1:]^-1
    W (I + alpha C (H + d I)^-1)               the weights that fit the drifted inputs best (alpha = 1, d = 0)
striu: what lies strictly above the diagonal. H read backwards is L L^T, so H = R R^T with R = L read backwards,
upper, and U = R^-1: one Cholesky factor and one triangular solve, where the published code takes two factors and
an inverse. All of it in float64 and of copies: the statistics stay as they are.

An input that was always zero (H_jj = 0) is dead: its weight cannot be judged, becomes zero and pulls at no other.
It counts with the mean of the live ones here (1 in the published code, which then damps by the inputs' unit).

Source: GPTQ arXiv:2210.17323 (U, damping, dead inputs), GPTAQ arXiv:2504.02692 (P).
Checked against: inverses of every trailing block, solved one by one in float64; least squares on the tokens themselves.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from letheon.errors import CannotFinish, require

_FIRST_REPAIR = 1e-3
"""Damping tried where none at all was asked for and not enough."""


class NotPositiveDefinite(CannotFinish):
    """The moments of the inputs have no usable inverse, whatever was added to their diagonal."""


class DampingRaised(UserWarning):
    """More damping was needed than was asked for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inverse:
    """The factor of an inverse, for columns in the order in which they are rounded."""

    upper: Float64[Tensor, "inputs inputs"]
    """U, with a positive diagonal: (H + d I)^-1 = U^T U, rows and columns of H in `order`."""
    order: Int64[Tensor, " inputs"]
    """The input that is rounded first, second, ..."""
    dead: Bool[Tensor, " inputs"]
    """Inputs that were always zero, in the layer's own order."""
    damping: float
    """Share of the mean of diag H that was added to it: as asked for, or more where that was not enough."""


def dead_inputs(gram: Float[Tensor, "inputs inputs"]) -> Bool[Tensor, " inputs"]:
    """Inputs that were zero for every token."""
    return gram.diagonal() == 0


def factorize(gram: Float[Tensor, "inputs inputs"], *, damping: float, is_sorted: bool) -> Inverse:
    """The inverse of H with damping, as a triangular factor.

    Args:
        gram: H, symmetric and positive semidefinite up to rounding.
        damping: share of the mean of diag H that is added to it, 0 to 1. Where it is not enough, ten times as
            much is tried, up to 1, and a DampingRaised warning says so.
        is_sorted: columns in the order of falling H_jj (dead ones last), equals by position; or as they stand.
    Raises:
        BadInput: H is NaN or infinite, or all inputs are dead.
        NotPositiveDefinite: no damping up to 1 is enough.
    """
    is_finite = bool(torch.isfinite(gram).all())
    require(is_finite, "its inputs have NaN or infinite moments on the calibration text. The model is damaged")
    dead = dead_inputs(gram)
    require(not bool(dead.all()), "its inputs are all zero on the calibration text. Give other text")
    own = torch.arange(len(gram), device=gram.device)
    order = gram.diagonal().argsort(descending=True, stable=True) if is_sorted else own
    # Backwards from here on: see the module's docstring.
    backwards = order.flip(0)
    moments = gram.double()[backwards][:, backwards]
    mean = moments.diagonal().sum() / (~dead).sum()
    moments.diagonal().masked_fill_(dead[backwards], mean)
    eye = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    for tried in _dampings(damping):
        damped = moments.clone()
        damped.diagonal().add_(tried * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if bool(failed):
            continue
        upper = torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
        # H_jj [H^-1]_jj: how much an error of H is enlarged. H is a sum in float32; beyond its rounding all is noise.
        enlarged = damped.diagonal().flip(0) * upper.square().sum(dim=0)
        if bool((enlarged < 1 / torch.finfo(torch.float32).eps).all()):
            break
    else:
        raise NotPositiveDefinite(
            "the moments of its inputs have no usable inverse, even with a damping of 1. Give more calibration text, "
            "or leave it to rtn"
        )
    if tried > damping:
        warnings.warn(f"a damping of {damping:g} was not enough: {tried:g} was used", DampingRaised, stacklevel=2)
    return Inverse(upper=upper, order=order, dead=dead, damping=tried)


def passed_on(
    moments: Float[Tensor, "inputs inputs"] | None, inverse: Inverse, alpha: float
) -> Float64[Tensor, "inputs inputs"] | None:
    """P: what a column gives to the later ones because of its own part of a mismatch, strictly upper.

    Args:
        moments: M, row i: the moments of column i's mismatch with every input, in the layer's own order.
        inverse: the factor, whose order the result has.
        alpha: share of it that is passed on.
    Returns:
        None where nothing is: no mismatch, or a share of 0.
    """
    if moments is None or alpha == 0:
        return None
    ordered = _checked(moments, inverse)[inverse.order][:, inverse.order]
    return torch.triu(ordered @ inverse.upper.T, diagonal=1).mul_(alpha) @ inverse.upper


def refitted(
    weight: Float[Tensor, "rows inputs"], drift: Float[Tensor, "inputs inputs"] | None, inverse: Inverse, alpha: float
) -> Float[Tensor, "rows inputs"]:
    """The weights that give, on the drifted inputs, the outputs that `weight` gave: W (I + alpha C (H + d I)^-1).

    In float32, or float64 where the weight is. C is that of the layer, and counts what meets a dead input's weight.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if drift is None or alpha == 0:
        return weight.detach().to(dtype)
    exact = weight.detach().double()
    missing = (exact @ _checked(drift, inverse))[:, inverse.order]
    correction = torch.empty_like(exact)
    correction[:, inverse.order] = missing @ inverse.upper.T @ inverse.upper
    return (exact + alpha * correction).to(dtype)


def _checked(moments: Tensor, inverse: Inverse) -> Tensor:
    """The moments in float64, or why they cannot be used."""
    require(
        moments.shape == inverse.upper.shape,
        f"a drift of shape {tuple(moments.shape)} does not fit {len(inverse.order)} inputs. Use the layer's own",
    )
    require(bool(torch.isfinite(moments).all()), "its inputs have drifted to NaN or infinite values. Use other text")
    return moments.double()


def _dampings(damping: float) -> Iterator[float]:
    yield damping
    while damping < 1.0:
        damping = min(max(10 * damping, _FIRST_REPAIR), 1.0)
        yield damping
