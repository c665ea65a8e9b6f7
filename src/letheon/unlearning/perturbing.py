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
    saved = [parameter.detach().clone() for parameter in parameters]
    seen_before = _seen(parameters)
    try:
        is_exact = all(parameter.dtype in (torch.float32, torch.float64) for parameter in parameters)
        with torch.no_grad():
            if is_exact:
                torch._foreach_add_(list(parameters), list(direction), alpha=scale)
            else:  # added in float32, and rounded once
                for parameter, along in zip(parameters, direction, strict=True):
                    parameter.copy_(parameter.float() + along * scale)
            _write(parameters)
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
    finally:
        with torch.no_grad():
            for parameter, old in zip(parameters, saved, strict=True):  # shares of a weight know no copy of many
                parameter.copy_(old)
            _write(parameters)


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
