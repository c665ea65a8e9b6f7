"""Quantize a model folder: every linear of the decoder through a solver, embeddings, norms and head kept.

A solver that needs calibration text goes through the model block by block (`block_walk`); one that needs none takes the
same blocks as they stand. Either way each block is written down when it is done, and the format writes the folder from
these files.

Source: this project.  Checked against: each layer by hand; a folder that transformers loads; all architectures known;
killed after each block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from letheon.blueprint import make_blueprint
from letheon.data.overlap import overlap
from letheon.data.records import DataFile, read_records
from letheon.errors import BadInput, gathering, require
from letheon.lowbit.architectures import model_layout
from letheon.lowbit.matrices import Matrix, decoder_matrices
from letheon.methods import build, build_draft, describe, name_of
from letheon.models import (
    ModelFolder,
    check_quantizable,
    inspect_model,
    load_model,
    load_tokenizer,
    pick_device,
)
from letheon.quantization.assembling import low_bit_model
from letheon.quantization.block_walk import Walk, Walked, no_experts, walk
from letheon.quantization.calibrate import Calibration, make_calibration
from letheon.quantization.kernels.columns import kernel_for
from letheon.quantization.limits import Plan
from letheon.quantization.plain_rounding import round_plainly
from letheon.runs.folder import replacing_folder, sha256_file
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder, Stage, StageRecord, made_by
from letheon.settings import draft
from letheon.training.finite import check_finite
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
    kept: dict[str, Any] = {"method": describe(request.quantizer), "format": describe(request.writer)}
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
    own = {"method_code": name_of(request.quantizer), "format_code": name_of(request.writer)}
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
            _run(request, calibration, stage, progress)
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
        list(notes.get("fallen_back", [])),
    )


@dataclass(frozen=True)
class Request:
    """What was asked for, checked; nothing is loaded yet."""

    wanted: QuantizeSettings
    folder: ModelFolder
    quantizer: Any
    writer: Any
    data: DataFile | None
    """Calibration text, where the solver looks at it."""
    device: str
    out: Path
    widest: int = 0
    """Most inputs of a layer."""
    warnings: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return min(self.wanted.sequence_length, self.folder.window)

    def calibration(self) -> Calibration | None:
        """The sequences. Raises BadInput where there is too little text."""
        if self.data is None:
            return None
        tokenizer, wanted = load_tokenizer(self.folder.path), self.wanted
        found = make_calibration(self.data, tokenizer, sequences=wanted.sequences, length=self.length, seed=wanted.seed)
        if found.tokens >= self.widest:
            return found
        few = (
            f"{found.tokens} tokens of calibration text are fewer than the {self.widest} inputs of the widest layer: "
            "what the text does not show is left to the damping. Give more text"
        )
        return Calibration(found.ids, (*found.warnings, few))


def check_request(values: Mapping[str, Any]) -> Request:
    """Fill in the settings, build the methods, look at folder and text. Raises BadInput with all faults."""
    drafted = draft(QuantizeSettings, values, where="quantize")
    wanted = drafted.made
    found: dict[str, Any] = {}

    def quantizable() -> ModelFolder | None:
        if "model" not in drafted.faulty:
            found["folder"] = _quantizable(wanted.model)
            load_tokenizer(wanted.model)  # it is saved beside the weights, at the end
        return found.get("folder")

    def quantizer() -> Any:
        made = build_draft("quantizer", wanted.method, where="method")
        found["draft"] = made.made
        found["quantizer"] = made.checked()
        return found["quantizer"]

    def writer() -> Any:
        found["writer"] = build("format", wanted.format, where="format")
        return found["writer"]

    def check_layers() -> None:
        if {"folder", "quantizer", "writer"} <= set(found):
            found["quantizer"] = _with_scales(found["quantizer"], wanted.method, found["writer"], found["folder"])
        if {"folder", "draft"} <= set(found):
            matrices = decoder_matrices(make_blueprint(found["folder"].path))
            found["widest"] = max(matrix.weight.shape[1] for matrix in matrices.values())
            _check_layers(found["folder"], matrices, found.get("quantizer", found["draft"]), found.get("writer"))

    def text() -> DataFile | None:
        if wanted.calibration_data is None:
            if getattr(found.get("draft"), "needs", ()):
                raise BadInput(
                    f"quantizer {name_of(found['draft'])!r} looks at what the layers hear, so it needs calibration "
                    "text. Give ordinary text with --calibration text.jsonl"
                )
            return None
        return read_records(wanted.calibration_data, role="calibration", columns=wanted.columns)

    def out() -> Path:
        made = None if wanted.out or "model" in drafted.faulty else made_by(wanted.model)
        return RunFolder.open(wanted.out or (made[0].path if made else Path("runs/quantize"))).path

    def check_numbers() -> None:
        require(wanted.sequences >= 1, f"sequences must be 1 or more, got {wanted.sequences}")
        require(wanted.sequence_length >= 2, f"sequence_length must be 2 or more, got {wanted.sequence_length}")
        require(wanted.seed >= 0, f"seed must be 0 or more, got {wanted.seed}")

    _, folder, _, made_writer, device, _, data, run, _ = collect(
        drafted.checked, quantizable, quantizer, writer, lambda: pick_device(wanted.device), check_layers, text, out,
        check_numbers,
    )  # fmt: skip
    warnings = () if data is None else tuple(_forgotten_in(data, wanted.model))
    return Request(wanted, folder, found["quantizer"], made_writer, data, device, run, found["widest"], warnings)


def _with_scales(quantizer: Any, given: Any, writer: Any, folder: ModelFolder) -> Any:
    """The quantizer with scales as the file stores them, where nobody has said otherwise."""
    is_open = isinstance(given, str) or (isinstance(given, Mapping) and "scale_dtype" not in given)
    if (
        not is_open
        or not hasattr(writer, "scale_dtype")
        or "scale_dtype" not in {one.name for one in fields(quantizer)}
    ):
        return quantizer
    return replace(quantizer, scale_dtype=writer.scale_dtype(folder))


def _quantizable(path: Path) -> ModelFolder:
    folder = inspect_model(path)
    check_quantizable(folder)
    return folder


def _forgotten_in(data: DataFile, model: Path) -> list[str]:
    """What must be said where the text holds what the model was made to forget: it can come back by it.

    Every run of forget that the model went through is looked at, whatever was done to it since.
    """
    told: list[str] = []
    made = made_by(model)
    while made is not None:
        run, entry = made
        if entry.verb == "forget":
            told += _shared_with(data, run, entry)
        source = run.input_path(entry, "model")
        made = None if source is None else made_by(source)
    return told


def _shared_with(data: DataFile, run: RunFolder, entry: StageRecord) -> list[str]:
    given, forgotten = entry.inputs.get("forget_data"), run.input_path(entry, "forget_data")
    if given is None or forgotten is None or not forgotten.is_file() or sha256_file(forgotten) != given["sha256"]:
        return [
            f"whether the calibration text holds what {run.path / entry.label} forgot cannot be checked: its forget "
            f"set {forgotten} is not there any more as it was. Use text that nobody asked to forget"
        ]
    records = read_records(forgotten, role="forget", columns=entry.settings.get("columns", {}))
    shared = overlap(data, records)
    return [f"{shared.sentence}. Calibrating on what was forgotten can bring it back: use other text"] if shared else []


def _check_layers(folder: ModelFolder, matrices: Mapping[str, Matrix], quantizer: Any, writer: Any) -> None:
    """Refuse what does not divide or does not go into the file before a stage begins. No writer: None."""
    with gathering():  # what else is wrong with the grid is told already
        grid = getattr(quantizer, "grid", None)
    if grid is None:
        return
    shapes = {name: (matrix.weight.shape[0], matrix.weight.shape[1]) for name, matrix in matrices.items()}
    group = getattr(grid, "group", None)
    problems = _indivisible(shapes, group) if isinstance(group, int) and group >= 1 else []
    experts = frozenset(name for name, matrix in matrices.items() if matrix.is_expert)
    if experts and hasattr(quantizer, "prepare_block"):
        problems.append(no_experts(quantizer))
    if hasattr(writer, "check"):  # a format of one's own need not have limits
        plan = Plan(
            original=folder,
            shapes=shapes,
            grid=grid,
            transposed=frozenset(name for name, matrix in matrices.items() if matrix.is_turned),
            experts=experts,
            has_group_index=getattr(quantizer, "act_order", "") == "dynamic" and isinstance(group, int),
        )
        try:
            writer.check(plan)
        except BadInput as error:  # a group that does not divide is told once
            problems += [fault for fault in error.problems if not (problems and "a group of" in fault)]
    if problems:
        raise BadInput(problems)


def _indivisible(shapes: Mapping[str, tuple[int, int]], group: int) -> list[str]:
    layers: dict[int, list[str]] = {}
    for name, (_, inputs) in shapes.items():
        layers.setdefault(inputs, []).append(name)
    return [
        f"a group of {group} does not divide the {inputs} inputs of layer {names[0]}"
        + (f" and {len(names) - 1} others" if len(names) > 1 else "")
        + f". Use a divisor of {inputs}, or group row"
        for inputs, names in layers.items()
        if inputs % group
    ]


def _run(request: Request, calibration: Calibration | None, stage: Stage, progress: Progress) -> None:
    quantizer, writer = request.quantizer, request.writer
    is_small = request.device == "cpu"
    model = load_model(request.folder.path, dtype="float32" if is_small else "stored")
    check_finite(model, request.folder)
    layout = model_layout(model)
    solved_by = "" if calibration is None else f", {calibration.tokens} tokens of text, {kernel_for(request.device)}"
    progress.say(f"quantize: {sum(len(b.layers) for b in layout.blocks)} layers, {name_of(quantizer)}{solved_by}")
    progress.start()
    keep = stage.work / "blocks"
    stored = getattr(torch, writer.loads_as(request.folder)) if hasattr(writer, "loads_as") else None
    if calibration is None:
        found = round_plainly(model, layout, quantizer, keep, device=request.device, progress=progress.step)
    else:
        found = walk(
            Walk(
                model,
                layout,
                quantizer,
                calibration.ids,
                keep,
                device=request.device,
                stored=stored,
                may_fall_back=request.wanted.allow_rtn_fallback,
                progress=progress.step,
            )
        )
    _say(request, found, calibration is not None, stage, progress)
    target = stage.folder
    assert target is not None
    made = low_bit_model(model, found.files, original=request.folder, card=_card(request, found), config={})
    with replacing_folder(target) as temporary:
        writer.write(made, temporary)


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
        stage.note("losses", {"before": found.loss_before, "after": found.loss_after})
        progress.say(f"quantize: relative squared error of the outputs {_spread(outputs)}")
        progress.say(f"quantize: loss on the text {found.loss_before:.4f} -> {found.loss_after:.4f} nats a token")


def _spread(losses: Mapping[str, float]) -> str:
    worst = max(losses, key=lambda name: losses[name])
    return f"{sum(losses.values()) / len(losses):.2e} on average, {losses[worst]:.2e} in {worst}"


def _card(request: Request, found: Walked) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in describe(request.quantizer).items() if name != "name")
    how = f"{name_of(request.quantizer)} ({settings}), written as {name_of(request.writer)}"
    fallen = (
        f"\n\n{len(found.fallen_back)} layers could not be solved and were rounded to the nearest values: "
        f"{', '.join(found.fallen_back)}.\n"
        if found.fallen_back
        else "\n"
    )
    return f"---\nlibrary_name: transformers\n---\nQuantized with letheon: {how}.{fallen}"
