"""Fine-tune a model folder on records: the tiny world's models, a retrained reference, anybody's base model.

With `without`, the records of a forget set are left out, and everything else (seed, passes, schedule) stays as it was:
the model that never knew.

Source: this project.  Checked against: the loop's own tests; a reference that has seen no forget record.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from letheon.data.batches import EpochOrder
from letheon.data.encode import Encoder, Example, cut_sentence
from letheon.data.records import DataFile, Record, read_records
from letheon.errors import BadInput, require
from letheon.lowbit.low_bit_pass import LowBitPass, pass_named, rotation_for
from letheon.methods import build, describe
from letheon.models import ModelFolder, inspect_model, load_tokenizer
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder, Stage
from letheon.settings import draft
from letheon.training.gradients import MeanGradient, MeanLoss, Parts
from letheon.training.loop import Loop
from letheon.training.losses import TokenLoss
from letheon.training.prepare import (
    MetricsFile,
    StageCheckpoints,
    collect,
    environment,
    micro_batches,
    open_for_training,
    repeated_items,
    save_stage,
)
from letheon.training.refreshed_basis import run_through
from letheon.training.rotated_basis import (
    check_alone,
    check_basis,
    enter_basis,
    leave,
    sampled,
    start_of,
    turn_start,
)
from letheon.training.sharding import Processes, own_device, several_processes
from letheon.training.stepping import OptimizerSettings


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of `letheon train`. Paths are inputs; everything else decides the result."""

    model: Path
    """A Hugging Face causal language model folder."""
    data: Path
    """JSON lines to learn."""
    without: Path | None = None
    """Leave out every record that stands in this file, and every record of its units."""
    out: Path = Path("runs/train")
    """The run folder."""
    epochs: float = 3.0
    """Passes over the data, > 0."""
    batch_size: int = 32
    """Records a step."""
    micro_batch_size: int | None = None
    """Records a forward pass; null: the whole batch. Does not change the result."""
    text_repeats: int = 1
    """How often a running text counts in a pass, >= 1."""
    learning_rate: float = 2e-5
    """Base rate of the optimizer."""
    rate: Any = "linear"
    """Schedule: a method of kind `rate`."""
    through: str | None = None
    """Every forward pass sees the weights rounded to this grid (int4, int4/128, int8, fp4, nf4), or weights,
    activations, keys and values (w4a4kv4), so that the low-bit model is the one that learns; gradients pass straight
    through. What is saved is not rounded. null: no rounding."""
    rotation: Any = "none"
    """The basis of a pass that rounds activations, chosen before the first step: a method of kind rotation. Keys are
    rotated (R3) only with keys: true, since no file that ships can say it."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd: along the gradient itself, without momentum."""
    betas: tuple[float, ...] = (0.9, 0.999)
    """AdamW's decay rates."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip: float | None = 1.0
    """Largest global gradient norm; null: none."""
    master_dtype: Literal["float32", "param"] = "float32"
    """See `OptimizerSettings`."""
    seed: int = 0
    """Order of the data."""
    template: str = "auto"
    """auto, plain, chat, or a text with {prompt}."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our field -> the file's."""
    device: str = "auto"
    """auto, cpu, cuda."""
    save_dtype: Literal["original", "float32", "bfloat16", "float16"] = "original"
    """original, float32, bfloat16, float16."""
    checkpoint_every_s: float = 60.0
    """Seconds between checkpoints."""
    allow_changed_machine: bool = False
    """Continue a stopped run with other threads or versions."""

    def __post_init__(self) -> None:
        require(self.epochs > 0, f"epochs must be > 0, got {self.epochs}")
        require(self.batch_size > 0, f"batch_size must be > 0, got {self.batch_size}")
        require(self.text_repeats >= 1, f"text_repeats must be >= 1, got {self.text_repeats}")
        require(
            self.micro_batch_size is None or self.micro_batch_size > 0,
            f"micro_batch_size must be > 0, got {self.micro_batch_size}",
        )
        _ = self.optimizer_settings, self.low_bit  # their rules, before anything is loaded

    @property
    def optimizer_settings(self) -> OptimizerSettings:
        """What the loop is told about the optimizer."""
        return OptimizerSettings(
            name=self.optimizer,
            learning_rate=self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
            clip=self.clip,
            master_dtype=self.master_dtype,
        )

    @property
    def low_bit(self) -> LowBitPass:
        """What `through` stands for."""
        return pass_named(self.through)


