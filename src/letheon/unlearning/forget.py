"""Make a model forget a set of records, and keep another.

Everything is checked before anything is loaded: the model folder, every line of every data set, the methods and their
settings, what the sets share. Then the original is asked once what it says (for terms that need it), the loop runs, and
the result is saved in the original's precision and read back.

Source: this project.  Checked against: the six published baselines on the embedded world; kill and continue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from letheon.data.batches import EpochOrder, RandomOrder
from letheon.data.encode import Encoder, Example, cut_sentence
from letheon.data.overlap import overlap, shared_units
from letheon.data.records import DataFile, Record, hashed_unit, read_records, split_units
from letheon.data.sampling import sample
from letheon.errors import BadInput, require
from letheon.lowbit.activations import ActivationGrids
from letheon.lowbit.low_bit_pass import LowBitPass, pass_named, rotation_for
from letheon.methods import build, describe, name_of
from letheon.models import DTYPES, ModelFolder, inspect_model, load_tokenizer
from letheon.runs.environment import process_count
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder, Stage
from letheon.settings import draft, plain
from letheon.training.active import Active, Movers
from letheon.training.gradients import MeanLoss, Parts
from letheon.training.loop import FittedRate, Loop, LoopResult, run_loop
from letheon.training.prepare import (
    MetricsFile,
    Opened,
    StageCheckpoints,
    collect,
    environment,
    micro_batches,
    open_for_training,
    repeated_items,
    save_stage,
    unit_note,
)
from letheon.training.rotated_basis import check_basis, enter_basis, leave, start_of
from letheon.training.scoring import score_examples
from letheon.training.sharding import Processes, own_device, several_processes
from letheon.training.stepping import OptimizerSettings
from letheon.training.straight_through import trained_through
from letheon.training.train import storage_dtypes
from letheon.unlearning.attaching import attach, check_scope, detach
from letheon.unlearning.binding import ask_original, bind, chosen_layer
from letheon.unlearning.choosing import choice_of, counts_of, make_step_gradient
from letheon.unlearning.compatibility import check_together, clip_for, warnings_of
from letheon.unlearning.gate import Gate, check_strangers, make_gate
from letheon.unlearning.layers import check_layers
from letheon.unlearning.objective import TermLoss
from letheon.unlearning.presets import preset
from letheon.unlearning.refusals import refused
from letheon.unlearning.saliency import active_units, moving_weights
from letheon.unlearning.shareable import check_shareable
from letheon.unlearning.stopping import StopLook, StopRule

INPUTS = ("model", "forget_data", "retain_data", "holdout_data")
NOT_RECORDED = (*INPUTS, "out", "device", "checkpoint_every_s", "allow_changed_machine", "preset")
METHODS = {
    "method": "forget_term",
    "retain_term": "retain_term",
    "balance": "balance",
    "smooth": "smoother",
    "scope": "scope",
    "rate": "rate",
    "rotation": "rotation",
}
"""Setting -> kind of method."""


@dataclass(frozen=True, kw_only=True)
class ForgetSettings:
    """Settings of `letheon forget`. Paths are inputs; everything else decides the result."""

    model: Path
    """A Hugging Face causal language model folder."""
    forget_data: Path
    """JSON lines to forget."""
    retain_data: Path | None = None
    """JSON lines to keep; needed by every retain term but none."""
    holdout_data: Path | None = None
    """JSON lines of the same kind that were never trained on; needed by until="holdout". Every second unit is used
    here; the audit uses the others."""
    out: Path = Path("runs/forget")
    """The run folder."""
    preset: str | None = None
    """A published method's settings (letheon methods --presets); what is given beside it wins."""
    method: Any = "npo"
    """What is pushed away: a method of kind forget_term."""
    retain_term: Any = "gdr"
    """What must not move: a method of kind retain_term."""
    balance: Any = "weighted"
    """How two gradients become one: a method of kind balance."""
    smooth: Any = "none"
    """How flat the forgotten region must be: a method of kind smoother."""
    scope: Any = "all"
    """Which weights may move: a method of kind scope."""
    rate: Any = "constant"
    """Schedule: a method of kind rate."""
    through: str | None = None
    """Every forward pass sees the weights rounded to this grid (int4, int4/128, int8, fp4, nf4), or weights,
    activations, keys and values (w4a4kv4), so that the low-bit model is the one that forgets; gradients pass straight
    through. What is saved is not rounded. null: no rounding."""
    rotation: Any = "none"
    """The basis of a pass that rounds activations, chosen before the first step: a method of kind rotation. Keys are
    rotated (R3) only with keys: true, since no file that ships can say it."""
    learning_rate: float = 1e-5
    """Base rate of the optimizer."""
    epochs: float = 5.0
    """Passes over the forget set; used when `steps` is null."""
    steps: int | None = None
    """Step limit; null: `epochs`."""
    batch_size: int = 32
    """Forget records a step; as many retain records go with them."""
    micro_batch_size: int | None = None
    """Records of each set a forward pass; null: the whole batch. Does not change the result."""
    text_repeats: int = 1
    """How often a running text of the forget set counts beside a question, >= 1."""
    pairing: Literal["random", "cycle"] = "random"
    """Retain records of a step: drawn at random, or item i with item i modulo the set's size (the MUSE code)."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd: along the gradient itself, without momentum."""
    betas: tuple[float, ...] = (0.9, 0.999)
    """AdamW's decay rates."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip: float | Literal["auto"] | None = "auto"
    """Largest global gradient norm; null: none; auto: 1.0, and none for a balance that fixes the norm itself."""
    master_dtype: Literal["float32", "param"] = "float32"
    """See `OptimizerSettings`."""
    weights: Literal["auto", "float32", "stored"] = "auto"
    """How the model is held in memory: float32, or a bfloat16 file as it is stored, with float32 copies of what moves
    alone. auto: as stored on a GPU where most weights never move or master_dtype is param, else float32; float32 too in
    several processes, which refuse "stored"."""
    stop: StopRule = field(default_factory=StopRule)
    """When to stop before the limit."""
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
        require(self.batch_size > 0, f"batch_size must be > 0, got {self.batch_size}")
        require(self.epochs > 0, f"epochs must be > 0, got {self.epochs}")
        require(self.steps is None or self.steps > 0, f"steps must be > 0, got {self.steps}")
        require(self.text_repeats >= 1, f"text_repeats must be >= 1, got {self.text_repeats}")
        require(
            self.micro_batch_size is None or self.micro_batch_size > 0,
            f"micro_batch_size must be > 0, got {self.micro_batch_size}",
        )
        require(
            self.weights != "stored" or self.low_bit.grids is None,
            f"through {self.through!r} turns the weights into another basis and back, which takes float32. Say "
            "--weights float32",
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
            clip=None if self.clip == "auto" else self.clip,  # a checked request holds what auto came to
            master_dtype=self.master_dtype,
        )

    @property
    def low_bit(self) -> LowBitPass:
        """What `through` stands for."""
        return pass_named(self.through)


@dataclass(frozen=True)
class ForgetResult:
    """Where the model is, and why the run stopped."""

    folder: Path
    steps: int
    reason: str
    notes: dict[str, Any]


@dataclass(frozen=True)
class Request:
    """A checked request: everything that is needed, nothing loaded yet."""

    wanted: ForgetSettings
    folder: ModelFolder
    forget: DataFile
    retain: DataFile | None
    holdout: DataFile | None
    methods: dict[str, Any]
    device: str
    examples: dict[str, list[Example]]
    """The tokens of "forget" and "retain", record by record."""
    warnings: tuple[str, ...]
    others: tuple[Example, ...] = ()
    """The forget records with another answer each, where the method needs them; then none of them is a running text,
    and none is repeated."""

    @property
    def held_as(self) -> str:
        """How the model is held in memory, as `load_model` has it. Only files that are bfloat16 throughout are held as
        they are stored: what float16 cannot reach would be lost on the way, and so would digits of a float32 tensor.
        Nobody has to ask for it on a GPU where most weights never move, unless something between two stored weights is
        looked at: around a point (a smoother), or along a step (a fitted rate).
        """
        wanted, scope = self.wanted, self.methods["scope"]
        looks_between = isinstance(self.methods["rate"], FittedRate) or not (
            self.methods["smooth"].is_identity or getattr(scope, "is_factored", False)
        )
        is_small = getattr(scope, "is_narrow", False) or wanted.master_dtype == "param"
        is_usual = is_small and not looks_between and self.device.startswith("cuda") and process_count() == 1
        is_usual = is_usual and wanted.low_bit.grids is None  # its basis is left through the weights themselves
        is_stored = wanted.weights == "stored" or (wanted.weights == "auto" and is_usual)
        is_half = {tensor.dtype for tensor in self.folder.tensors.values()} & set(DTYPES) == {"BF16"}
        return "stored" if is_stored and is_half else "float32"

    @property
    def gate_units(self) -> list[str]:
        """The holdout units that this run looks at, and the audit must not."""
        if self.holdout is None or not _is_gated(getattr(self.methods["method"], "until", "none")):
            return []
        return split_units(self.holdout.units)[0]


def forget(model: Path | str, *, progress: Progress | None = None, **settings: Any) -> ForgetResult:
    """Unlearn `forget_data=` from `model`, keep `retain_data=`, and write a run folder with the result in `N-forget/`.

    Args:
        model: a Hugging Face causal language model folder.
        progress: where lines for a person go; by default standard error.
        settings: the fields of `ForgetSettings`, such as method="npo" or method={"name": "npo", "beta": 0.1}.
    Raises:
        BadInput: with all faults of all inputs, before anything is loaded.
        CannotFinish: NaN, a full disk, or a file that would not hold the change.

    >>> import letheon
    >>> letheon.forget("m", forget_data="f.jsonl", method="npoo")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    letheon.errors.BadInput: 4 faults:
    - 'npoo' is not a forget term. Did you mean 'npo'? Known: dpo, gradient_ascent, idk, npo, rmu, ... (letheon methods)
    ...
    """
    with several_processes() as processes:
        request = processes.agreed(lambda: check_request({"model": model, **settings}))
        return _forget(request, processes, processes.voice(progress or Progress()))


def _forget(request: Request, processes: Processes, progress: Progress) -> ForgetResult:
    for warning in request.warnings:
        progress.warn(warning)
    wanted = request.wanted
    inputs = {name: getattr(wanted, name) for name in INPUTS}
    own = {setting: name_of(method) for setting, method in request.methods.items()}
    inputs.update({f"{setting}_code": Path(file) for setting, file in own.items() if file.endswith(".py")})
    processes.check_same(inputs)
    kept = {name: plain(value) for name, value in vars(wanted).items() if name not in NOT_RECORDED}
    kept.update({name: describe(method) for name, method in request.methods.items()})

    def enter() -> AbstractContextManager[Stage]:
        run = RunFolder.open(
            wanted.out, environment=environment(request.device), allow_changed_machine=wanted.allow_changed_machine
        )
        return run.stage("forget", kept, inputs, "forget")

    with processes.entered(enter) as stage:
        assert stage.folder is not None
        if not stage.is_done:
            _run(request, stage, progress, processes)
        notes = dict(stage.entry.notes)
        return ForgetResult(stage.folder, int(notes["steps"]), str(notes["stopped"]), notes)


def check_request(values: dict[str, Any]) -> Request:
    """Fill in the settings, build the methods, read every file, compare the sets. Raises BadInput with all faults."""
    unknown_preset: list[str] = []
    try:
        values = {**(preset(values["preset"]) if values.get("preset") else {}), **values}
    except BadInput as error:
        unknown_preset = error.problems
    drafted = draft(ForgetSettings, values, where="forget")
    wanted = drafted.made
    built: dict[str, Any] = {}
    files: dict[str, DataFile] = {}

    def make(setting: str, kind: str) -> None:
        given = getattr(wanted, setting)
        if kind == "rotation" and "through" not in drafted.faulty:
            built[setting] = rotation_for(given, _pass_or_none(wanted.through))
        else:
            built[setting] = build(kind, given, where=setting)

    def read(path: Path | None, role: str) -> DataFile | None:
        if path is not None and "columns" not in drafted.faulty:
            files[role] = read_records(path, role=role, columns=wanted.columns)
        return files.get(role)

    def check_pair() -> None:
        name = _name(wanted.retain_term)
        if wanted.retain_data is None and name != "none":
            raise BadInput(
                f"retain term {name!r} needs a retain set (--retain r.jsonl). "
                "To run without one, say --retain-term none"
            )

    def check_gate() -> None:
        given = wanted.method
        until = given.get("until") if isinstance(given, dict) else getattr(given, "until", "none")
        if _is_gated(until) and wanted.holdout_data is None:
            check_strangers([], [])

    def check_choices() -> None:
        check_together(
            built,
            has_stop_rule=wanted.stop.every > 0,
            has_step_limit=wanted.steps is not None,
            master_dtype=wanted.master_dtype,
            weights=wanted.weights,
            forget_set=files.get("forget"),
            retain=files.get("retain"),
        )

    def check_several() -> None:
        check_shareable(built, through=wanted.through, weights=wanted.weights)

    def check_settings() -> None:
        if problems := [*unknown_preset, *drafted.problems]:
            raise BadInput(problems)

    *_, folder, forget_set, retain, holdout, device, _, _, _, _ = collect(
        check_settings,
        *(lambda name=name, kind=kind: make(name, kind) for name, kind in METHODS.items()),
        check_several,
        lambda: None if "model" in drafted.faulty else inspect_model(wanted.model),
        lambda: read(wanted.forget_data, "forget"),
        lambda: read(wanted.retain_data, "retain"),
        lambda: read(wanted.holdout_data, "holdout"),
        lambda: own_device(wanted.device),
        check_pair,
        check_gate,
        check_choices,
        lambda: RunFolder.open(wanted.out),
    )
    warnings = warnings_of(built, asked_clip=wanted.clip, batch_size=wanted.batch_size)
    wanted = replace(wanted, clip=clip_for(built["balance"], wanted.clip))
    request = Request(wanted, folder, forget_set, retain, holdout, built, device, {}, tuple(warnings))
    return _with_examples(request)


def _with_examples(request: Request) -> Request:
    """The request with its tokens and its warnings. Raises BadInput: what cannot be encoded, what overlaps, no gate."""
    forget_set, holdout = request.forget, request.holdout
    sets = {data.role: data for data in (forget_set, request.retain, holdout) if data is not None}
    [encoder] = collect(
        lambda: Encoder(
            load_tokenizer(request.folder.path),
            max_length=request.folder.window,
            template=request.wanted.template,
        )
    )

    def check_holdout() -> None:
        if request.gate_units and holdout is not None:
            units = set(request.gate_units)
            check_strangers(forget_set.records, [record for record in holdout.records if record.unit in units])

    methods = request.methods
    *encoded, others, _, _, _, _, _ = collect(
        *(lambda data=data: encoder.encode_all(data.records, role=data.role) for data in sets.values()),
        lambda: refused(methods["method"], forget_set, encoder, seed=request.wanted.seed),
        lambda: check_layers((methods["method"], methods["retain_term"]), request.folder.depth),
        lambda: check_scope(methods["scope"], request.folder, is_rotated=name_of(methods["rotation"]) != "none"),
        lambda: check_basis(request.folder, request.wanted.low_bit, methods["rotation"]),
        lambda: _check_overlaps(forget_set, request.retain, holdout),
        check_holdout,
    )
    examples = dict(zip(sets, encoded, strict=True))
    warnings = [*request.warnings, *(hint for data in sets.values() for hint in data.hints)]
    warnings += [note for note in (unit_note(forget_set),) if note]
    warnings += [note for role, found in examples.items() if (note := cut_sentence(found, role))]
    if request.retain is None and getattr(methods["rotation"], "needs", None):
        warnings.append(
            f"no retain set, so rotation {name_of(methods['rotation'])} is chosen on what is to be forgotten. "
            "Give --retain r.jsonl to have it chosen on what stays"
        )
    if request.retain is not None and (shared := overlap(forget_set, request.retain)):
        warnings.append(f"{shared.sentence}. What is kept cannot be forgotten: take them out of one of the sets")
    if holdout is not None:
        warnings += [note for other in sets.values() if other is not holdout and (note := shared_units(holdout, other))]
    return replace(request, examples=examples, warnings=tuple(warnings), others=tuple(others))


def _check_overlaps(forget_set: DataFile, retain: DataFile | None, holdout: DataFile | None) -> None:
    """A holdout that overlaps with either of the others is refused."""
    if holdout is None:
        return
    found = [overlap(holdout, other) for other in (forget_set, retain) if other is not None]
    problems = [
        f"{shared.sentence}. A holdout must never have been trained on: take these records out of it"
        for shared in found
        if shared
    ]
    if problems:
        raise BadInput(problems)


def _pass_or_none(through: str | None) -> LowBitPass:
    """The pass; one that does not exist is told by the settings' own rules."""
    try:
        return pass_named(through)
    except BadInput:
        return LowBitPass(grids=ActivationGrids())


