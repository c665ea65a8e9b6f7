"""A loss at several places along a line through the weights, and the weights afterwards where they stood, to the bit.

    L(w - t d) for each distance t
Every place is reached from a saved copy, never from the place before: sums in floating point do not undo themselves.

Source: this project.  Checked against: a quadratic, bit-equal weights, also where the loss fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from letheon.training.active import Movers


@torch.no_grad()
def losses_along(
    parameters: Sequence[Tensor],
    direction: Sequence[Tensor],
    distances: Sequence[float],
    loss: Callable[[], Tensor],
) -> list[float]:
    """The loss at w - t d for each t, fetched in one transfer.

    Args:
        parameters: what moves, each once; a tied weight is one parameter. `Movers` are written into the model.
        direction: d, one tensor a parameter.
        distances: t, in learning rates; 0 is where the weights stand.
        loss: its value where the weights now stand, a tensor without dimensions.
    """
    write = parameters.put_back if isinstance(parameters, Movers) else lambda: None
    saved = [parameter.detach().clone() for parameter in parameters]
    values: list[Tensor] = []
    try:
        for distance in distances:
            for parameter, old, along in zip(parameters, saved, direction, strict=True):
                parameter.copy_(old).add_(along, alpha=-distance)
            write()
            values.append(loss())
    finally:
        for parameter, old in zip(parameters, saved, strict=True):
            parameter.copy_(old)
        write()
    found: list[float] = torch.stack(values).tolist()
    return found
