"""Channels divided by t in one layer and multiplied by t in the next: the function stays, the rounding does not.

A column that was multiplied takes more of its group's range and loses less of itself; what it feeds on is divided by
as much. Of a = mean |x| over tokens, t is searched on a line (x: inputs of the consumers, r in 0, 1/n .. (n-1)/n):
    t_r = max(a^r, 1e-4), divided by sqrt(max t_r * min t_r)
    r = argmin mean (f(x; Q(W diag t_r) diag(1/t_r)) - f(x; W))^2     f: the inspected module, W: all its consumers
A norm in bfloat16 rarely holds gain / t. What it holds is taken for granted, and the consumers are multiplied by what
the gain was divided by in truth. Gemma's norms, which hold gain - 1, would lose small gains otherwise.

Source: AWQ arXiv:2306.00978; the ends of the line as in its authors' code.
Checked against: logits of every architecture before and after; the search written down for a Llama with cached inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from letheon.lowbit.architectures import BlockLayout, NormKind, ScalePair, gain, set_gain
from letheon.models import as_matrix
from letheon.numerics.grids import Grid, fake_quantize
from letheon.quantization.streams import Batch, through

_SMALLEST = 1e-4
"""Of t before it is centred, and what keeps a division by a weight of 0 finite."""


def candidate_scales(
    magnitude: Float[Tensor, " inputs"], ratios: int, sizes: Float[Tensor, " inputs"] | None = None
) -> Float[Tensor, "ratios inputs"]:
    """The line that is searched, float32; the first candidate is 1 everywhere.

    Args:
        magnitude: a, at least 0.
        ratios: candidates.
        sizes: `relative_sizes` of the consumers, for t = a^r / (sizes^(1-r) + 1e-4); the first is then not 1.
    """
    ratio = torch.arange(ratios, device=magnitude.device)[:, None] / ratios
    raw = magnitude.float() ** ratio
    if sizes is not None:
        raw = raw / (sizes.float() ** (1 - ratio) + _SMALLEST)
    raw = raw.clamp(min=_SMALLEST)
    smallest, largest = raw.aminmax(dim=1, keepdim=True)
    return raw / (largest * smallest).sqrt()


def relative_sizes(weight: Float[Tensor, "rows inputs"], grid: Grid) -> Float[Tensor, " inputs"]:
    """How much of its group's range a column takes, mean over rows, 0 to 1."""
    rows, inputs = weight.shape
    size = inputs if grid.group == "row" else int(grid.group)
    grouped = weight.detach().float().abs().reshape(rows, inputs // size, size)
    return (grouped / (grouped.amax(dim=-1, keepdim=True) + 1e-6)).reshape(rows, inputs).mean(dim=0)


@torch.no_grad()
def best_scale(
    model: Any,
    block: BlockLayout,
    pair: ScalePair,
    batches: Sequence[Batch],
    scales: Float[Tensor, "candidates inputs"],
    grid: Grid,
    *,
    device: str,
) -> Float[Tensor, " inputs"]:
    """The candidate whose rounded consumers change the output of the inspected module least; the first of equals.

    Consumers are as they were when it returns. Holds what reaches the inspected module for one batch at a time.
    """
    consumers = [model.get_submodule(name) for name in pair.consumers]
    originals = [consumer.weight.detach().clone() for consumer in consumers]
    lost = torch.zeros(len(scales), dtype=torch.float64, device=scales.device)
    try:
        for batch in batches:
            run = _call_of(model, block, pair.inspected, batch, device)
            expected = run()
            for place, scale in enumerate(scales):
                for consumer, original in zip(consumers, originals, strict=True):
                    consumer.weight.copy_(_rounded(consumer, original, scale, grid))
                lost[place] += (run() - expected).square().sum(dtype=torch.float64)
            _put_back(consumers, originals)
    finally:
        _put_back(consumers, originals)
    return scales[int(lost.nan_to_num(nan=torch.inf).argmin())]


@torch.no_grad()
def scale_pair(
    model: Any,
    block: BlockLayout,
    pair: ScalePair,
    scale: Float[Tensor, " inputs"],
    *,
    stored: torch.dtype | None = None,
) -> Float[Tensor, " inputs"]:
    """Divide the producer's channels and multiply the consumers' columns, in place.

    Args:
        stored: what the file holds norms and biases as; None: what the model does.
    Returns:
        What they were divided by, float64: `scale` but for the last digits that the norm's dtype holds.
    """
    producer, factor = model.get_submodule(pair.producer), scale.double()
    rows = torch.arange(len(factor)) if pair.part is None else block.rows(pair.part).reshape(-1)
    rows = rows.to(factor.device)
    if pair.producer in block.readers:
        factor = _divide_gain(producer, block.norm_kind, factor, stored)
    else:
        weight = as_matrix(producer, producer.weight)
        weight[rows] = (weight[rows].double() / factor[:, None]).to(weight.dtype)
    bias = getattr(producer, "bias", None)
    if bias is not None:
        bias[rows] = (bias[rows].double() / factor).to(stored or bias.dtype).to(bias.dtype)
    for name in pair.consumers:
        consumer = model.get_submodule(name)
        weight = as_matrix(consumer, consumer.weight)
        weight.copy_(weight.double() * factor)
    return factor


def _divide_gain(norm: nn.Module, kind: NormKind, factor: Tensor, stored: torch.dtype | None) -> Tensor:
    """Divide a norm's gains in place; what they were divided by. A gain that would be lost stays as it is."""
    before = _exact_gain(norm, kind)
    set_gain(norm, kind, before / factor)
    weight: Tensor = norm.weight  # type: ignore[assignment]
    weight.copy_(weight.to(stored or weight.dtype))
    after = _exact_gain(norm, kind)
    is_lost = after == 0
    set_gain(norm, kind, torch.where(is_lost, before, after))
    return torch.where(is_lost, 1.0, before / after)


def _exact_gain(norm: nn.Module, kind: NormKind) -> Tensor:
    """In float64: 1 + w has more digits than w's own dtype."""
    return gain(copy.deepcopy(norm).double(), kind).detach()


def _rounded(module: nn.Module, weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Q(W diag t) diag(1/t), as the module holds its weight; W diag t has the dtype in which it will be rounded."""
    scaled = (as_matrix(module, weight) * scale).to(weight.dtype).contiguous()
    return as_matrix(module, fake_quantize(scaled, grid) / scale)


def _put_back(modules: Sequence[Any], weights: Sequence[Tensor]) -> None:
    for module, weight in zip(modules, weights, strict=True):
        module.weight.copy_(weight)


def _call_of(model: Any, block: BlockLayout, name: str, batch: Batch, device: str) -> Callable[[], Tensor]:
    """Runs a module of the block once more on what the batch brings it. Output in float32."""
    module = model.get_submodule(name)
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hear(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given.append((arguments, named))

    # Before any other hook: whatever changes the input does so again in every run.
    hook = module.register_forward_pre_hook(hear, with_kwargs=True, prepend=True)
    try:
        through(model, block, batch, device=device)
    finally:
        hook.remove()
    ((arguments, named),) = given

    def run() -> Tensor:
        found = module(*arguments, **named)
        output: Tensor = found[0] if isinstance(found, tuple) else found
        return output.float()

    return run