def _is_gated(until: Any) -> bool:
    """Whether a forget term's bound is measured on the holdout."""
    return bool(until == "holdout")


def _name(method: Any) -> str:
    """The name of a method in any of its spellings."""
    if isinstance(method, str):
        return method
    return str(method.get("name")) if isinstance(method, dict) else name_of(method)


def _run(request: Request, stage: Stage, progress: Progress, processes: Processes) -> None:
    wanted = request.wanted
    for warning in request.warnings:
        stage.warn(warning)
    opened = open_for_training(
        request.folder, device=request.device, template=wanted.template, dtype=request.held_as, processes=processes
    )
    rotation, kept = request.methods["rotation"], request.examples["retain" if request.retain else "forget"]
    basis = enter_basis(opened, wanted.low_bit, rotation, kept, seed=wanted.seed, stage=stage, progress=progress)
    attach(request.methods["scope"], opened.model, seed=wanted.seed)
    metrics = MetricsFile(stage.work / "metrics.jsonl")
    with trained_through(opened.model, wanted.low_bit, basis):
        result, movers = _unlearn(request, opened, stage, metrics, progress)
    beside, exact = detach(request.methods["scope"], opened.model, original=request.folder.path)
    leave(opened, wanted.low_bit, rotation, basis)
    stage.note("steps", result.steps)
    stage.note("stopped", result.reason)
    gate_units = [hashed_unit(unit) for unit in request.gate_units]
    stage.note("gate_units", gate_units)
    progress.say(f"forget: stopped after {result.steps} steps, {result.reason}")
    save_stage(
        opened,
        stage,
        metrics,
        original=request.folder,
        save_dtype=wanted.save_dtype,
        card=_card(request, result),
        gate_units=gate_units,
        progress=progress,
        beside=beside,
        exact=lambda name, tensor: exact(name, movers.exact(name, tensor)),
        start=start_of(stage),
    )


