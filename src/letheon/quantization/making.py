"""From a checked request to a low-bit folder: rotate, round block by block, tell what was lost, write.

Source: this project.  Checked against: `letheon quantize` from request to folder, killed and continued.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from letheon.lowbit.architectures import ModelLayout, model_layout
from letheon.lowbit.low_bit_pass import THROUGH
from letheon.lowbit.online import MARKER
from letheon.lowbit.rotating import Rotated
from letheon.lowbit.site_errors import describe_choices
from letheon.methods import describe, name_of
from letheon.models import load_model
from letheon.quantization.assembling import low_bit_model
from letheon.quantization.basis import basis_of, left_out
from letheon.quantization.block_walk import Walk, Walked, walk
from letheon.quantization.calibrate import Calibration
from letheon.quantization.kernels.columns import kernel_for
from letheon.quantization.plain_rounding import round_plainly
from letheon.quantization.request import Request
from letheon.runs.folder import replacing_folder
from letheon.runs.progress import Progress
from letheon.runs.record import Stage
from letheon.training.finite import check_finite

_STAYS = (
    "a part of the rotation (R4) stays in the forward pass, and transformers opens the folder without it: the model "
    "then talks nonsense, unless the lines in its README.md are run"
)


def make(request: Request, calibration: Calibration | None, stage: Stage, progress: Progress) -> None:
    """Do what was asked for, into the stage's folder and its notes.

    Raises:
        BadInput: a damaged model, or what a rotation, a quantizer or a format refuses.
        CannotFinish: a layer that cannot be solved, named; the blocks before it are kept.
    """
    is_rotated = name_of(request.rotation) != "none" or THROUGH in request.folder.config
    # Rotated weights have to be exact until they are rounded to their grid, so they are not held in 16 bits.
    model = load_model(request.folder.path, dtype="float32" if request.device == "cpu" or is_rotated else "stored")
    check_finite(model, request.folder)
    writer = request.writer
    stored = getattr(torch, writer.loads_as(request.folder)) if hasattr(writer, "loads_as") else None
    ids = None if calibration is None else calibration.ids
    others = _others_as(request, stored)
    rounds_keys = request.grids is not None and not request.grids.keys.is_off
    rotated = basis_of(model, request.rotation, ids, stored=others, rounds_keys=rounds_keys)
    layout = model_layout(model)
    solved_by = "" if calibration is None else f", {calibration.tokens} tokens of text, {kernel_for(request.device)}"
    count = sum(len(block.layers) for block in layout.blocks)
    progress.say(f"quantize: {count} layers, {name_of(request.quantizer)}{solved_by}")
    if name_of(request.rotation) != "none":
        _say_rotated(request, rotated, stage, progress)
    if rotated.online.down:
        for tell in (stage.warn, progress.warn):
            tell(_STAYS)
    progress.start()
    found = _rounded(request, model, layout, ids, rotated, (stored, others), stage, progress)
    _say(request, found, calibration is not None, stage, progress)
    target = stage.folder
    assert target is not None
    made = low_bit_model(
        model,
        found.files,
        original=request.folder,
        card=_card(request, found),
        config=_config(model, rotated),
        grids=request.grids,
        online=rotated.online,
    )
    with replacing_folder(target) as temporary:
        writer.write(made, temporary)


def _rounded(
    request: Request,
    model: Any,
    layout: ModelLayout,
    ids: Int64[Tensor, "sequences length"] | None,
    rotated: Rotated,
    dtypes: tuple[torch.dtype | None, torch.dtype],
    stage: Stage,
    progress: Progress,
) -> Walked:
    keep = stage.work / "blocks"
    if ids is None:
        return round_plainly(model, layout, request.quantizer, keep, device=request.device, progress=progress.step)
    return walk(
        Walk(
            model,
            layout,
            request.quantizer,
            ids,
            keep,
            device=request.device,
            stored=dtypes[0],
            others=dtypes[1],
            grids=request.grids,
            online=rotated.online,
            may_fall_back=request.wanted.allow_rtn_fallback,
            progress=progress.step,
        )
    )


def _others_as(request: Request, stored: torch.dtype | None) -> torch.dtype:
    """What a loader of the file holds norms, embeddings and head as: the dtype of the file, or a narrower one."""
    in_file: torch.dtype = getattr(torch, request.folder.dtype)
    return stored if stored is not None and stored.itemsize < in_file.itemsize else in_file


def _config(model: Any, rotated: Rotated) -> dict[str, Any]:
    """What changes in config.json."""
    marker = getattr(model.config, MARKER, None)
    changed: dict[str, Any] = {} if marker is None else {MARKER: marker}
    return {**changed, "tie_word_embeddings": False} if rotated.is_untied else changed


def _say_rotated(request: Request, rotated: Rotated, stage: Stage, progress: Progress) -> None:
    """Which parts were left out, which sites were chosen, and what it costs; for a person and for the record."""
    if text := left_out(request.wanted.rotation, request.rotation):
        progress.say(f"quantize: {text}")
    if rotated.is_untied:
        progress.say("quantize: the head has weights of its own now, so the file grows by an embedding")
    if rotated.choices:
        turned = sum(choice.chosen != "identity" for choice in rotated.choices)
        progress.say(f"quantize: {turned} of {len(rotated.choices)} sites rotated, where that lowers the error")
        stage.note("rotation_choices", describe_choices(rotated.choices))


def _say(request: Request, found: Walked, has_text: bool, stage: Stage, progress: Progress) -> None:
    """What was lost, for a person and for the record."""
    weights = {name: lost["weights"] for name, lost in found.figures.items()}
    told = [*found.warnings]
    if not any(weights.values()) and getattr(request.quantizer, "bits", 0) != 16:
        told.append("no weight has changed: the model was on this grid already")
    if found.fallen_back:
        told.append(
            f"{len(found.fallen_back)} layers could not be solved and were rounded to the nearest values: "
            f"{', '.join(found.fallen_back)}"
        )
    for text in told:
        stage.warn(text)
        progress.warn(text)
    stage.note("layers", weights)
    stage.note("fallen_back", found.fallen_back)
    progress.say(f"quantize: relative squared error of the weights {_spread(weights)}")
    if has_text:
        outputs = {name: lost["outputs"] for name, lost in found.figures.items() if "outputs" in lost}
        stage.note("outputs", outputs)
        stage.note("blocks", found.blocks)
        losses = {"before": found.loss_before, "after": found.loss_after, "divergence": found.divergence}
        stage.note("losses", {**losses, "tokens": found.tokens_compared})
        progress.say(f"quantize: relative squared error of the outputs {_spread(outputs)}")
        lost = f"{found.loss_before:.4f} -> {found.loss_after:.4f} nats a token, KL {found.divergence:.4f}"
        progress.say(f"quantize: loss on {found.tokens_compared:,} tokens of the text {lost}")


def _spread(losses: Mapping[str, float]) -> str:
    worst = max(losses, key=lambda name: losses[name])
    return f"{sum(losses.values()) / len(losses):.2e} on average, {losses[worst]:.2e} in {worst}"


def _card(request: Request, found: Walked) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in describe(request.quantizer).items() if name != "name")
    how = f"{name_of(request.quantizer)} ({settings}), written as {name_of(request.writer)}"
    if name_of(request.rotation) != "none":
        turned = ", ".join(f"{name} {value}" for name, value in describe(request.rotation).items() if name != "name")
        how += f"; rotated first: {name_of(request.rotation)} ({turned})"
    if marker := request.folder.config.get(THROUGH):
        how += f"; in the basis that it was trained in through {marker['pass']}"
    if request.grids is not None:
        bits = request.grids.inputs.bits, request.grids.keys.bits
        how += f"; while it runs, inputs of linears on {bits[0]} bits, keys and values on {bits[1]} (16: left alone)"
    fallen = (
        f"\n\n{len(found.fallen_back)} layers could not be solved and were rounded to the nearest values: "
        f"{', '.join(found.fallen_back)}.\n"
        if found.fallen_back
        else "\n"
    )
    return f"---\nlibrary_name: transformers\n---\nQuantized with letheon: {how}.{fallen}"
