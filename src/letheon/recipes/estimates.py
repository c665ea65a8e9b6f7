"""What a verb will need, before a weight is loaded: its own code, run on tensors without values.

Training and forgetting rehearse the real loop (terms, balance, smoother, scope, AdamW, looks) on the largest batches
that their data and seed really give.
Quantizing rehearses the real rounding. An audit is not rehearsed question by question: its models, a rounded copy of
their layers, its largest scoring batch and its largest generation batch are.

Source: this project.  Checked against: the measured peak of real runs, on several architectures and methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from letheon.data.batches import Batch, EpochOrder, by_length, collate
from letheon.data.encode import Encoder, Example
from letheon.data.records import Record
from letheon.methods import name_of
from letheon.models import ModelFolder, decoder_linears, load_tokenizer, working_dtype
from letheon.quantization.pipeline import round_layers
from letheon.recipes.rehearsal import Rehearsal, Work, seconds
from letheon.runs.progress import Progress
from letheon.training.gradients import Gradient, Gradients, MeanGradient, Parts
from letheon.training.loop import Look, Loop, OptimizerSettings, State, run_loop
from letheon.training.losses import Body, Outputs, TokenLoss
from letheon.training.memory import OTHER
from letheon.training.prepare import Opened, repeated_items
from letheon.training.scoring import BATCH_TOKENS
from letheon.training.train import TrainSettings, storage_dtypes
from letheon.unlearning import forget as forgetting
from letheon.unlearning.gate import Gate
from letheon.unlearning.objective import Provider, TermLoss, make_gradient
from letheon.unlearning.reference import IN_MEMORY_BYTES, LogitCache, LogProbCache

if TYPE_CHECKING:
    from letheon.audits import audit as auditing

STEPS_LOOKED_AT = 200
"""Steps whose batches are made in search of the largest."""
PARTS = ("weights", "gradients", "optimizer", "references", "activations")


@dataclass(frozen=True)
class Estimate:
    """Bytes at the highest moment by what they are, and seconds."""

    memory: dict[str, int]
    """PARTS -> bytes at the highest moment; "activations" holds all that is temporary. They add up to the peak."""
    seconds: float
    """Of everything: caches, steps, looks; rough."""
    steps: int | None = None
    """Steps at most."""
    step_seconds: float | None = None
    """Of a mean step, rough."""


@dataclass(frozen=True)
class Questions:
    """What is asked by forward passes alone, and how many times all of it is."""

    examples: Sequence[Example]
    times: float = 1.0
    is_hidden: bool = False
    """Only the last hidden states are wanted."""


# --- training and forgetting


@dataclass(frozen=True)
class Plan:
    """What is known of a training run before its model is made."""

    folder: ModelFolder
    device: str
    encoder: Encoder
    parts: Callable[[int], Parts]
    steps: int
    optimizer: OptimizerSettings
    rate: Any
    save_dtype: str
    before: Sequence[Questions] = ()
    """Asked of the original before the first step."""
    looks: Sequence[Questions] = ()
    """Asked between steps."""


@dataclass(frozen=True)
class Prepared:
    """What a verb hands to the loop, on fake tensors."""

    gradient: Gradient
    moving: dict[str, nn.Parameter]
    scope: Any = None
    scope_state: dict[str, Tensor] = field(default_factory=dict)


Prepare = Callable[[Opened, Rehearsal], Prepared]


def of_train(
    wanted: TrainSettings,
    folder: ModelFolder,
    records: Sequence[Record],
    examples: Sequence[Example],
    rate: Any,
    device: str,
) -> Estimate:
    """Of `letheon train`, from what its checks found."""
    encoder = _encoder(folder, wanted.template)
    chosen = [examples[item] for item in repeated_items(records, wanted.text_repeats)]
    order = EpochOrder(tuple(len(example.ids) for example in chosen), wanted.batch_size, wanted.seed)
    micro = wanted.micro_batch_size or wanted.batch_size

    def parts(step: int) -> Parts:
        items = order.items(step)
        chunks = [items[start : start + micro] for start in range(0, len(items), micro)]
        return {"data": [collate([chosen[i] for i in chunk], chunk, pad=encoder.pad).to(device) for chunk in chunks]}

    def prepare(opened: Opened, _: Rehearsal) -> Prepared:
        moving = dict(opened.model.named_parameters())
        return Prepared(MeanGradient(TokenLoss(opened.body), "data", list(moving.values()), opened.autocast), moving)

    steps = max(1, round(wanted.epochs * order.batches_per_epoch))
    return _rehearsed(Plan(folder, device, encoder, parts, steps, wanted.optimizer, rate, wanted.save_dtype), prepare)


def of_forget(request: forgetting.Request) -> Estimate:
    """Of `letheon forget`, from a checked request."""
    wanted, methods = request.wanted, request.methods
    encoder = _encoder(request.folder, wanted.template)
    retained = request.retain.records if request.retain else ()
    forget_examples = [
        request.examples["forget"][item] for item in repeated_items(request.forget.records, wanted.text_repeats)
    ]
    retain_examples = [request.examples["retain"][item] for item in repeated_items(retained, wanted.text_repeats)]
    examples = {"method": forget_examples, "retain_term": retain_examples}
    order = EpochOrder(tuple(len(example.ids) for example in forget_examples), wanted.batch_size, wanted.seed)
    steps = wanted.steps or max(1, round(wanted.epochs * order.batches_per_epoch))
    is_gated = getattr(methods["method"], "until", "none") != "none"

    def prepare(opened: Opened, rehearsal: Rehearsal) -> Prepared:
        def bound(name: str, gate: Gate | None = None) -> TermLoss:
            return TermLoss(
                methods[name], opened.body, _reference(methods[name], examples[name], opened, rehearsal), gate
            )

        moving: dict[str, nn.Parameter] = methods["scope"].select(opened.model)
        gradient = make_gradient(
            forget=bound("method", Gate(torch.zeros(len(forget_examples))) if is_gated else None),
            retain=bound("retain_term") if name_of(methods["retain_term"]) != "none" else None,
            balance=methods["balance"],
            smoother=methods["smooth"],
            parameters=list(moving.values()),
            pad=encoder.pad,
            autocast=opened.autocast,
        )
        return Prepared(gradient, moving, methods["scope"], methods["scope"].init(opened.model, moving))

    # Only the encoder and the device are looked at there.
    unopened = Opened(None, None, encoder, request.device, nullcontext)  # type: ignore[arg-type]
    plan = Plan(
        folder=request.folder,
        device=request.device,
        encoder=encoder,
        parts=forgetting._parts(wanted, order, forget_examples, retain_examples, unopened),
        steps=steps,
        optimizer=wanted.optimizer,
        rate=methods["rate"],
        save_dtype=wanted.save_dtype,
        before=_before(request, examples),
        looks=_looks(request, steps, unopened),
    )
    return _rehearsed(plan, prepare)


def _before(request: forgetting.Request, examples: Mapping[str, Sequence[Example]]) -> list[Questions]:
    """What the caches and the gate ask of the original."""
    needs = {name: {need for need in request.methods[name].needs if need.startswith("reference_")} for name in examples}
    asked = [Questions(examples[name], is_hidden="reference_logits" in needs[name]) for name in examples if needs[name]]
    return asked + ([Questions(strangers)] if (strangers := _strangers(request)) else [])


def _looks(request: forgetting.Request, steps: int, opened: Opened) -> list[Questions]:
    """What the stop rule asks between steps."""
    asked: list[Questions] = []
    stop = request.wanted.stop
    if stop.every:
        for data in (request.forget, request.retain):
            asked.append(Questions(forgetting._sample(data, stop.items, opened), steps / stop.every))
    return asked


def _strangers(request: forgetting.Request) -> list[Example]:
    """The gate's part of the holdout."""
    units = set(request.gate_units)
    if request.holdout is None or not units:
        return []
    pairs = zip(request.holdout.records, request.examples["holdout"], strict=True)
    return [example for record, example in pairs if record.unit in units]