def _unlearn(
    request: Request, opened: Opened, stage: Stage, metrics: MetricsFile, progress: Progress
) -> tuple[LoopResult, Movers]:
    """Ask the original what the terms need, then take the steps. Also returns what was moved."""
    wanted = request.wanted
    items = repeated_items(request.forget.records, wanted.text_repeats)
    forget_records = [request.forget.records[item] for item in items]
    forget_examples = [request.examples["forget"][item] for item in items]
    retain_examples = list(request.examples["retain"]) if request.retain else []
    scope, smoother = request.methods["scope"], request.methods["smooth"]
    moving: dict[str, nn.Parameter] = scope.select(opened.model)
    gate = _gate(request, opened, forget_records)
    forget_term, retain_term = _terms(request, opened, forget_examples, retain_examples, gate, stage)
    active = active_units(scope, forget_term, opened, moving, forget_examples)
    if active:
        _check_same_units(stage, active)
        moving = {name: moving[name] for name in active}
        share = moving_weights(moving, active) / sum(weight.numel() for weight in opened.model.parameters())
        stage.note("active_share", share)
        progress.say(f"forget: {share:.1%} of the weights may move")
    movers = Movers(moving, active, keeps_dtype=wanted.master_dtype == "param")
    scope_state = scope.init(opened.model, moving)
    smoother_state: dict[str, Tensor] = smoother.init(movers.of, wanted.seed)
    order = EpochOrder(tuple(len(example.ids) for example in forget_examples), wanted.batch_size, wanted.seed)
    steps = _step_limit(wanted, order)

    def after_step(parameters: dict[str, nn.Parameter]) -> None:
        scope.after_step(parameters, scope_state)
        if hasattr(smoother, "after_step"):
            smoother.after_step(parameters, smoother_state)

    progress.say(
        f"forget: {len(request.forget.records)} records, at most {steps} steps"
        + (", continued" if stage.is_resuming else "")
    )
    progress.start()
    result = run_loop(
        Loop(
            model=opened.model,
            moving=moving,
            gradient=make_step_gradient(
                movers=movers,
                forget=forget_term,
                retain=retain_term,
                balance=request.methods["balance"],
                smoother=smoother,
                smoother_state=smoother_state,
                pad=opened.encoder.pad,
                autocast=opened.autocast,
                processes=opened.processes,
                choose=choice_of(scope, opened.model, moving),
            ),
            parts=_parts(wanted, order, forget_examples, retain_examples, opened),
            steps=steps,
            optimizer=wanted.optimizer_settings,
            rate=request.methods["rate"],
            # Outside of autocast: the bend of a loss over one step is far smaller than bfloat16 can tell.
            probe=None if retain_term is None else MeanLoss(retain_term, "retain", processes=opened.processes),
            movers=movers,
            counts=counts_of(scope, scope_state),
            after_step=after_step,
            memory={**scope_state, **{f"smooth/{name}": tensor for name, tensor in smoother_state.items()}},
            look=_look(request, opened),
            checkpoints=StageCheckpoints(stage, metrics),
            checkpoint_every_s=wanted.checkpoint_every_s,
            log=metrics.append,
            progress=progress.step,
            storage=storage_dtypes(request.folder, moving),
            processes=opened.processes,
        )
    )
    if hasattr(smoother, "finish"):
        smoother.finish(movers.of, smoother_state)
        movers.put_back()
    return result, movers


