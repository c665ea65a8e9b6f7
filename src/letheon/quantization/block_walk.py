"""Round a model block by block on calibration text, with what is rounded before it taken into account.

Two streams of hidden states go through the model: one through the blocks as they were, one through the blocks as they
have become. In each block the linears that read one input are solved together, rows above rows, in the order in which
they run, and each group hears what the groups before it have become. When a block is done it is written down, so a
killed walk goes on with the next block and ends with the same bytes: what is kept is put into the model and both
streams run through it once more.

Where the model that is made will round its activations, keys and values, its stream rounds them too, so that a layer is
solved for what it is going to hear. What a rotation leaves in the forward pass runs in both streams.

A quantizer with a `prepare_block` may first change the whole block (norms and biases too) on the untouched stream. It
gives back the weights that it has cut off, as they were before, so that the figures count what was lost by that.

Memory on the device: one block, one batch, the moments of one input and their factors.

Source: the drivers of GPTQ arXiv:2210.17323 and GPTAQ arXiv:2504.02692 (true sequential order, two streams).
Checked against: a walk by hand with one forward pass of the whole model a layer; killed after any block.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from letheon.errors import BadInput, CannotFinish
from letheon.lowbit.activations import ActivationGrids, low_bit_activations
from letheon.lowbit.architectures import BlockLayout, ModelLayout
from letheon.lowbit.online import OnlineRotations
from letheon.models import as_matrix
from letheon.numerics.grids import CodebookGrid, Quantized, dequantize, quantize
from letheon.quantization.factors import DampingRaised, NotPositiveDefinite, dead_inputs
from letheon.quantization.kept_blocks import KeptBlock, keep_block, kept_block
from letheon.quantization.statistics import Moments, Statistics
from letheon.quantization.streams import Batch, first_batches, heard, mean_divergence, mean_loss, through

TOKENS_AT_ONCE = 16384
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
        BadInput: NaN or infinite activations, named; a damaged file of a kept block.
    """
    size = max(1, TOKENS_AT_ONCE // asked.ids.shape[1])
    now = first_batches(asked.model, asked.layout, asked.ids, size=size, device=asked.device)
    before = list(now)
    result = Walked([])
    for block in asked.layout.blocks:
        path = asked.keep / f"block-{block.index:05d}.safetensors"
        module = asked.model.get_submodule(block.name).to(asked.device)
        if path.is_file():
            kept = kept_block(path)
            with asked.untouched():
                before = [through(asked.model, block, batch, device=asked.device) for batch in before]
            put_in(asked.model, kept, asked.stored)
        else:
            before, kept = _round_block(asked, block, before, now)
            keep_block(path, kept)
        with asked.deployed():
            now = [through(asked.model, block, batch, device=asked.device) for batch in now]
        module.to("cpu")
        _note(result, block, kept, path, _difference(before, now))
        asked.progress(block.index + 1, len(asked.layout.blocks), block.name)
    result.loss_before, result.loss_after = (
        mean_loss(asked.model, asked.layout, batches, asked.ids, device=asked.device) for batches in (before, now)
    )
    result.divergence = mean_divergence(asked.model, asked.layout, before, now, device=asked.device)
    return result


def as_loaded(layer: Quantized, stored: torch.dtype | None) -> Tensor:
    """The weights that a loader of the file makes of the codes: rounded to its dtype once more."""
    weight = dequantize(layer)
    return weight.to(stored or weight.dtype).to(weight.dtype)


def put_in(model: Any, kept: KeptBlock, stored: torch.dtype | None = None) -> None:
    """Give a block of the model what it has become."""
    with torch.no_grad():
        for name, tensor in kept.others.items():
            model.get_parameter(name).copy_(tensor)
        for name, layer in kept.layers.items():
            module = model.get_submodule(name)
            module.weight.copy_(as_matrix(module, as_loaded(layer, stored)))


def _round_block(
    asked: Walk, block: BlockLayout, before: list[Batch], now: Sequence[Batch]
) -> tuple[list[Batch], KeptBlock]:
    """The untouched stream behind the block, and what the block has become."""
    needs_drift = "drift" in asked.quantizer.needs
    first = [group[0] for group in block.groups]
    originals: list[dict[str, Tensor]] = []
    uncut: Mapping[str, Tensor] = {}
    with asked.untouched():
        if needs_drift:
            for batch in before:
                inputs = heard(asked.model, block, batch, first, device=asked.device)
                originals.append({name: tensor.cpu() for name, tensor in inputs.items()})
        behind = [through(asked.model, block, batch, device=asked.device) for batch in before]
        if hasattr(asked.quantizer, "prepare_block"):
            uncut = asked.quantizer.prepare_block(asked.model, block, before, asked.device, stored=asked.others)
    layers: dict[str, Quantized] = {}
    figures: dict[str, Any] = {"layers": {}, "fallen_back": [], "warnings": []}
    for group in block.groups:
        with asked.deployed():
            statistics = _statistics(asked, block, group[0], now, originals if needs_drift else None)
        for name, layer, lost in _solved(asked, group, statistics, figures, uncut):
            layers[name], figures["layers"][name] = layer, lost
        for name in group:
            module = asked.model.get_submodule(name)
            with torch.no_grad():
                module.weight.copy_(as_matrix(module, as_loaded(layers[name], asked.stored)))
    weights = {f"{name}.weight" for name in layers}
    prefix = f"{block.name}."
    others = {
        f"{prefix}{name}": parameter.detach()
        for name, parameter in asked.model.get_submodule(block.name).named_parameters()
        if f"{prefix}{name}" not in weights
    }
    return behind, KeptBlock(layers, others, figures)


def _statistics(
    asked: Walk, block: BlockLayout, name: str, now: Sequence[Batch], originals: Sequence[Mapping[str, Tensor]] | None
) -> Statistics:
    """Moments of what a linear hears. Raises BadInput that names it."""
    width = as_matrix(asked.model.get_submodule(name), asked.model.get_submodule(name).weight).shape[1]
    moments = Moments(width, has_drift=originals is not None, device=asked.device)
    try:
        for place, batch in enumerate(now):
            found = heard(asked.model, block, batch, [name], device=asked.device)[name]
            moments.add(found, None if originals is None else originals[place][name].to(asked.device))
        return moments.statistics()
    except BadInput as error:
        raise BadInput([f"layer {name}: {problem}" for problem in error.problems]) from error


def _solved(
    asked: Walk, group: Sequence[str], statistics: Statistics, figures: dict[str, Any], uncut: Mapping[str, Tensor]
) -> Iterator[tuple[str, Quantized, dict[str, float]]]:
    """Layers that read one input, solved as one matrix, and what was lost in each: by rounding, and by cutting off."""
    matrices = [as_matrix(module, module.weight.detach()) for module in map(asked.model.get_submodule, group)]
    dead = float(dead_inputs(statistics.gram).float().mean())
    if dead > 0.5:
        figures["warnings"].append(
            f"layer {group[0]}: {dead:.0%} of its inputs are 0 on the calibration text. Give more text, or other text"
        )
    grid = asked.quantizer.grid
    is_one_scale = (
        isinstance(grid, CodebookGrid) or grid.group == "tensor"
    )  # a table's blocks run over the ends of rows
    parts = [[place] for place in range(len(group))] if is_one_scale else [list(range(len(group)))]
    for places in parts:
        names = [group[place] for place in places]
        weight = torch.cat([matrices[place] for place in places]).contiguous()
        layer = _solve(asked, names, weight, statistics, figures)
        row = 0
        for name, matrix in zip(names, (matrices[place] for place in places), strict=True):
            own = _rows(layer, row, row + len(matrix)) if len(names) > 1 else layer
            row += len(matrix)
            yield name, own, _lost(uncut.get(name, matrix), as_loaded(own, asked.stored), statistics)


def _solve(
    asked: Walk, names: Sequence[str], weight: Tensor, statistics: Statistics, figures: dict[str, Any]
) -> Quantized:
    said = f"layer {names[0]}" + (f" (and {len(names) - 1} that read the same input)" if len(names) > 1 else "")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", DampingRaised)
            found: Quantized = asked.quantizer.quantize_layer(weight, statistics)
        figures["warnings"] += [f"{said}: {each.message}" for each in told if issubclass(each.category, DampingRaised)]
        return found
    except BadInput as error:
        raise BadInput([f"{said}: {problem}" for problem in error.problems]) from error
    except NotPositiveDefinite as error:
        if not asked.may_fall_back:
            raise CannotFinish(
                f"{said}: {error}; or round it to the nearest values with --allow-rtn-fallback"
            ) from error
        figures["fallen_back"] += names
        return quantize(weight, asked.quantizer.grid)


def _rows(layer: Quantized, begin: int, end: int) -> Quantized:
    """Some rows of a rounded matrix."""
    is_off = getattr(layer.grid, "bits", 0) == 16  # one scale, which stands for nothing
    scale, zero = (layer.scale, layer.zero) if is_off else (layer.scale[begin:end], layer.zero[begin:end])
    return replace(layer, codes=layer.codes[begin:end], scale=scale, zero=zero)


def _lost(
    weight: Float[Tensor, "rows inputs"], rounded: Float[Tensor, "rows inputs"], statistics: Statistics
) -> dict[str, float]:
    """Relative squared errors: ||W - Q||^2 / ||W||^2, and of the outputs tr((W - Q) H (W - Q)^T) / tr(W H W^T)."""
    before, change = weight.float(), weight.float() - rounded.float()
    gram = statistics.gram

    def power(matrix: Tensor) -> Tensor:
        return ((matrix @ gram) * matrix).double().sum()

    weights = change.double().square().sum() / before.double().square().sum().clamp_min(1e-300)
    outputs = power(change) / power(before).clamp_min(1e-300)
    return {"weights": float(weights), "outputs": float(outputs)}


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