def _reference(term: Any, examples: Sequence[Example], opened: Opened, rehearsal: Rehearsal) -> dict[str, Provider]:
    """Caches of the real classes and sizes, with nothing in them."""
    provided: dict[str, Provider] = {}
    held: list[Tensor] = []
    if "reference_log_probs" in term.needs:
        values = torch.zeros(len(examples), device=opened.device)
        provided["reference_log_probs"] = LogProbCache(values)
        held.append(values)
    if "reference_logits" in term.needs:
        head = opened.body.head
        starts = np.concatenate([[0], np.cumsum([len(example.answer_ids) for example in examples])]).astype(np.int64)
        shape = (int(starts[-1]), int(head.weight.shape[1]))
        weight = head.weight.detach().float().clone()
        bias = None if getattr(head, "bias", None) is None else head.bias.detach().float().clone()
        # An array of any shape that takes four bytes: what is read from it does not matter.
        hidden = np.broadcast_to(np.float32(0), shape)
        provided["reference_logits"] = LogitCache(hidden, starts, weight, bias, opened.body.soft_cap)
        held += [weight] if bias is None else [weight, bias]
        if shape[0] * shape[1] * 4 <= IN_MEMORY_BYTES:  # a larger one stands in a file
            held.append(torch.zeros(shape))
    rehearsal.bytes.label("references", held)
    rehearsal.kept += held
    return provided


