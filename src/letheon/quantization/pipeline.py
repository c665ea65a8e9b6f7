"""Quantize a model folder: every linear of the decoder through a solver, embeddings, norms and head kept.

A solver that needs calibration text goes through the model block by block (`block_walk`); one that needs none takes the
same blocks as they stand. Either way each block is written down when it is done, and the format writes the folder from
these files.

Source: this project.  Checked against: each layer by hand; a folder that transformers loads; all architectures known;
killed after each block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letheon.blueprint import make_blueprint
from letheon.data.records import DataFile, read_records
from letheon.errors import BadInput, require
from letheon.lowbit.low_bit_pass import LowBitPass
from letheon.lowbit.matrices import decoder_matrices
from letheon.methods import build, build_draft, describe, name_of
from letheon.models import ModelFolder, load_tokenizer, pick_device
from letheon.quantization.basis import activation_grids, fitting_rotation
from letheon.quantization.making import make
from letheon.quantization.request import (
    Request,
    check_basis,
    check_layers,
    forgotten_in,
    other_than_trained,
    quantizable,
    trained_through,
    with_scales,
)
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder, made_by
from letheon.settings import draft
from letheon.training.prepare import collect, environment


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """Settings of `letheon quantize`."""

    model: Path
    """A Hugging Face causal language model folder, in full precision."""
    calibration_data: Path | None = None
    """Ordinary text for solvers that look at what layers hear (all but rtn): texts, or questions with answers."""
    out: Path | None = None
    """The run folder; null: the run that made the model, or runs/quantize."""
    method: Any = "rtn"
    """The solver: a method of kind quantizer."""
    rotation: Any = "none"
    """In which basis: a method of kind rotation."""
    act_bits: int | None = None
    """Bits of what linears are given, per token (asym); 16: they are left alone. null: what the model was trained
    through, or 16."""
    kv_bits: int | None = None
    """Bits of keys and values, per token and head (asym); 16: they are left alone. null: what the model was trained
    through, or 16."""
    format: Any = "compressed_tensors"
    """What is written: a method of kind format."""
    sequences: int = 128
    """How many sequences of calibration text are taken, at most."""
    sequence_length: int = 2048
    """Tokens of each; no more than the model's context window."""
    seed: int = 0
    """Of the draw of sequences."""
    allow_rtn_fallback: bool = False
    """Round a layer that cannot be solved to the nearest values, and say so, instead of stopping there."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our field -> the file's."""
    device: str = "auto"
    """auto, cpu, cuda."""


@dataclass(frozen=True)
class QuantizeResult:
    """Where the low-bit model is, and what was lost."""

    folder: Path
    layers: dict[str, float]
    """Layer -> ||W - Q(W)||^2 / ||W||^2."""
    outputs: dict[str, float] = field(default_factory=dict)
    """Layer -> the same of its outputs on the calibration text; empty without it, and without what an expert that
    heard nothing has lost."""
    loss_before: float | None = None
    """Mean next-token loss of the untouched model on the calibration text, nats."""
    loss_after: float | None = None
    """The same of the low-bit model."""
    divergence: float | None = None
    """Mean KL of its predictions from the untouched model's on that text, nats a token; 0 where nothing was lost."""
    fallen_back: list[str] = field(default_factory=list)
    """Layers that could not be solved and were rounded to the nearest values, as was allowed."""


def quantize(model: Path | str, *, progress: Progress | None = None, **settings: Any) -> QuantizeResult:
    """Round `model` to a low-bit grid and write the folder `N-quantize/` of a run.

    Args:
        model: a Hugging Face causal language model folder.
        progress: where lines for a person go; by default standard error.
        settings: the fields of `QuantizeSettings`, such as method={"name": "rtn", "bits": 4, "group": 32}.
    Raises:
        BadInput: with all faults of all inputs, before anything is loaded; an architecture that is not known.
        CannotFinish: a layer that cannot be solved, named; what was done before it is kept.
    """
    progress = progress or Progress()
    request = check_request({"model": model, **settings})
    kept: dict[str, Any] = {
        "method": describe(request.quantizer),
        "rotation": describe(request.rotation),
        "act_bits": 16 if request.grids is None else request.grids.inputs.bits,
        "kv_bits": 16 if request.grids is None else request.grids.keys.bits,
        "format": describe(request.writer),
    }
    if request.data is not None:
        wanted = request.wanted
        kept |= {
            "sequences": wanted.sequences,
            "sequence_length": request.length,
            "seed": wanted.seed,
            "columns": wanted.columns,
        }
    run = RunFolder.open(request.out, environment=environment(request.device))
    inputs = {"model": request.folder.path, "calibration_data": request.data.path if request.data else None}
    own = {
        "method_code": name_of(request.quantizer),
        "rotation_code": name_of(request.rotation),
        "format_code": name_of(request.writer),
    }
    inputs |= {name: Path(file) if file.endswith(".py") else None for name, file in own.items()}
    # What cannot be used is refused before the stage begins: a stage that has begun takes no other settings.
    calibration = request.calibration()
    for warning in request.warnings + (calibration.warnings if calibration else ()):
        progress.warn(warning)
    with run.stage("quantize", kept, inputs, "quantize") as stage:
        assert stage.folder is not None
        if not stage.is_done:
            for warning in request.warnings + (calibration.warnings if calibration else ()):
                stage.warn(warning)
            make(request, calibration, stage, progress)
        found = _result(stage.folder, stage.entry.notes)
        require(
            not found.fallen_back or request.wanted.allow_rtn_fallback,
            f"{stage.folder}: was made with --allow-rtn-fallback, and {len(found.fallen_back)} of its layers are "
            f"rounded to the nearest values ({', '.join(found.fallen_back[:3])}). Say so again, or give another --out",
        )
        return found