@dataclass(frozen=True)
class TrainResult:
    """Where the model is, and how its training ended."""

    folder: Path
    steps: int
    notes: dict[str, Any]


@dataclass(frozen=True)
class Request:
    """A checked request: everything that is needed, nothing loaded yet."""

    wanted: TrainSettings
    folder: ModelFolder
    records: list[Record]
    """What is learned."""
    examples: list[Example]
    """Their tokens, record by record."""
    rate: Any
    rotation: Any
    device: str
    warnings: tuple[str, ...]


def train(model: Path | str, *, progress: Progress | None = None, **settings: Any) -> TrainResult:
    """Fine-tune `model` on `data=` and write a run folder with the result in `N-train/`.

    Args:
        model: a Hugging Face causal language model folder.
        progress: where lines for a person go; by default standard error.
        settings: the fields of `TrainSettings`.
    Raises:
        BadInput: with all faults of all inputs.  CannotFinish: NaN, disk.

    >>> import letheon
    >>> letheon.train("no/such/folder", data="d.jsonl")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    letheon.errors.BadInput: 2 faults:
    - MODEL no/such/folder: no such folder. Give a Hugging Face model folder (config.json, *.safetensors)
    - data set d.jsonl: no such file. Give the path of a JSON-lines file
    """
    with several_processes() as processes:
        request = processes.agreed(lambda: check_request({"model": model, **settings}))
        return _train(request, processes, processes.voice(progress or Progress()))


def _train(request: Request, processes: Processes, progress: Progress) -> TrainResult:
    wanted = request.wanted
    inputs = {"model": wanted.model, "data": wanted.data, "without": wanted.without}
    processes.check_same(inputs)
    kept = {
        name: value
        for name, value in vars(wanted).items()
        if name not in (*inputs, "out", "device", "checkpoint_every_s", "allow_changed_machine")
    }

    def enter() -> AbstractContextManager[Stage]:
        run = RunFolder.open(
            wanted.out, environment=environment(request.device), allow_changed_machine=wanted.allow_changed_machine
        )
        methods = {"rate": describe(request.rate), "rotation": describe(request.rotation)}
        return run.stage("train", {**kept, **methods}, inputs, "train")

    with processes.entered(enter) as stage:
        assert stage.folder is not None
        if not stage.is_done:
            _run(request, stage, progress, processes)
        return TrainResult(stage.folder, int(stage.entry.notes["steps"]), dict(stage.entry.notes))


def check_request(values: Mapping[str, Any]) -> Request:
    """Fill in the settings, build the rate, read every file. Raises BadInput with all faults."""
    drafted = draft(TrainSettings, values, where="train")
    wanted = drafted.made

    def read(path: Path | None, role: str) -> DataFile | None:
        if path is None or "columns" in drafted.faulty:
            return None
        return read_records(path, role=role, columns=wanted.columns)

    def rotation() -> Any:
        return build("rotation", "none") if drafted.problems else rotation_for(wanted.rotation, wanted.low_bit)

    _, _, folder, data, left_out, rate, turn, device, _ = collect(
        drafted.checked,
        lambda: check_alone(wanted.through),
        lambda: None if "model" in drafted.faulty else inspect_model(wanted.model),
        lambda: read(wanted.data, "data"),
        lambda: read(wanted.without, "without"),
        lambda: build("rate", wanted.rate, where="rate"),
        rotation,
        lambda: own_device(wanted.device),
        lambda: RunFolder.open(wanted.out),
    )
    encoder, records, _ = collect(
        lambda: Encoder(load_tokenizer(folder.path), max_length=folder.window, template=wanted.template),
        lambda: _left(data, left_out),
        lambda: check_basis(folder, wanted.low_bit, turn, may_refresh=True),
    )
    examples = encoder.encode_all(records, role="data")
    hints = [hint for read_data in (data, left_out) if read_data is not None for hint in read_data.hints]
    warnings = (*hints, *(text for text in (cut_sentence(examples, "data"),) if text))
    return Request(wanted, folder, records, examples, rate, turn, device, warnings)


