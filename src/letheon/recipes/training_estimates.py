"""What `letheon train` and `letheon forget` will need: their real loop, rehearsed.

Terms, balance, smoother, scope, AdamW and looks run as they are, on the largest batches that the data and the seed
really give. What depends on values is assumed: see `rehearsal`.

Source: this project.  Checked against: the measured peak of real runs, on several architectures and methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from letheon.data.batches import Batch, EpochOrder, RandomOrder, batch_tokens_on, by_length, collate
from letheon.data.encode import Encoder, Example
from letheon.lowbit.architectures import block_layout, model_layout
from letheon.lowbit.low_bit_pass import Basis, LowBitPass
from letheon.lowbit.rotating import untie_head
from letheon.methods import name_of
from letheon.models import ModelFolder, as_it_is, working_dtype
from letheon.recipes.estimates import (
    Estimate,
    Questions,
    ask,
    by_part,
    make_encoder,
    open_rehearsed,
    questions,
    save,
    time_of,
)
from letheon.recipes.rehearsal import Rehearsal, Work
from letheon.training import train as training
from letheon.training.active import Active, Movers
from letheon.training.gradients import Gradient, Gradients, MeanGradient, MeanLoss, Parts
from letheon.training.loop import Look, Loop, State, run_loop
from letheon.training.losses import TokenLoss
from letheon.training.prepare import Opened, repeated_items
from letheon.training.stepping import MOMENTS, OptimizerSettings
from letheon.training.straight_through import trained_through
from letheon.training.train import storage_dtypes
from letheon.unlearning import forget as forgetting
from letheon.unlearning.attaching import attach, detach
from letheon.unlearning.binding import bind, chosen_layer
from letheon.unlearning.choosing import counts_of, make_step_gradient
from letheon.unlearning.gate import Gate
from letheon.unlearning.objective import Provider, TermLoss
from letheon.unlearning.reference import (
    IN_MEMORY_BYTES,
    HiddenCache,
    LogitCache,
    LogProbCache,
    first_rows,
    width_of,
)
from letheon.unlearning.saliency import in_turn

STEPS_LOOKED_AT = 200
"""Steps whose batches are made in search of the largest."""


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
    through: LowBitPass = field(default_factory=LowBitPass)
    """Every forward pass is this one."""
    rotation: Any = None
    """Of its basis."""
    scope: Any = None
    """What may add weights of its own."""
    seed: int = 0
    held_as: str = "float32"
    """How the model is held in memory, as `load_model` has it."""


@dataclass(frozen=True)
class Prepared:
    """What a verb hands to the loop, on fake tensors."""

    gradient: Gradient
    moving: dict[str, nn.Parameter]
    probe: MeanLoss | None = None
    scope: Any = None
    scope_state: dict[str, Tensor] = field(default_factory=dict)
    movers: Movers | None = None
    counts: Mapping[str, Tensor] = field(default_factory=dict)


def of_train(request: training.Request) -> Estimate:
    """Of `letheon train`, from what its checks found."""
    wanted, folder, device = request.wanted, request.folder, request.device
    encoder = make_encoder(folder, wanted.template)
    chosen = [request.examples[item] for item in repeated_items(request.records, wanted.text_repeats)]
    order = EpochOrder(tuple(len(example.ids) for example in chosen), wanted.batch_size, wanted.seed)
    chunked = _Chunks(wanted.micro_batch_size or wanted.batch_size, encoder.pad, device)

    def parts(step: int) -> Parts:
        return {"data": chunked(order.items(step), chosen)}

    def prepare(opened: Opened, _: Rehearsal) -> Prepared:
        moving = dict(opened.model.named_parameters())
        loss = TokenLoss(opened.body)
        gradient = MeanGradient(loss, "data", list(moving.values()), opened.autocast)
        return Prepared(gradient, moving, MeanLoss(loss, "data"))

    steps = max(1, round(wanted.epochs * order.batches_per_epoch))
    return _rehearsed(
        Plan(
            folder,
            device,
            encoder,
            parts,
            steps,
            wanted.optimizer_settings,
            request.rate,
            wanted.save_dtype,
            through=wanted.low_bit,
            rotation=request.rotation,
        ),
        prepare,
    )


@dataclass(frozen=True)
class _Chunks:
    """Micro-batches."""

    size: int
    pad: int
    device: str

    def __call__(self, items: Sequence[int], examples: Sequence[Example]) -> list[Batch]:
        chunks = [items[start : start + self.size] for start in range(0, len(items), self.size)]
        return [collate([examples[i] for i in chunk], chunk, pad=self.pad).to(self.device) for chunk in chunks]


def of_forget(request: forgetting.Request) -> Estimate:
    """Of `letheon forget`, from a checked request."""
    wanted, methods = request.wanted, request.methods
    encoder = make_encoder(request.folder, wanted.template)
    forget_examples = [
        request.examples["forget"][item] for item in repeated_items(request.forget.records, wanted.text_repeats)
    ]
    retain_examples = request.examples.get("retain", [])
    examples = {"method": forget_examples, "retain_term": retain_examples}
    order = EpochOrder(tuple(len(example.ids) for example in forget_examples), wanted.batch_size, wanted.seed)
    steps = wanted.steps or max(1, round(wanted.epochs * order.batches_per_epoch))
    is_gated = getattr(methods["method"], "until", "none") != "none"
    drawn = RandomOrder(len(retain_examples), wanted.batch_size, wanted.seed + 1)
    chunked = _Chunks(wanted.micro_batch_size or wanted.batch_size, encoder.pad, request.device)

    def parts(step: int) -> Parts:
        items = order.items(step)
        made = {"forget": chunked(items, forget_examples)}
        if retain_examples:
            is_drawn = wanted.pairing == "random"
            partners = drawn.items(step) if is_drawn else [item % len(retain_examples) for item in items]
            made["retain"] = chunked(partners[: len(items)], retain_examples)
        return made

    longest = by_length(forget_examples, pad=encoder.pad, device=request.device)[-1:]

    def prepare(opened: Opened, rehearsal: Rehearsal) -> Prepared:
        def bound(name: str, others: Sequence[Example] = (), gate: Gate | None = None) -> TermLoss:
            reference = _reference(methods[name], examples[name], opened, rehearsal)
            layer = chosen_layer(methods[name], opened, beside=methods["method"])
            return bind(methods[name], opened, reference, others=others, layer=layer, seed=wanted.seed, gate=gate)

        moving: dict[str, nn.Parameter] = methods["scope"].select(opened.model)
        likely = getattr(methods["scope"], "likely", None)
        active: dict[str, Active] = {}
        gate = Gate(torch.zeros(len(forget_examples), device=opened.device)) if is_gated else None
        forget_term = bound("method", request.others, gate)
        retain_term = bound("retain_term") if name_of(methods["retain_term"]) != "none" else None
        is_refreshed = getattr(methods["scope"], "is_refreshed", False)
        if likely is not None and not is_refreshed:
            # The choice looks at gradients of everything, some after others.
            for _ in in_turn(forget_term, opened.model, moving, longest, opened.autocast):
                pass
            active = likely(moving)
        movers = Movers(moving, active, keeps_dtype=wanted.master_dtype == "param")
        rehearsal.bytes.label("weights", movers)
        smoother_state = methods["smooth"].init(movers.of, wanted.seed)
        gradient = make_step_gradient(
            movers=movers,
            forget=forget_term,
            retain=retain_term,
            balance=methods["balance"],
            smoother=methods["smooth"],
            smoother_state=smoother_state,
            pad=encoder.pad,
            autocast=opened.autocast,
            choose=(lambda _: methods["scope"].likely(moving)) if is_refreshed else None,
        )
        scope_state = methods["scope"].init(opened.model, moving)
        state = {**scope_state, **smoother_state}
        probe = None if retain_term is None else MeanLoss(retain_term, "retain")
        counts = counts_of(methods["scope"], scope_state)
        return Prepared(gradient, moving, probe, methods["scope"], state, movers, counts)

    plan = Plan(
        folder=request.folder,
        device=request.device,
        encoder=encoder,
        parts=parts,
        steps=steps,
        optimizer=wanted.optimizer_settings,
        rate=methods["rate"],
        save_dtype=wanted.save_dtype,
        before=_before(request, examples, encoder),
        looks=_looks(request, steps, encoder),
        through=wanted.low_bit,
        rotation=methods["rotation"],
        scope=methods["scope"],
        seed=wanted.seed,
        held_as=request.held_as,
    )
    return _rehearsed(plan, prepare)


def _before(
    request: forgetting.Request, examples: Mapping[str, Sequence[Example]], encoder: Encoder
) -> list[Questions]:
    """What the caches and the gate ask of the original."""
    asked: list[Questions] = []
    for name, some in examples.items():
        needs = request.methods[name].needs
        if "reference_log_probs" in needs:
            asked.append(questions(some, encoder, request.device))
        if "reference_other_answer" in needs:
            asked.append(questions(request.others, encoder, request.device))
        if "reference_logits" in needs:
            asked.append(questions(some, encoder, request.device, is_hidden=True))
        if "reference_hidden" in needs:
            asked.append(questions(some, encoder, request.device, is_hidden=True))
    units = set(request.gate_units)
    if request.holdout is not None and units:
        pairs = zip(request.holdout.records, request.examples["holdout"], strict=True)
        strangers = [example for record, example in pairs if record.unit in units]
        asked.append(questions(strangers, encoder, request.device))
    return asked


def _looks(request: forgetting.Request, steps: int, encoder: Encoder) -> list[Questions]:
    """What the stop rule asks between steps: so many questions of each set."""
    stop = request.wanted.stop
    if stop.every == 0:
        return []
    asked: list[Questions] = []
    for data in (request.forget, request.retain):
        if data is not None:
            example_of = dict(zip((record.line for record in data.records), request.examples[data.role], strict=True))
            kept = [example_of[record.line] for record in forgetting.looked_at(data.questions, stop.items)]
            asked.append(questions(kept, encoder, request.device, times=steps / stop.every))
    return asked


def _reference(term: Any, examples: Sequence[Example], opened: Opened, rehearsal: Rehearsal) -> dict[str, Provider]:
    """Caches of the real classes and sizes, with nothing in them."""
    provided: dict[str, Provider] = {}
    held: list[Tensor] = []
    for need in ("reference_log_probs", "reference_other_answer"):
        if need in term.needs:
            values = torch.zeros(len(examples), device=opened.device)
            provided[need] = LogProbCache(values)
            held.append(values)
    if "reference_logits" in term.needs:
        head = opened.body.head
        hidden, starts = _states([len(example.answer_ids) for example in examples], int(head.weight.shape[1]), held)
        weight = head.weight.detach().float().clone()
        bias = None if getattr(head, "bias", None) is None else head.bias.detach().float().clone()
        provided["reference_logits"] = LogitCache(hidden, starts, weight, bias, opened.body.soft_cap)
        held += [weight] if bias is None else [weight, bias]
    if "reference_hidden" in term.needs:
        counts = [len(example.ids) for example in examples]
        provided["reference_hidden"] = HiddenCache(*_states(counts, width_of(opened.body), held))
    rehearsal.bytes.label("references", held)
    rehearsal.kept += held
    return provided


def _states(counts: Sequence[int], width: int, held: list[Tensor]) -> tuple[Any, Any]:
    """Hidden states and where each item's begin; what they would take up in memory is added to `held`."""
    starts = first_rows(counts)
    shape = (int(starts[-1]), width)
    if shape[0] * shape[1] * 4 <= IN_MEMORY_BYTES:  # larger ones stand in a file
        held.append(torch.zeros(shape))
    # An array of any shape that takes four bytes: what is read from it does not matter.
    return np.broadcast_to(np.float32(0), shape), starts