def _check_same_units(stage: Stage, active: Mapping[str, Active]) -> None:
    """The units are chosen again when a run is continued, and what was trained belongs to those of the first time."""
    digest = hashlib.sha256()
    for name, one in active.items():
        digest.update(name.encode() + one.index.cpu().numpy().tobytes())
    noted = stage.entry.notes.get("active_units_sha256")
    if noted is not None and noted != digest.hexdigest():
        raise BadInput(
            f"{stage.run}: the units that may move came out otherwise than when the run began, since another machine "
            "sums otherwise. Continue it where it was begun, or begin anew with another --out"
        )
    stage.note("active_units_sha256", digest.hexdigest())


def _step_limit(wanted: ForgetSettings, order: EpochOrder) -> int:
    return wanted.steps or max(1, round(wanted.epochs * order.batches_per_epoch))


def _gate(request: Request, opened: Opened, forget_records: Sequence[Record]) -> Gate | None:
    """The gate of the forget term, measured on its half of the holdout."""
    units = set(request.gate_units)
    strangers = [record for record in request.holdout.records if record.unit in units] if request.holdout else []
    with opened.autocast():
        return make_gate(
            getattr(request.methods["method"], "until", "none"),
            forget_records,
            strangers,
            body=opened.body,
            encoder=opened.encoder,
            device=opened.device,
        )


