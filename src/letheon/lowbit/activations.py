"""Activations and KV cache on low-bit grids while a model runs, and the rotations that belong there (W4A4KV4).

    linear    x -> Q_x(x R4) before every linear of a block but the head; R4 only before the MLP's last
    values    v -> Q_v(v)                       per token and head, as v_proj gives them
    keys      k -> Q_k(k R3) R3^T               behind the rotary embedding
Queries, scores and the residual stream are left alone. A deployed cache holds Q_k(k R3) and rotates the queries by R3
instead: (q R3)(Q_k(k R3))^T is the same product, and here nothing has to be done to queries. Keys and values are
rounded on their way into the cache, token by token, so that decoding gives what a whole pass gives.

Nothing of the model is replaced: hooks on its linears, and a hook on attention that hands it a cache which rounds what
it is given. Gradients pass straight through rounding. Weights are not this module's business: `straight_through` is.

Source: QuaRot arXiv:2404.00456 (where), RoSTE arXiv:2502.09003 (straight-through).
Checked against: attention written out with rotated queries; the model itself at 16 bits; decoding token by token; every
weight, hook and logit bit by bit after removal.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.lowbit.architectures import BlockLayout, block_layout
from letheon.lowbit.online import OnlineRotations, layers_of
from letheon.models import as_matrix
from letheon.numerics.hadamard import Hadamard
from letheon.numerics.token_grids import TokenGrid, round_tokens

Treat = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(keys, values) of new tokens, (batch, heads, time, head_dim) -> what attention and the cache get instead."""


@dataclass(frozen=True, kw_only=True)
class ActivationGrids:
    """The grids of a forward pass; 16 bits switch one off."""

    inputs: TokenGrid = field(default_factory=TokenGrid)
    """Of every linear in the blocks."""
    down: TokenGrid | None = None
    """Of the MLP's last linear, whose inputs are the hardest: 8 bits are a usual exception. null: as the others."""
    keys: TokenGrid = field(default_factory=TokenGrid)
    """Of keys, over the channels of a head."""
    values: TokenGrid = field(default_factory=TokenGrid)
    """Of values, over the channels of a head."""
    share: Literal["head", "token"] = "head"
    """Keys and values: a step for every head of a token, or one for all heads of it."""


def grids_named(name: str) -> tuple[int, ActivationGrids]:
    """Bits of the weights, and the grids, from a word such as "w4a4kv4"; "w4a16kv16" leaves activations alone.

    Raises:
        BadInput: another word.

    >>> bits, grids = grids_named("w4a8kv4")
    >>> bits, grids.inputs.bits, grids.keys.bits
    (4, 8, 4)
    """
    found = re.fullmatch(r"w([2-8]|16)a([2-8]|16)kv([2-8]|16)", name)
    if found is None:
        raise BadInput(f"{name!r} is not a low-bit pass. Known: w4a4kv4 and the like, with 2 to 8 bits, or 16 for off")
    weights, inputs, cache = (int(bits) for bits in found.groups())
    return weights, ActivationGrids(
        inputs=TokenGrid(bits=inputs), keys=TokenGrid(bits=cache), values=TokenGrid(bits=cache)
    )


@dataclass(frozen=True, eq=False)
class Installed:
    """Hooks in a model."""

    handles: tuple[torch.utils.hooks.RemovableHandle, ...]

    def remove(self) -> None:
        """The model as it was. A second call does nothing."""
        for handle in self.handles:
            handle.remove()


def install(
    model: Any,
    *,
    grids: ActivationGrids | None = None,
    online: OnlineRotations | None = None,
    blocks: Sequence[BlockLayout] | None = None,
) -> Installed:
    """From now on the model rounds and rotates what flows through it, until `remove` is called.

    Args:
        model: a causal language model of a known architecture.
        grids: None rounds nothing.
        online: None rotates nothing; `read_online(model.config)` for a model that was rotated.
        blocks: of the model as it was loaded, where low-rank layers have been put around its linears since.
    Raises:
        BadInput: an architecture that is not known, a mixture of experts, or a group that does not divide a width.
    """
    blocks = block_layout(model) if blocks is None else blocks
    if grids is not None:
        _check(model, blocks, grids)
    keys, down = layers_of(online or OnlineRotations(), blocks)
    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for block in blocks:
            handles += _install_block(model, block, grids, keys.get(block.attention), down)
    except BaseException:
        Installed(tuple(handles)).remove()
        raise
    return Installed(tuple(handles))


@contextmanager
def low_bit_activations(
    model: Any,
    *,
    grids: ActivationGrids | None = None,
    online: OnlineRotations | None = None,
    blocks: Sequence[BlockLayout] | None = None,
) -> Iterator[None]:
    """`install` inside, `remove` at the end. Raises what `install` raises."""
    installed = install(model, grids=grids, online=online, blocks=blocks)
    try:
        yield
    finally:
        installed.remove()