def _rehearsed(plan: Plan, prepare: Callable[[Opened, Rehearsal], Prepared]) -> Estimate:
    """The largest steps through the real loop, and what is asked around them."""
    largest, share = _largest_steps(plan)
    with Rehearsal(plan.device) as rehearsal:
        opened = open_rehearsed(rehearsal, plan.folder, plan.encoder, _autocast(plan.device), plan.held_as)
        model = opened.model
        blocks = None if plan.through.grids is None else tuple(block_layout(model))
        if getattr(plan.rotation, "residual", False):
            untie_head(model, model_layout(model))
        with rehearsal.adding_to(model):
            attach(plan.scope, model, seed=plan.seed)
        rehearsal.bytes.label("weights", model.parameters())
        with trained_through(model, plan.through, Basis(blocks=blocks)):
            work = ask(opened, rehearsal, plan.before)
            prepared = prepare(opened, rehearsal)
            rehearsal.bytes.label("references", prepared.scope_state.values())
            watched = _Watched(rehearsal, prepared, MOMENTS[plan.optimizer.name] if plan.steps > 1 else ())
            look = _Look(len(largest), lambda: ask(opened, rehearsal, plan.looks))
            run_loop(
                Loop(
                    model=model,
                    moving=prepared.moving,
                    gradient=watched.gradient,
                    parts=largest.__getitem__,
                    steps=len(largest),
                    optimizer=plan.optimizer,
                    rate=plan.rate,
                    probe=prepared.probe,
                    movers=prepared.movers,
                    counts=prepared.counts,
                    after_step=watched.after_step,
                    memory=prepared.scope_state,
                    look=look,
                    checkpoints=watched,
                    checkpoint_every_s=0.0,
                    storage=storage_dtypes(plan.folder, prepared.moving),
                )
            )
        _, exact = detach(plan.scope, model, original=plan.folder.path)
        held = prepared.movers.exact if prepared.movers is not None else as_it_is
        save(model, plan.folder, plan.save_dtype, lambda name, tensor: exact(name, held(name, tensor)))
    step = time_of(watched.work * share, watched.rows, model, plan.device)
    around = time_of(work + look.work, batch_tokens_on(plan.device), model, plan.device)
    return Estimate(by_part(rehearsal), around + step * plan.steps, plan.steps, step)