def _terms(
    request: Request,
    opened: Opened,
    forget_examples: Sequence[Example],
    retain_examples: Sequence[Example],
    gate: Gate | None,
    stage: Stage,
) -> tuple[TermLoss, TermLoss | None]:
    """Forget and retain term, bound to the model and to what the original says."""
    methods = request.methods

    def bound(
        name: str, examples: Sequence[Example], *, others: Sequence[Example] = (), gate: Gate | None = None
    ) -> TermLoss:
        term = methods[name]
        layer = chosen_layer(term, opened, beside=methods["method"])
        provided = ask_original(term, opened, examples, others=others, layer=layer, folder=stage.work)
        return bind(term, opened, provided, others=others, layer=layer, seed=request.wanted.seed, gate=gate)

    has_retain = name_of(methods["retain_term"]) != "none"
    forget_term = bound("method", forget_examples, others=request.others, gate=gate)
    return forget_term, bound("retain_term", retain_examples) if has_retain else None


def _parts(
    wanted: ForgetSettings,
    order: EpochOrder,
    forget_examples: Sequence[Example],
    retain_examples: Sequence[Example],
    opened: Opened,
) -> Callable[[int], Parts]:
    """Step -> forget micro-batches, and as many retain records beside them."""
    micro = wanted.micro_batch_size or wanted.batch_size
    drawn = RandomOrder(len(retain_examples), wanted.batch_size, wanted.seed + 1)

    def partners(step: int, items: list[int]) -> list[int]:
        if wanted.pairing == "cycle":
            return [item % len(retain_examples) for item in items]
        return drawn.items(step)[: len(items)]

    def parts(step: int) -> Parts:
        items = order.items(step)
        made = {"forget": micro_batches(opened, forget_examples, items, micro)}
        if retain_examples:
            made["retain"] = micro_batches(opened, retain_examples, partners(step, items), micro)
        return made

    return parts