def _rehearsed(plan: Plan, prepare: Prepare) -> Estimate:
    """The largest steps through the real loop, and what is asked around them."""
    largest, share = _largest_steps(plan)
    with Rehearsal(plan.device) as rehearsal:
        model = rehearsal.model(plan.folder)
        opened = Opened(model, Body(model), plan.encoder, plan.device, _autocast(plan.device))
        work = _asked(opened, rehearsal, plan.before)
        prepared = prepare(opened, rehearsal)
        rehearsal.bytes.label("references", prepared.scope_state.values())
        watched = _Watched(rehearsal, prepared, has_moments=plan.steps > 1)
        look = _Look(len(largest), lambda: _asked(opened, rehearsal, plan.looks))
        run_loop(
            Loop(
                model=model,
                moving=prepared.moving,
                gradient=watched.gradient,
                parts=largest.__getitem__,
                steps=len(largest),
                optimizer=plan.optimizer,
                rate=plan.rate,
                after_step=watched.after_step,
                memory=prepared.scope_state,
                look=look,
                checkpoints=watched,
                checkpoint_every_s=0.0,
                storage=storage_dtypes(plan.folder, prepared.moving),
            )
        )
        _save(model, plan.folder, plan.save_dtype)
    step = _seconds(watched.work * share, watched.rows, model, plan.device)
    around = _seconds(work + look.work, BATCH_TOKENS, model, plan.device)
    return Estimate(_by_part(rehearsal), around + step * plan.steps, plan.steps, step)


class _Watched:
    """Stands around the gradient and the scope and in place of the checkpoints, and says what tensors are."""

    def __init__(self, rehearsal: Rehearsal, prepared: Prepared, *, has_moments: bool) -> None:
        self.rehearsal = rehearsal
        self.prepared = prepared
        # From the second step on AdamW's moments are there; for the first one rehearsed these stand for them.
        moving = prepared.moving.values() if has_moments else ()
        self.moments = [torch.zeros_like(parameter) for parameter in moving for _ in ("exp_avg", "exp_avg_sq")]
        rehearsal.bytes.label("optimizer", self.moments)
        self.work = Work()
        """Of the last step."""
        self.rows = 0
        """Tokens of one of its forward passes."""

    def gradient(self, model: Any, parts: Parts) -> Gradients:
        """The gradient. A step's work counts from here."""
        self.rehearsal.start_counting()
        self.rows = max(sum(map(_tokens, joined)) for joined in zip(*parts.values(), strict=True))
        found = self.prepared.gradient(model, parts)
        self.rehearsal.bytes.label("gradients", found.tensors)
        self.moments.clear()
        return found

    def after_step(self, moving: dict[str, nn.Parameter]) -> None:
        """What the scope does; here the step ends."""
        if self.prepared.scope is not None:
            self.prepared.scope.after_step(moving, self.prepared.scope_state)
        self.work = self.rehearsal.work

    def save(self, step: int, tensors: Mapping[str, Tensor], state: State) -> None:
        """Name AdamW's moments; nothing is written."""
        moments = [tensor for name, tensor in tensors.items() if name.startswith("exp_avg")]
        self.rehearsal.bytes.label("optimizer", moments)

    def load(self) -> None:
        """Nothing was saved."""


