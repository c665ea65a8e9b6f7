"""What `letheon quantize` will need, before a weight is loaded.

The streams of hidden states and the blocks they go through are the real code on tensors without values; blocks are
alike, so one is run. A solver's own arithmetic depends on values: here it is the tensors that it holds, the moments of
one input in float64 and their factors, and as many operations as these take.

Source: this project.  Checked against: the measured peak of real runs, with and without calibration text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from letheon.lowbit.architectures import BlockLayout, ModelLayout, model_layout
from letheon.lowbit.low_bit_pass import THROUGH
from letheon.lowbit.matrices import block_matrices, decoder_matrices
from letheon.methods import name_of
from letheon.models import DTYPES
from letheon.numerics.grids import quantize
from letheon.quantization.block_walk import TOKENS_AT_ONCE, untouched
from letheon.quantization.passage import Passage
from letheon.quantization.plain_rounding import round_layers
from letheon.quantization.request import Request
from letheon.quantization.saving import SHARD_BYTES
from letheon.quantization.streams import Routed, first_batches, mean_loss, through, through_hearing
from letheon.recipes.estimates import Estimate, by_part, time_of
from letheon.recipes.rehearsal import Rehearsal, Work

_FACTORS = 4
"""Matrices (inputs, inputs) of float64 that a solver holds at once: moments, their factor, its inverse, a product."""


@torch.no_grad()
def of_quantize(request: Request) -> Estimate:
    """From what the checks of the verb found."""
    device, calibration = request.device, request.calibration()
    with Rehearsal(device) as rehearsal:
        is_rotated = name_of(request.rotation) != "none" or THROUGH in request.folder.config
        model = rehearsal.model(request.folder, "float32" if device == "cpu" or is_rotated else "stored")
        layout = model_layout(model)
        if layout.is_tied and getattr(request.rotation, "residual", False):  # the head gets weights of its own
            head = model.get_submodule(layout.head)
            head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        rehearsal.start_counting()
        work, extra = Work(), 0.0
        if calibration is None:
            for block in layout.blocks:  # its codes stand until it is written down
                layers = round_layers(block_matrices(model, block), request.quantizer)
                del layers
            work = rehearsal.work
        else:
            ids = torch.zeros(calibration.ids.shape, dtype=torch.long)
            work, extra = _walk(rehearsal, model, layout, request, ids)
        _write(model, request)
    rows = 1 if calibration is None else min(TOKENS_AT_ONCE, calibration.tokens)
    return Estimate(by_part(rehearsal), time_of(work + Work(operations=extra), rows, model, device))


def _walk(rehearsal: Rehearsal, model: Any, layout: ModelLayout, request: Request, ids: Tensor) -> tuple[Work, float]:
    """One block for all of them: work of the passes, and operations of the solver."""
    device, block = request.device, layout.blocks[0]
    size = max(1, TOKENS_AT_ONCE // ids.shape[1])
    now = first_batches(model, layout, ids, size=size, device=device)
    rehearsal.start_counting()
    names, before, originals = [group[0] for group in block.groups], [], []
    for batch in untouched(request.quantizer, now):
        if "drift" in request.quantizer.needs:
            behind, heard = through_hearing(model, block, batch, names, device=device)
            originals.append(heard)
        else:
            behind = through(model, block, batch, device=device)
        before.append(behind)
    matrices = {name: matrix.weight for name, matrix in block_matrices(model, block).items()}
    solved, passage = 0.0, Passage(model, block, now, device=device)
    for group in block.groups:
        solved += _solve([matrices[name] for name in group], passage.heard(group[0]), request, device)
    solved += _experts(block, matrices, [] if block.experts is None else passage.routed(), request, device)
    originals.clear()
    now = passage.behind()
    count = len(layout.blocks)
    work = rehearsal.work * count
    rehearsal.start_counting()
    for stream in (before, now):
        mean_loss(model, layout, stream[:1], ids[: len(stream[0].hidden)], device=device)
    return work + rehearsal.work * len(now), solved * count


def _experts(
    block: BlockLayout, matrices: Mapping[str, Tensor], reached: list[Routed], request: Request, device: str
) -> float:
    """One expert that hears every token, for all of them: the most that it can hold."""
    if not reached:
        return 0.0
    expert = block.expert_layers[0]
    gate, up, down = (matrices[name] for name in expert.names)
    solved = _solve([gate, up], (batch.hidden.to(device) for batch in reached), request, device)
    inner = (torch.nn.functional.linear(batch.hidden.to(device), gate) for batch in reached)
    return (solved + _solve([down], inner, request, device)) * len(block.expert_layers)


def _solve(matrices: list[Tensor], heard_by_them: Iterable[Tensor], request: Request, device: str) -> float:
    """Tensors of one solve; its operations."""
    inputs = matrices[0].shape[1]
    has_drift = "drift" in request.quantizer.needs
    sums = torch.zeros(2 if has_drift else 1, inputs, inputs, device=device)
    for each in heard_by_them:
        found = each.float()
        sums[0].addmm_(found.T, found)
        del each, found
    means = sums / 2
    weight = torch.cat(matrices).float()
    if request.quantizer.needs:
        factors = torch.empty(_FACTORS, inputs, inputs, dtype=torch.float64, device=device)
        del factors
    rounded = quantize(weight, request.quantizer.grid)
    del rounded, means
    return (3.0 * inputs**3 + weight.numel() * inputs) * 2 if request.quantizer.needs else 0.0


def _write(model: Any, request: Request) -> None:
    """A shard at a time: tensors in the dtype of the file, or as codes."""
    stored = {name: DTYPES[one.dtype] for name, one in request.folder.tensors.items() if one.dtype in DTYPES}
    matrices = decoder_matrices(model)
    rounded = {matrix.parameter for matrix in matrices.values()}
    is_dense = request.writer.quant_method == ""
    parts = [(matrix.parameter, matrix.weight) for matrix in matrices.values()]
    parts += [(name, parameter.detach()) for name, parameter in model.named_parameters() if name not in rounded]
    shard: list[Tensor] = []
    for name, tensor in parts:
        if name in rounded:  # codes, and what they become before they are stored: values, or whole numbers to pack
            codes = torch.empty(tensor.numel(), dtype=torch.int16)
            becoming = codes.float() if is_dense else codes.long()
            del codes, becoming
        if name in rounded and not is_dense:
            bits = getattr(request.quantizer.grid, "bits", 4)
            shard.append(torch.empty(-(-tensor.numel() * bits // 8), dtype=torch.uint8))
        else:
            dtype = getattr(torch, stored.get(name, request.folder.dtype))
            shard.append(tensor.cpu().to(dtype, copy=name in rounded))
            _ = torch.isfinite(shard[-1]).all()
        if sum(tensor.nbytes for tensor in shard) > SHARD_BYTES:
            shard.clear()