class _Watched:
    """Stands around the gradient and the scope and in place of the checkpoints, and says what tensors are."""

    def __init__(self, rehearsal: Rehearsal, prepared: Prepared, moments: Sequence[str]) -> None:
        self.rehearsal = rehearsal
        self.prepared = prepared
        # From the second step on the optimizer's moments are there; for the first one rehearsed these stand for them.
        movers = prepared.moving.values() if prepared.movers is None else prepared.movers
        self.moments = [torch.zeros_like(mover) for mover in movers for _ in moments]
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
        """Name the optimizer's moments; nothing is written."""
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
    """The steps with the most labels, the most of both, and the most padded tokens; how much of the last a mean one is.

    Labels cost a vocabulary each, tokens a width in every layer: which of the two rules depends on the model. Of the
    steps with micro-batches the one with the most tokens is there as well: it leaves gradients before its largest.
    """
    steps = [plan.parts(step) for step in range(min(plan.steps, STEPS_LOOKED_AT))]
    passes = [list(zip(*parts.values(), strict=True)) for parts in steps]
    labels = [max(map(_labels, joined)) for joined in passes]
    tokens = [max(map(_padded, joined)) for joined in passes]
    numbers = range(len(steps))
    longest = max(numbers, key=lambda step: (tokens[step], labels[step]))
    chosen = (
        longest,
        max(numbers, key=lambda step: (len(passes[step]) > 1, tokens[step], labels[step])),
        max(numbers, key=lambda step: labels[step] / max(labels) + tokens[step] / max(tokens)),
        max(numbers, key=lambda step: (labels[step], tokens[step])),
    )
    each_once = reversed(dict.fromkeys(chosen))
    sizes = [sum(_tokens(batch) for batches in parts.values() for batch in batches) for parts in steps]
    return [_largest_last(steps[step]) for step in each_once], sum(sizes) / len(sizes) / sizes[longest]


def _largest_last(parts: Parts) -> Parts:
    """The same step with its largest pass last: some step has one of that size after others have left gradients."""
    passes = sorted(zip(*parts.values(), strict=True), key=_padded)
    return dict(zip(parts, map(list, zip(*passes, strict=True)), strict=True))


def _labels(joined: Sequence[Batch]) -> int:
    """Labelled tokens of one forward pass."""
    return sum(len(batch.label_ids) for batch in joined)


def _padded(joined: Sequence[Batch]) -> int:
    """Tokens of one forward pass, with padding: batches that are joined are as wide as the widest."""
    return sum(map(_rows, joined)) * max(map(_width, joined))


def _rows(batch: Batch) -> int:
    return len(batch.ids)


def _width(batch: Batch) -> int:
    return int(batch.ids.shape[1])


def _tokens(batch: Batch) -> int:
    return batch.ids.numel()


def _autocast(device: str) -> Callable[[], AbstractContextManager[Any]]:
    dtype = working_dtype(device)
    return nullcontext if dtype is None else lambda: torch.autocast(device.split(":")[0], dtype=dtype)