def _result(folder: Path, notes: Mapping[str, Any]) -> QuantizeResult:
    losses = notes.get("losses", {})
    return QuantizeResult(
        folder,
        dict(notes["layers"]),
        dict(notes.get("outputs", {})),
        losses.get("before"),
        losses.get("after"),
        losses.get("divergence"),
        list(notes.get("fallen_back", [])),
    )


def check_request(values: Mapping[str, Any]) -> Request:
    """Fill in the settings, build the methods, look at folder and text. Raises BadInput with all faults."""
    drafted = draft(QuantizeSettings, values, where="quantize")
    wanted = drafted.made
    found: dict[str, Any] = {}

    def model() -> ModelFolder | None:
        if "model" not in drafted.faulty:
            found["folder"] = quantizable(wanted.model)
            load_tokenizer(wanted.model)  # it is saved beside the weights, at the end
        return found.get("folder")

    def quantizer() -> Any:
        made = build_draft("quantizer", wanted.method, where="method")
        found["draft"] = made.made
        found["quantizer"] = made.checked()
        return found["quantizer"]

    def grids() -> None:
        trained = trained_through(found["folder"]) if "folder" in found else LowBitPass()
        own = trained.grids or activation_grids(16, 16)
        act_bits, kv_bits = wanted.act_bits, wanted.kv_bits
        found["bits"] = (
            (16 if own is None else own.inputs.bits) if act_bits is None else act_bits,
            (16 if own is None else own.keys.bits) if kv_bits is None else kv_bits,
        )
        found["grids"] = activation_grids(*found["bits"])

    def rotation() -> Any:
        grid, (act_bits, kv_bits) = getattr(found.get("quantizer"), "grid", None), found.get("bits", (16, 16))
        bits = getattr(grid, "bits", 16)
        found["rotation"] = fitting_rotation(wanted.rotation, bits=bits, act_bits=act_bits, kv_bits=kv_bits)
        return found["rotation"]

    def writer() -> Any:
        found["writer"] = build("format", wanted.format, where="format")
        return found["writer"]

    def layers() -> None:
        if {"folder", "quantizer", "writer"} <= set(found):
            found["quantizer"] = with_scales(found["quantizer"], wanted.method, found["writer"], found["folder"])
        if {"folder", "draft"} <= set(found):
            matrices = decoder_matrices(make_blueprint(found["folder"].path))
            found["widest"] = max(matrix.weight.shape[1] for matrix in matrices.values())
            check_layers(
                found["folder"],
                matrices,
                found.get("quantizer", found["draft"]),
                found.get("writer"),
                rotation=found.get("rotation"),
                grids=found.get("grids"),
            )

    def basis() -> None:
        if {"folder", "rotation"} <= set(found):
            check_basis(found["folder"], found["rotation"], found.get("grids"))

    def text() -> DataFile | None:
        if wanted.calibration_data is not None:
            return read_records(wanted.calibration_data, role="calibration", columns=wanted.columns)
        for kind, method in (("quantizer", found.get("draft")), ("rotation", found.get("rotation"))):
            if getattr(method, "needs", ()):
                raise BadInput(
                    f"{kind} {name_of(method)!r} looks at what the layers hear, so it needs calibration text. Give "
                    "ordinary text with --calibration text.jsonl"
                )
        return None

    def out() -> Path:
        made = None if wanted.out or "model" in drafted.faulty else made_by(wanted.model)
        return RunFolder.open(wanted.out or (made[0].path if made else Path("runs/quantize"))).path

    def numbers() -> None:
        require(wanted.sequences >= 1, f"sequences must be 1 or more, got {wanted.sequences}")
        require(wanted.sequence_length >= 2, f"sequence_length must be 2 or more, got {wanted.sequence_length}")
        require(wanted.seed >= 0, f"seed must be 0 or more, got {wanted.seed}")

    _, folder, _, _, turn, made_writer, device, _, _, data, run, _ = collect(
        drafted.checked, model, quantizer, grids, rotation, writer, lambda: pick_device(wanted.device), layers, basis,
        text, out, numbers,
    )  # fmt: skip
    forgotten = () if data is None else tuple(forgotten_in(data, wanted.model))
    return Request(
        wanted=wanted,
        folder=folder,
        quantizer=found["quantizer"],
        writer=made_writer,
        data=data,
        device=device,
        out=run,
        rotation=turn,
        grids=found["grids"],
        widest=found["widest"],
        warnings=(*other_than_trained(folder, found["quantizer"], found["grids"]), *forgotten),
    )