class _Look:
    """Asks after the last step."""

    def __init__(self, every: int, ask: Callable[[], Work]) -> None:
        self.ask = ask
        self.every = every
        self.state: State = {}
        self.work = Work()

    def __call__(self, step: int, model: Any) -> Look:
        self.work = self.ask()
        return Look()


def _largest_steps(plan: Plan) -> tuple[list[Parts], float]:
    """The step with the most labels and the one with the most padded tokens; and how much of that a mean step is."""

    def tokens(parts: Parts) -> int:
        passes = zip(*parts.values(), strict=True)  # batches that are joined are as wide as the widest
        return max(sum(map(_rows, joined)) * max(map(_width, joined)) for joined in passes)

    def labels(parts: Parts) -> int:
        return max(sum(len(batch.label_ids) for batch in joined) for joined in zip(*parts.values(), strict=True))

    def padded(parts: Parts) -> int:
        return sum(_tokens(batch) for batches in parts.values() for batch in batches)

    steps = [plan.parts(step) for step in range(min(plan.steps, STEPS_LOOKED_AT))]
    longest = max(steps, key=tokens)
    share = sum(map(padded, steps)) / len(steps) / padded(longest)
    return _distinct(max(steps, key=labels), longest), share


def _rows(batch: Batch) -> int:
    return len(batch.ids)


def _width(batch: Batch) -> int:
    return int(batch.ids.shape[1])


def _autocast(device: str) -> Callable[[], AbstractContextManager[Any]]:
    dtype = working_dtype(device)
    return nullcontext if dtype is None else lambda: torch.autocast(device.split(":")[0], dtype=dtype)


@torch.no_grad()
def _asked(opened: Opened, rehearsal: Rehearsal, questions: Sequence[Questions]) -> Work:
    """The largest batches of `score_examples`, or of the pass that keeps hidden states; the work of all of them."""
    work = Work()
    for asked in questions:
        batches = by_length(asked.examples, pad=opened.encoder.pad, device=opened.device)
        labels = [len(batch.label_ids) for batch in batches]
        most = int(np.argmax(labels)) if batches else 0
        # The logits of one batch are there until those of the next have replaced them.
        vocabulary = 0 if asked.is_hidden or most == 0 else opened.body.head.weight.shape[0]
        held: Any = torch.empty(labels[most - 1] if vocabulary else 0, vocabulary, device=opened.device)
        for batch in _distinct(*batches[most : most + 1], *sorted(batches, key=_tokens)[-1:]):
            rehearsal.start_counting()
            with opened.autocast():
                held = opened.body.hidden(batch) if asked.is_hidden else Outputs(batch, opened.body.logits(batch))
                _ = asked.is_hidden or _scored(held)
            share = asked.times * sum(map(_tokens, batches)) / _tokens(batch)
        del held
        work += rehearsal.work * share if batches else Work()
    return work


def _scored(outputs: Outputs) -> Tensor:
    """What `score_examples` makes of a batch."""
    _ = (outputs.logits.argmax(-1) != outputs.batch.label_ids).float()
    return outputs.token_log_probs().double()


def _distinct(*values: Any) -> list[Any]:
    """In order, each once."""
    return [value for i, value in enumerate(values) if all(value is not other for other in values[:i])]


def _tokens(batch: Batch) -> int:
    return batch.ids.numel()


