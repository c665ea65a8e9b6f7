"""Round the experts of a mixture, each on the tokens that are routed to it.

For expert e, T_e the tokens x whose router has chosen it (the router itself stays as it is):
    H of gate and up  the mean of x x^T over T_e, one for both
    H of down         the mean of h h^T over T_e, h = act(gate x) * up x with gate and up as they have become
A token counts once for each expert that hears it, whatever weight the router gives that expert's answer: these are the
inputs that the layers hear. Drift is against the untouched model at the same token, through the same expert as it was,
whether or not the untouched router had chosen it.

Attention is done by then, so what reaches the experts is heard once for the whole block and kept on the CPU.

An expert that hears nothing cannot be solved: it is named, and the run stops, or it is rounded to the nearest values.
One that hears fewer tokens than its layers have inputs is solved and named: what they do not show is left to damping.

Source: this project; routing as in transformers' Mixtral.
Checked against: tokens routed by hand and solved in float64 by slow solvers; a mixture of one expert and a plain MLP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from letheon.errors import BadInput
from letheon.lowbit.architectures import BlockLayout
from letheon.lowbit.matrices import ExpertLayers, block_matrices
from letheon.numerics.grids import Quantized
from letheon.quantization.factors import dead_inputs
from letheon.quantization.solving import Solver
from letheon.quantization.statistics import Moments, Statistics
from letheon.quantization.streams import Routed

Pair = tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"] | None]
"""What a layer hears of one batch: now, and at the same tokens in the untouched model where that was asked for."""


@torch.no_grad()
def round_experts(
    model: Any,
    block: BlockLayout,
    solver: Solver,
    reached: Sequence[Routed],
    originals: Sequence[Routed] | None,
    *,
    device: str,
) -> dict[str, Quantized]:
    """The layers of every expert of a block, which stands on `device`, rounded in place.

    Args:
        model, block: where the experts are.
        solver: learns what was lost, and who heard too little.
        reached: what reaches the experts, batch by batch.
        originals: the same of the untouched model, where the quantizer looks at drift.
        device: where the block is.
    Raises:
        CannotFinish: an expert that heard nothing and may not fall back, named.
    """
    assert block.experts is not None
    matrices = {name: matrix.weight for name, matrix in block_matrices(model, block).items()}
    act = model.get_submodule(block.experts).act_fn
    found: dict[str, Quantized] = {}
    few: list[str] = []
    total = sum(len(batch.hidden) for batch in reached)
    for expert in block.expert_layers:
        gate, up, down = (matrices[name] for name in expert.names)
        untouched = None if originals is None else (gate.clone(), up.clone())
        inputs = _inputs(reached, originals, expert.index)
        widest = max(gate.shape[1], down.shape[1])
        if solver.quantizer.needs and 0 < (count := sum(len(now) for now, _ in inputs)) < widest:
            few.append(f"{_stem(expert)} {count}")
        found |= solver.solve({expert.gate: gate, expert.up: up}, _statistics(inputs, expert.gate, device))
        inner = (
            (
                _inner(now.to(device), gate, up, act),
                None if before is None or untouched is None else _inner(before.to(device), *untouched, act),
            )
            for now, before in inputs
        )
        found |= solver.solve({expert.down: down}, _statistics(inner, expert.down, device))
    if few:
        solver.figures["warnings"].append(
            f"experts that heard fewer of the {total} tokens of calibration text than a layer of theirs has inputs "
            f"({widest}): {', '.join(few)}. What the text does not show is left to the damping. Give more text"
        )
    return found


def _inputs(reached: Sequence[Routed], originals: Sequence[Routed] | None, expert: int) -> list[Pair]:
    """On the CPU."""
    found: list[Pair] = []
    for place, batch in enumerate(reached):
        is_its = (batch.chosen == expert).any(dim=1)
        found.append((batch.hidden[is_its], None if originals is None else originals[place].hidden[is_its]))
    return found


def _inner(inputs: Tensor, gate: Tensor, up: Tensor, act: Any) -> Tensor:
    """What the expert's last layer hears."""
    hidden: Tensor = act(torch.nn.functional.linear(inputs, gate)) * torch.nn.functional.linear(inputs, up)
    return hidden


def _statistics(inputs: Iterable[Pair], name: str, device: str) -> Statistics | None:
    """None where nothing was heard, or nothing but zeros."""
    moments: Moments | None = None
    try:
        for now, before in inputs:
            if not len(now):
                continue
            moments = moments or Moments(now.shape[1], has_drift=before is not None, device=device)
            moments.add(now.to(device), None if before is None else before.to(device))
    except BadInput as error:
        raise BadInput([f"layer {name}: {problem}" for problem in error.problems]) from error
    found = None if moments is None else moments.statistics()
    return None if found is None or bool(dead_inputs(found.gram).all()) else found


def _stem(expert: ExpertLayers) -> str:
    return expert.gate.rsplit(".", 1)[0]