def on_keys_and_values(attention: Any, treat: Treat) -> torch.utils.hooks.RemovableHandle:
    """Whatever keys and values attention makes pass `treat` first: behind the rotary embedding, before the cache.

    Raises:
        BadInput: attention that keeps no cache.
    """
    parameters = inspect.signature(attention.forward).parameters
    name = next((name for name in ("past_key_values", "layer_past") if name in parameters), None)
    if name is None:
        raise BadInput(
            f"{type(attention).__name__} takes no cache, so its keys cannot be reached. Quantize with kv bits 16"
        )

    def hook(_: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, {**named, name: _TreatedCache(named.get(name), treat)}

    handle: torch.utils.hooks.RemovableHandle = attention.register_forward_pre_hook(hook, with_kwargs=True)
    return handle


def _install_block(
    model: Any, block: BlockLayout, grids: ActivationGrids | None, keys: Hadamard | None, down: Mapping[str, Hadamard]
) -> Iterator[torch.utils.hooks.RemovableHandle]:
    treat = _treatment(grids, keys)
    if treat is not None:
        yield on_keys_and_values(model.get_submodule(block.attention), treat)
    for name in block.linears:
        grid = _grid_of(block, name, grids)
        if grid is not None or name in down:
            yield model.get_submodule(name).register_forward_pre_hook(_before(grid, down.get(name)))


class _TreatedCache:
    """Stands for the model's cache, or for none, while one layer of attention runs."""

    def __init__(self, cache: Any, treat: Treat) -> None:
        self._cache, self._treat = cache, treat

    def update(self, keys: Tensor, values: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._treat(keys, values)
        if self._cache is None:
            return keys, values
        kept: tuple[Tensor, Tensor] = self._cache.update(keys, values, *rest, **named)
        return kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def _treatment(grids: ActivationGrids | None, rotation: Hadamard | None) -> Treat | None:
    """What happens to the keys and values of a block; None where nothing does.

    Keys that are not rounded need no rotation: there and back is where they were.
    """
    if grids is None or (grids.keys.is_off and grids.values.is_off):
        return None
    chosen = grids

    def treat(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        values = _round_heads(values, chosen.values, chosen.share)
        if rotation is None or chosen.keys.is_off:
            return _round_heads(keys, chosen.keys, chosen.share), values
        return rotation.restore(_round_heads(rotation.rotate(keys), chosen.keys, chosen.share)), values

    return treat


def _round_heads(x: Tensor, grid: TokenGrid, share: str) -> Tensor:
    if share == "head":
        return round_tokens(x, grid)
    tokens = x.transpose(1, 2)  # (batch, time, heads, head_dim)
    return round_tokens(tokens.flatten(-2), grid).view(tokens.shape).transpose(1, 2)


def _before(grid: TokenGrid | None, rotation: Hadamard | None) -> Callable[[Any, Any], Any]:
    """A hook before a linear."""

    def hook(_: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = arguments
        x = x if rotation is None else rotation.rotate(x)
        return (x if grid is None else round_tokens(x, grid), *rest)

    return hook


def _grid_of(block: BlockLayout, name: str, grids: ActivationGrids | None) -> TokenGrid | None:
    if grids is None:
        return None
    grid = grids.down if name == block.down and grids.down is not None else grids.inputs
    return None if grid.is_off else grid


def check_grids(model: Any, grids: ActivationGrids) -> None:
    """Refuse what the first forward pass would stumble over; weights are not needed for that.

    Raises:
        BadInput: an architecture that is not known, a mixture of experts, or a group that does not divide a width.
    """
    _check(model, block_layout(model), grids)


def _check(model: Any, blocks: Sequence[BlockLayout], grids: ActivationGrids) -> None:
    if any(block.experts for block in blocks):
        raise BadInput("the inputs of a mixture's experts cannot be rounded yet. Leave activations at 16 bits")
    block = blocks[0]
    matrices = {name: as_matrix(model.get_submodule(name), model.get_submodule(name).weight) for name in block.linears}
    wanted = [(name, matrix.shape[1], _grid_of(block, name, grids)) for name, matrix in matrices.items()]
    cached = block.head_dim * (block.key_value_heads if grids.share == "token" else 1)
    wanted += [("keys", cached, grids.keys), ("values", cached, grids.values)]
    problems = [
        f"a token group of {grid.group} does not divide the {width} channels of {name}. "
        f"Use a divisor of {width}, or null for all of them"
        for name, width, grid in wanted
        if grid is not None and not grid.is_off and grid.group and width % grid.group
    ]
    if problems:
        raise BadInput(problems)
