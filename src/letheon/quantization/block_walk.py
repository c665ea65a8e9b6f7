"""Round a model block by block on calibration text, with what is rounded before it taken into account.

Two streams of hidden states go through the model: one through the blocks as they were, one through the blocks as they
have become. In each block the linears that read one input are solved together, rows above rows, in the order in which
they run, and each group hears what the groups before it have become (`passage`). Where the first stream only tells what
was lost, a part of the text goes through it. When a block is done it is written down, so a
killed walk goes on with the next block and ends with the same bytes: what is kept is put into the model and both
streams run through it once more. The experts of a mixture come last in their block (`expert_walk`).

Where the model that is made will round its activations, keys and values, its stream rounds them too, so that a layer is
solved for what it is going to hear. What a rotation leaves in the forward pass runs in both streams.

A quantizer with a `prepare_block` may first change the whole block (norms and biases too) on the untouched stream. It
gives back the weights that it has cut off, as they were before, so that the figures count what was lost by that.

Memory on the device: one block, one batch, the moments of one input and their factors.

Source: the drivers of GPTQ arXiv:2210.17323 and GPTAQ arXiv:2504.02692 (true sequential order, two streams).
Checked against: a walk by hand with one forward pass of the whole model a layer; killed after any block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from letheon.errors import BadInput
from letheon.lowbit.activations import ActivationGrids, low_bit_activations
from letheon.lowbit.architectures import BlockLayout, ModelLayout
from letheon.lowbit.matrices import block_matrices, decoder_matrices
from letheon.lowbit.online import OnlineRotations
from letheon.methods import name_of
from letheon.models import as_matrix
from letheon.numerics.grids import Quantized
from letheon.quantization.expert_walk import round_experts
from letheon.quantization.kept_blocks import KeptBlock, keep_block, kept_block
from letheon.quantization.passage import Passage
from letheon.quantization.solving import Solver, as_loaded
from letheon.quantization.statistics import Moments, Statistics
from letheon.quantization.streams import (
    Batch,
    Heard,
    first_batches,
    mean_divergence,
    mean_loss,
    through,
    through_hearing,
)

TOKENS_AT_ONCE = 4096
"""Of calibration text in one pass."""


@dataclass(frozen=True)
class Walk:
    """What a walk needs."""

    model: Any
    layout: ModelLayout
    quantizer: Any
    ids: Int64[Tensor, "sequences length"]
    keep: Path
    """Folder for what is done."""
    device: str = "cpu"
    stored: torch.dtype | None = None
    """What a loader of the file makes of code times scale; None: what the model has."""
    others: torch.dtype | None = None
    """What it holds norms and biases as; None: what the model has."""
    grids: ActivationGrids | None = None
    """Of activations, keys and values in the model that is made: its stream runs on them."""
    online: OnlineRotations = field(default_factory=OnlineRotations)
    """What both streams rotate on their way, the weights being rotated to match."""
    may_fall_back: bool = False
    """Round a layer that cannot be solved to the nearest values instead of stopping."""
    progress: Callable[[int, int, str], None] = lambda done, total, text: None

    def untouched(self) -> AbstractContextManager[None]:
        """Inside, blocks do what they did before anything was rounded."""
        return low_bit_activations(self.model, online=self.online)

    def deployed(self) -> AbstractContextManager[None]:
        """Inside, blocks round what flows through them as the file will."""
        return low_bit_activations(self.model, grids=self.grids, online=self.online)


@dataclass
class Walked:
    """How a walk ended."""

    files: list[Path]
    """One a block; see `kept_blocks`."""
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    """Layer -> relative squared error of its weights ("weights") and of its outputs on the text ("outputs")."""
    tokens_compared: int = 0
    """Of the text: what the figures below are measured on."""
    blocks: dict[str, float] = field(default_factory=dict)
    """Block -> mean squared difference of its outputs to those of the untouched model."""
    loss_before: float = 0.0
    """Mean next-token loss of the untouched model on the text, nats."""
    loss_after: float = 0.0
    divergence: float = 0.0
    """Mean KL of its predictions from the untouched model's on the text, nats a token."""
    fallen_back: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def walk(asked: Walk) -> Walked:
    """Round every block, in place and into files.

    Raises:
        CannotFinish: a layer that cannot be solved, named; the blocks before it are kept.
        BadInput: NaN or infinite activations, named; a damaged file of a kept block; experts before a quantizer that
            changes blocks.
    """
    if hasattr(asked.quantizer, "prepare_block") and any(block.experts for block in asked.layout.blocks):
        raise BadInput(no_experts(asked.quantizer))
    size = max(1, TOKENS_AT_ONCE // asked.ids.shape[1])
    now = first_batches(asked.model, asked.layout, asked.ids, size=size, device=asked.device)
    before = untouched(asked.quantizer, now)
    result = Walked([], tokens_compared=sum(batch.hidden.shape[:2].numel() for batch in before))
    for block in asked.layout.blocks:
        path = asked.keep / f"block-{block.index:05d}.safetensors"
        module = asked.model.get_submodule(block.name).to(asked.device)
        if path.is_file():
            kept = kept_block(path)
            with asked.untouched():
                before = [through(asked.model, block, batch, device=asked.device) for batch in before]
            put_in(asked.model, kept, asked.stored)
            with asked.deployed():
                now = [through(asked.model, block, batch, device=asked.device) for batch in now]
        else:
            before, now, kept = _round_block(asked, block, before, now)
            keep_block(path, kept)
        module.to("cpu")
        _note(result, block, kept, path, _difference(before, now[: len(before)]))
        asked.progress(block.index + 1, len(asked.layout.blocks), block.name)
    now = now[: len(before)]
    ids = asked.ids[: sum(len(batch.hidden) for batch in now)]
    result.loss_before, result.loss_after = (
        mean_loss(asked.model, asked.layout, batches, ids, device=asked.device) for batches in (before, now)
    )
    result.divergence = mean_divergence(asked.model, asked.layout, before, now, device=asked.device)
    return result


def untouched(quantizer: Any, batches: Sequence[Batch]) -> list[Batch]:
    """The batches that go through the untouched model as well.

    All, where the quantizer looks at them. Where they only tell what was lost, the first eighth does, at least one.
    """
    needs_all = "drift" in quantizer.needs or hasattr(quantizer, "prepare_block")
    return list(batches if needs_all else batches[: -(-len(batches) // 8)])


def no_experts(quantizer: Any) -> str:
    """Why a quantizer that changes blocks is not used on a mixture: it would pass its experts over."""
    return (
        f"quantizer {name_of(quantizer)!r} does not know the experts of a mixture: they would be rounded without its "
        "search. Use --method gptq, or rtn"
    )


def put_in(model: Any, kept: KeptBlock, stored: torch.dtype | None = None) -> None:
    """Give a block of the model what it has become."""
    matrices = decoder_matrices(model)
    with torch.no_grad():
        for name, tensor in kept.others.items():
            model.get_parameter(name).copy_(tensor)
        for name, layer in kept.layers.items():
            matrices[name].weight.copy_(as_loaded(layer, stored))


def _round_block(
    asked: Walk, block: BlockLayout, before: list[Batch], now: Sequence[Batch]
) -> tuple[list[Batch], list[Batch], KeptBlock]:
    """Both streams behind the block, and what the block has become."""
    uncut: Mapping[str, Tensor] = {}
    with asked.untouched():
        behind, originals = _behind(asked, block, before)
        if hasattr(asked.quantizer, "prepare_block"):
            uncut = asked.quantizer.prepare_block(asked.model, block, before, asked.device, stored=asked.others)
    solver = Solver(asked.quantizer, stored=asked.stored, may_fall_back=asked.may_fall_back)
    matrices = block_matrices(asked.model, block)
    passage = Passage(asked.model, block, now, device=asked.device)
    layers: dict[str, Quantized] = {}
    with asked.deployed():
        for group in block.groups:
            heard_before = None if originals is None else [batch.linears[group[0]] for batch in originals]
            statistics = _statistics(asked, group[0], passage.heard(group[0]), heard_before)
            layers |= solver.solve({name: matrices[name].weight for name in group}, statistics, uncut)
        if block.experts is not None:
            reached_before = None if originals is None else [batch.experts for batch in originals if batch.experts]
            reached = passage.routed()
            layers |= round_experts(asked.model, block, solver, reached, reached_before, device=asked.device)
        through_it = passage.behind()
    rounded = {matrix.parameter for matrix in matrices.values()}
    others = {
        name: parameter.detach()
        for name, parameter in asked.model.get_submodule(block.name).named_parameters(prefix=block.name)
        if name not in rounded
    }
    return behind, through_it, KeptBlock(layers, others, solver.figures)


def _behind(asked: Walk, block: BlockLayout, before: Sequence[Batch]) -> tuple[list[Batch], list[Heard] | None]:
    """The untouched stream behind a block, and what was heard on its way where the quantizer looks at drift."""
    if "drift" not in asked.quantizer.needs:
        return [through(asked.model, block, batch, device=asked.device) for batch in before], None
    first = [group[0] for group in block.groups]
    found = [through_hearing(asked.model, block, batch, first, device=asked.device) for batch in before]
    return [behind for behind, _ in found], [heard for _, heard in found]


def _statistics(asked: Walk, name: str, found: Iterable[Tensor], originals: Sequence[Tensor] | None) -> Statistics:
    """Moments of what a linear hears. Raises BadInput that names it."""
    width = as_matrix(asked.model.get_submodule(name), asked.model.get_submodule(name).weight).shape[1]
    moments = Moments(width, has_drift=originals is not None, device=asked.device)
    try:
        for place, inputs in enumerate(found):
            moments.add(inputs, None if originals is None else originals[place].to(asked.device))
        return moments.statistics()
    except BadInput as error:
        raise BadInput([f"layer {name}: {problem}" for problem in error.problems]) from error


def _difference(before: Sequence[Batch], now: Sequence[Batch]) -> float:
    total = sum(
        float((one.hidden.double() - other.hidden.double()).square().sum())
        for one, other in zip(before, now, strict=True)
    )
    return total / sum(batch.hidden.numel() for batch in now)


def _note(result: Walked, block: BlockLayout, kept: KeptBlock, path: Path, difference: float) -> None:
    result.files.append(path)
    result.figures |= kept.figures["layers"]
    result.blocks[block.name] = difference
    result.fallen_back += kept.figures["fallen_back"]
    result.warnings += kept.figures["warnings"]