def _left(data: DataFile, without: DataFile | None) -> list[Record]:
    """The records that are learned. Raises BadInput when leaving out leaves everything, or nothing."""
    if without is None:
        return list(data.records)
    contents = {record.content for record in without.records}
    units = set() if without.unit_is_line else set(without.units)
    left = [record for record in data.records if record.content not in contents and record.unit not in units]
    if len(left) == len(data.records):
        raise BadInput(
            f"no record of {without.path} stands in {data.path}: leaving it out would change nothing. "
            "Give the file it was cut from"
        )
    if not left:
        raise BadInput(f"every record of {data.path} stands in {without.path}: nothing is left to learn")
    return left


def _run(request: Request, stage: Stage, progress: Progress, processes: Processes) -> None:
    wanted, folder, records, encoded = request.wanted, request.folder, request.records, request.examples
    for warning in request.warnings:
        progress.warn(warning)
        stage.warn(warning)
    opened = open_for_training(folder, device=request.device, template=wanted.template, processes=processes)
    examples = [encoded[item] for item in repeated_items(records, wanted.text_repeats)]
    order = EpochOrder(tuple(len(example.ids) for example in examples), wanted.batch_size, wanted.seed)
    steps = max(1, round(wanted.epochs * order.batches_per_epoch))
    micro = wanted.micro_batch_size or wanted.batch_size

    def parts(step: int) -> Parts:
        return {"data": micro_batches(opened, examples, order.items(step), micro)}

    began = enter_basis(
        opened, wanted.low_bit, request.rotation, encoded, seed=wanted.seed, stage=stage, progress=progress
    )
    moving = dict(opened.model.named_parameters())
    metrics = MetricsFile(stage.work / "metrics.jsonl")
    progress.say(f"train: {len(examples)} records, {steps} steps" + (", continued" if stage.is_resuming else ""))
    progress.start()
    loop = Loop(
        model=opened.model,
        moving=moving,
        gradient=MeanGradient(
            TokenLoss(opened.body), "data", list(moving.values()), opened.autocast, "loss", processes
        ),
        parts=parts,
        steps=steps,
        optimizer=wanted.optimizer_settings,
        rate=request.rate,
        probe=MeanLoss(TokenLoss(opened.body), "data", processes=processes),
        checkpoints=StageCheckpoints(stage, metrics),
        checkpoint_every_s=wanted.checkpoint_every_s,
        log=metrics.append,
        progress=progress.step,
        storage=storage_dtypes(folder, moving),
        processes=processes,
    )
    result, basis = run_through(
        loop,
        wanted.low_bit,
        request.rotation,
        began,
        sample=lambda: sampled(opened, encoded, seed=wanted.seed),
        stage=stage,
        progress=progress,
    )
    turn_start(opened, request.rotation, began, basis, stage)
    leave(opened, wanted.low_bit, request.rotation, basis)
    stage.note("steps", result.steps)
    stage.note("records", len(records))
    card = f"---\nlibrary_name: transformers\n---\nFine-tuned with letheon for {result.steps} steps.\n"
    save_stage(
        opened,
        stage,
        metrics,
        original=folder,
        save_dtype=wanted.save_dtype,
        card=card,
        progress=progress,
        start=start_of(stage),
    )


def storage_dtypes(folder: ModelFolder, moving: dict[str, Any]) -> dict[str, Any]:
    """The dtype that the file keeps each moving parameter in."""
    import torch

    from letheon.models import DTYPES

    majority = getattr(torch, folder.dtype)
    return {
        name: getattr(torch, DTYPES[folder.tensors[name].dtype]) if name in folder.tensors else majority
        for name in moving
    }
