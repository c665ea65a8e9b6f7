"""Move weights by a known amount for one look, and put them back to the bit.

    w <- w + scale * direction, and afterwards the very w that stood there
In a half precision most of a small perturbation is lost to rounding, and what is left points elsewhere. So the cosine
between what was wanted and what the weights really moved by is measured, and under 0.9 it is an error.

Source: this project; that bf16 swallows the perturbation of published code is our measurement.
Checked against: bit-equal weights afterwards, the norm of the move, a bf16 weight that cannot move.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from letheon.errors import CannotFinish
from letheon.training.active import Movers
from letheon.training.gradients import global_norm

LEAST_COSINE = 0.9
"""Between the wanted and the realised move; below it the weights cannot hold the move."""


@contextmanager
def moved(parameters: Sequence[Tensor], direction: Sequence[Tensor], scale: float) -> Iterator[float]:
    """Inside, every parameter stands at w + scale * direction; yields the cosine of the move that was realised.

    Args:
        parameters: each once; a tied weight is one parameter.
        direction: one tensor a parameter, float32.
        scale: what the direction is multiplied with; not 0.
    Raises:
        CannotFinish: the weights are too coarse to hold the move.
    """
    seen_before = _seen(parameters)
    with _standing_at(parameters, direction, scale):
        cosine = 1.0
        if seen_before is not None:
            cosine = _cosine(_seen(parameters) or [], seen_before, direction) * (1 if scale > 0 else -1)
        if cosine < LEAST_COSINE:
            raise CannotFinish(
                f"weights in {_coarsest(parameters)} cannot hold a perturbation so small: what they moved by has "
                f"cosine {cosine:.2f} to what was wanted. Keep float32 master weights (--weights float32), or use a "
                "larger radius"
            )
        yield cosine


@contextmanager
def _standing_at(parameters: Sequence[Tensor], direction: Sequence[Tensor], scale: float) -> Iterator[None]:
    """The move itself. A parameter is lent other data, and gets its own back: nothing is copied twice.

    Shares of a weight (FSDP2) are known by their memory, so there the data is written over and copied back.
    """
    has_shares = any(isinstance(parameter, DTensor) for parameter in parameters)
    own = [parameter.detach().clone() if has_shares else parameter.data for parameter in parameters]
    try:
        for parameter, along in zip(parameters, direction, strict=True):
            _stand(parameter, _sum(parameter, along, scale), is_copied=has_shares)
        _write(parameters)
        yield
    finally:
        for parameter, old in zip(parameters, own, strict=True):
            _stand(parameter, old, is_copied=has_shares)
        _write(parameters)


@torch.no_grad()
def _sum(parameter: Tensor, along: Tensor, scale: float) -> Tensor:
    """w + scale * direction, in float32 at least, and rounded once."""
    if parameter.dtype in (torch.float32, torch.float64):
        return torch.add(parameter, along, alpha=scale)
    return (parameter.float() + along * scale).to(parameter.dtype)


@torch.no_grad()
def _stand(parameter: Tensor, values: Tensor, *, is_copied: bool) -> None:
    if is_copied:
        parameter.copy_(values)
    else:
        parameter.data = values


@torch.no_grad()
def _write(parameters: Sequence[Tensor]) -> None:
    """Let the model hold what was written into its movers."""
    if isinstance(parameters, Movers):
        parameters.put_back()


def _held(parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    return parameters.parameters if isinstance(parameters, Movers) else parameters


def _coarsest(parameters: Sequence[Tensor]) -> torch.dtype:
    return min((held.dtype for held in _held(parameters)), key=lambda dtype: torch.finfo(dtype).bits)


def _seen(parameters: Sequence[Tensor]) -> list[Tensor] | None:
    """Copies of what the model computes with; None where it holds all that is written, to the last digits."""
    if torch.finfo(_coarsest(parameters)).bits >= 32:
        return None
    seen = parameters.seen() if isinstance(parameters, Movers) else list(parameters)
    return [one.detach().clone() for one in seen]


def _cosine(now: Sequence[Tensor], before: Sequence[Tensor], direction: Sequence[Tensor]) -> float:
    with torch.no_grad():
        real = [one.float() - old.float() for one, old in zip(now, before, strict=True)]
        product = sum(float((one * along.float()).sum()) for one, along in zip(real, direction, strict=True))
        norms = float(global_norm(real)) * float(global_norm(direction))
    return product / norms if norms > 0 else 0.0