def _look(request: Request, opened: Opened) -> StopLook | None:
    """The stop rule, asking a fixed sample of questions of both sets."""
    rule = request.wanted.stop
    if rule.every == 0:
        return None
    samples = [_sample(data, rule.items, opened) for data in (request.forget, request.retain)]

    def accuracy(examples: Sequence[Example]) -> float | None:
        if not examples:
            return None
        return float(score_examples(opened.body, examples, pad=opened.encoder.pad, device=opened.device).exact.mean())

    return StopLook(
        rule, lambda model: (accuracy(samples[0]), accuracy(samples[1])), original_retain=accuracy(samples[1])
    )


def _sample(data: DataFile | None, count: int, opened: Opened) -> list[Example]:
    if data is None or not data.questions:
        return []
    return opened.encoder.encode_all(looked_at(data.questions, count))


def looked_at(questions: Sequence[Record], count: int) -> list[Record]:
    """The questions that the stop rule asks."""
    units, names = [record.unit for record in questions], [str(record.line) for record in questions]
    return [questions[item] for item in sample(units, names, count)]


def _card(request: Request, result: LoopResult) -> str:
    """The model card: what was done, and what it does not mean."""
    methods = ", ".join(f"{setting} {name_of(method)}" for setting, method in request.methods.items())
    return (
        "---\nlibrary_name: transformers\n---\n"
        f"An unlearning run of letheon: {methods}; {result.steps} steps, stopped by {result.reason}.\n\n"
        "That a run ended does not show that anything is gone. `letheon audit` measures what is left.\n"
    )