@torch.no_grad()
def _save(model: Any, folder: ModelFolder, save_dtype: str) -> None:
    """What `save_model` holds beside the model: all of it in the file's dtype, then two files read tensor by tensor."""
    parameters = dict(model.named_parameters())
    stored = storage_dtypes(folder, parameters)
    chosen = {name: stored[name] if save_dtype == "original" else getattr(torch, save_dtype) for name in parameters}
    converted = [parameter.to(chosen[name]) for name, parameter in parameters.items()]
    _ = [torch.isfinite(tensor).all() for tensor in converted]
    del converted
    for name, parameter in parameters.items():
        before, after = parameter.to(stored[name], copy=True), parameter.to(chosen[name], copy=True)
        has_moved = parameter != before.float()
        _ = has_moved & (after.float() != before.float())


# --- quantizing and auditing


def of_quantize(folder: ModelFolder, quantizer: Any, device: str) -> Estimate:
    """Of `letheon quantize`, from what its checks found."""
    with Rehearsal(device) as rehearsal:
        model = rehearsal.model(folder)
        linears = decoder_linears(model)
        rehearsal.start_counting()
        round_layers(linears.items(), quantizer, Progress(quiet=True))
        _save(model, folder, "original")
    rows = 1  # no token is looked at
    return Estimate(_by_part(rehearsal), _seconds(rehearsal.work, rows, model, device))


def of_audit(request: auditing.Request) -> Estimate:
    """Of `letheon audit`, from a checked request. What is kept from an earlier audit takes less."""
    from letheon.audits.asked import make_sets
    from letheon.audits.scorer import GENERATION_BATCH

    folder, protocol = request.folders["model"], request.protocol
    encoder = _encoder(folder, request.wanted.template)
    sets = make_sets(request.data, encoder=encoder, limits=dict(protocol.limits), only_units={})
    examples = [example for asked in sets.sets.values() for example in asked.examples]
    questions = [example for example in examples if example.labelled_from > 1] or examples
    has_reference = "reference" in request.folders
    rounds = len(protocol.conditions) * (2 if has_reference else 1) + 1
    longest = sorted(questions, key=lambda example: len(example.ids))[-GENERATION_BATCH:]
    answering = collate(longest, list(range(len(longest))), pad=encoder.pad).to(request.device)
    with Rehearsal(request.device) as rehearsal:
        subject = _opened(rehearsal, folder, encoder)  # stays till the end
        _rounded(subject.model)
        _answer(subject, answering)
        other = _opened(rehearsal, request.folders["reference" if has_reference else "original"], encoder)
        copies = _rounded(other.model) if has_reference else []
        work = _asked(other, rehearsal, [Questions(asked.examples, rounds) for asked in sets.sets.values()])
        _answer(other, answering)
        del copies
    return Estimate(_by_part(rehearsal), _seconds(work, BATCH_TOKENS, subject.model, request.device))


def _opened(rehearsal: Rehearsal, folder: ModelFolder, encoder: Encoder) -> Opened:
    model = rehearsal.model(folder)
    return Opened(model, Body(model), encoder, rehearsal.device, nullcontext)


@torch.no_grad()
def _rounded(model: Any) -> list[Tensor]:
    """A copy of every layer, as a quantized condition holds it for a moment."""
    return [weight.clone() for module in decoder_linears(model).values() for weight in module.parameters()]


@torch.no_grad()
def _answer(opened: Opened, batch: Batch) -> None:
    """The longest prompts and answers at once, with the cache that generation keeps."""
    opened.model(input_ids=batch.ids, attention_mask=batch.attention_mask, use_cache=True, logits_to_keep=1)


# --- shared


def _encoder(folder: ModelFolder, template: str) -> Encoder:
    return Encoder(load_tokenizer(folder.path), max_length=folder.window, template=template)


def _by_part(rehearsal: Rehearsal) -> dict[str, int]:
    found = rehearsal.bytes.at_peak()
    found["activations"] = found.pop(OTHER, 0)
    return {part: found.get(part, 0) for part in PARTS}


def _seconds(work: Work, rows: int, model: Any, device: str) -> float:
    width = model.get_input_embeddings().weight.shape[1]
    return seconds(work, rows=rows, width=int(width), device=device, dtype=working_dtype(device))
