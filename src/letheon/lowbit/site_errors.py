"""What rounding costs at a place of a block, with its weights and activations in one basis or another.

With weights W that meet tokens x at a site, both in the basis of a candidate R (I or a Hadamard rotation):
    E(R) = sum_W ||Q_w(W R) - W R||^2 / ||W||^2  +  sum_x mean_t ||Q_x(x_t R) - x_t R||^2 / ||x_t||^2
    R2 values    W: v (its outputs) and o        x: values (cache grid), inputs of o
    R3 keys      no weight                       x: keys behind the rotary embedding (cache grid)
    R4 down      W: down                         x: inputs of down
Each part is 0 at 16 bits and does not change with the size of W or x. Padding is not counted.

Source: RoSTE arXiv:2502.09003. Normalizing each error, and the sum over what a site touches, are this project's.
Checked against: E by hand on 4 x 4, scaled and permuted weights, tokens taken from the model's own tensors, padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from letheon.data.batches import Batch
from letheon.errors import BadInput
from letheon.lowbit.activations import on_keys_and_values
from letheon.lowbit.architectures import BlockLayout
from letheon.models import as_matrix
from letheon.numerics.grids import Grid, fake_quantize
from letheon.numerics.hadamard import Hadamard
from letheon.numerics.token_grids import TokenGrid, token_errors

Candidates = Mapping[str, Hadamard | None]
"""Name of a candidate -> its rotation; None leaves the basis as it is."""


@dataclass(frozen=True, kw_only=True)
class SiteGrids:
    """What is rounded to what."""

    weights: Grid
    inputs: TokenGrid
    """Of linears."""
    cache: TokenGrid
    """Of keys and values, per head."""


@dataclass(frozen=True, kw_only=True)
class SiteError:
    """What rounding costs at a site, both parts relative and at least 0."""

    weight: float
    activation: float

    @property
    def total(self) -> float:
        """E."""
        return self.weight + self.activation


@dataclass(frozen=True, kw_only=True)
class SiteChoice:
    """What was chosen for a site of a block, and why."""

    block: int
    site: str
    errors: Mapping[str, SiteError]
    """Candidate -> its errors; identity is always there."""
    chosen: str


def describe_choices(choices: Sequence[SiteChoice]) -> list[dict[str, Any]]:
    """What was chosen and why, as plain data for the record."""
    return [
        {
            "block": choice.block,
            "site": choice.site,
            "chosen": choice.chosen,
            "errors": {
                name: {"weight": error.weight, "activation": error.activation} for name, error in choice.errors.items()
            },
        }
        for choice in choices
    ]


@torch.no_grad()
def site_errors(
    model: Any,
    blocks: Sequence[BlockLayout],
    candidates: Mapping[str, Candidates],
    calibration: Sequence[Batch],
    *,
    grids: SiteGrids,
) -> dict[tuple[int, str], dict[str, SiteError]]:
    """(block, site) -> candidate -> its errors, in one pass over the calibration text.

    Args:
        model: at full precision; it is not changed.
        blocks: those to look at.
        candidates: site ("values", "keys", "down") -> what may be done there.
        calibration: padded batches of text.
        grids: of weights, inputs and cache.
    Raises:
        BadInput: no token in the text, inputs that are NaN or infinite, or a group that does not divide a width.
    """
    seen = _ActivationErrors(candidates, grids)
    seen.measure(model, blocks, calibration)

    def error(block: BlockLayout, site: str, name: str) -> SiteError:
        weight = weight_error(model, block, site, candidates[site][name], grids.weights)
        return SiteError(weight=weight, activation=seen.mean(block, site, name))

    return {
        (block.index, site): {name: error(block, site, name) for name in candidates[site]}
        for block in blocks
        for site in candidates
    }


@torch.no_grad()
def relative_error(weight: Float[Tensor, "rows columns"], grid: Grid) -> float:
    """||Q(W) - W||^2 / ||W||^2, 0 for a weight of zeros."""
    wide = weight.double()
    lost = (fake_quantize(weight, grid).double() - wide).square().sum()
    return float(lost / wide.square().sum().clamp_min(torch.finfo(torch.float64).tiny))


@torch.no_grad()
def weight_error(model: Any, block: BlockLayout, site: str, rotation: Hadamard | None, grid: Grid) -> float:
    """The weight part of E: the sum over the weights that the site touches."""
    turn = (lambda x: x) if rotation is None else rotation.rotate

    def matrix(name: str) -> Tensor:
        module = model.get_submodule(name)
        return as_matrix(module, module.weight).float()

    if site == "down" and block.down is not None:
        return relative_error(turn(matrix(block.down)), grid)
    if site != "values":
        return 0.0
    output, heads = matrix(block.output), matrix(block.value)[block.rows("value")]
    turned = turn(heads.transpose(1, 2)).transpose(1, 2).reshape(-1, heads.shape[-1])
    by_head = turn(output.reshape(len(output), block.heads, block.head_dim)).reshape(output.shape)
    return relative_error(turned, grid) + relative_error(by_head, grid)


class _ActivationErrors:
    """Adds up, in one pass over the calibration text, what every candidate of every site would lose of its tokens."""

    def __init__(self, candidates: Mapping[str, Candidates], grids: SiteGrids) -> None:
        self._candidates, self._inputs, self._cache = candidates, grids.inputs, grids.cache
        self._sums: dict[tuple[int, str, str], float] = {}
        self._tokens = 0
        self._is_token: Tensor = torch.empty(0)

    def measure(self, model: Any, blocks: Sequence[BlockLayout], calibration: Sequence[Batch]) -> None:
        """Run the model over the text."""
        handles = [handle for block in blocks for handle in self._listen(model, block)]
        device = model.get_input_embeddings().weight.device
        try:
            for batch in calibration:
                self._is_token = batch.attention_mask.to(device).bool()
                self._tokens += int(self._is_token.sum())
                # Without the head: its logits would be the largest thing in memory, and nobody asks for them.
                given = {"input_ids": batch.ids.to(device), "attention_mask": batch.attention_mask.to(device)}
                model.base_model(**given, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()

    def mean(self, block: BlockLayout, site: str, candidate: str) -> float:
        """The activation part of E, over all tokens that are no padding."""
        if not self._tokens:
            raise BadInput("the calibration text has no token to choose rotations by. Give more text, or other text")
        found = self._sums.get((block.index, site, candidate), 0.0) / self._tokens
        if not found < float("inf"):  # NaN too
            raise BadInput(
                f"{block.name}: what site {site} sees on the calibration text is NaN or infinite. The model is damaged"
            )
        return found

    def _listen(self, model: Any, block: BlockLayout) -> list[torch.utils.hooks.RemovableHandle]:
        def treat(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            self._count(block, "keys", keys.transpose(1, 2), self._cache)
            self._count(block, "values", values.transpose(1, 2), self._cache)
            return keys, values

        def output(_: Any, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0]
            self._count(block, "values", x.reshape(*x.shape[:2], block.heads, block.head_dim), self._inputs, whole=True)

        def down(_: Any, arguments: tuple[Tensor, ...]) -> None:
            self._count(block, "down", arguments[0][:, :, None], self._inputs)

        handles = [on_keys_and_values(model.get_submodule(block.attention), treat)]
        handles.append(model.get_submodule(block.output).register_forward_pre_hook(output))
        if block.down is not None:
            handles.append(model.get_submodule(block.down).register_forward_pre_hook(down))
        return handles

    def _count(self, block: BlockLayout, site: str, x: Tensor, grid: TokenGrid, *, whole: bool = False) -> None:
        """Count x in, (batch, time, heads, channels): rounded by head, or all heads of a token as a whole."""
        tokens = x[self._is_token]
        for name, rotation in self._candidates.get(site, {}).items():
            turned = tokens if rotation is None else rotation.rotate(tokens)
            lost = token_errors(turned.flatten(1), grid) if whole else token_errors(turned, grid).mean(-1)
            key = (block.index, site, name)
            self._sums[key] = self._sums.get(key, 0.0) + float(lost.sum())
