"""The only training loop: fine-tuning, unlearning and whatever comes later run in it. Dropout is off.

A step asks for a logical batch, gets gradients for it, clips, moves what may move, lets the scope put back what may
not, and writes a line to metrics.jsonl. Checkpoints come by time and hold everything that the next step depends on;
batches are a function of (seed, step), so a killed run continues with the same ones and ends with the same bits on the
same machine and number of threads.

Source: this project.
Checked against: stop-and-resume bit by bit, AdamW's closed form on one step, storage rounding, a fitted rate's probes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from letheon.errors import BadInput, CannotFinish
from letheon.training.active import Movers
from letheon.training.gradients import Gradient, Parts, clip, global_norm
from letheon.training.probing import losses_along
from letheon.training.sharding import ALONE, FirstLooks, GatheredCheckpoints, Processes
from letheon.training.stepping import MOMENTS, OptimizerSettings, make_optimizer, next_direction
from letheon.training.unit_stepping import UnitSteps

State = dict[str, Any]


@runtime_checkable
class Rate(Protocol):
    """A learning-rate schedule."""

    def factor(self, step: int, steps: int) -> float: ...


@runtime_checkable
class FittedRate(Rate, Protocol):
    """A rate that is found during the run. Its memory is plain data, and is saved with the checkpoints."""

    def init(self, learning_rate: float) -> State:
        """The memory at the start; its "rate" is the rate."""
        ...

    def is_due(self, step: int) -> bool: ...

    def refit(self, state: State, losses: Callable[[Sequence[float]], list[float]]) -> tuple[State, dict[str, Any]]:
        """The next memory, and figures for the log. `losses`: distances t along the coming step -> L(w - t d)."""
        ...


@runtime_checkable
class CheckpointStore(Protocol):
    """Where checkpoints go."""

    def save(self, step: int, tensors: Mapping[str, Tensor], state: State) -> None: ...

    def load(self) -> tuple[int, dict[str, Tensor], State] | None: ...


@dataclass(frozen=True)
class Look:
    """What a look at the model between steps found."""

    figures: dict[str, float] = field(default_factory=dict)
    stop: str = ""
    """Why to stop now; empty: go on."""


@runtime_checkable
class Looker(Protocol):
    """Looks at the model now and then; its memory is saved with the checkpoints."""

    every: int
    state: State

    def __call__(self, step: int, model: Any) -> Look: ...


@dataclass
class Loop:
    """Everything a run of steps needs. Made by a verb, run once."""

    model: Any
    moving: dict[str, nn.Parameter]
    """Name -> parameter, for all that may move."""
    gradient: Gradient
    parts: Callable[[int], Parts]
    """Step (0-based) -> logical batch."""
    steps: int
    optimizer: OptimizerSettings
    rate: Rate
    probe: Callable[[Any, Parts], Tensor] | None = None
    """(model, logical batch) -> the loss that a fitted rate keeps low, without a backward pass."""
    movers: Movers | None = None
    """What the optimizer moves, and gradients are shaped like; None: the parameters themselves."""
    counts: Mapping[str, Tensor] = field(default_factory=dict)
    """Name -> the steps that each unit has made, where gradients say which units a step moves; part of the memory."""
    after_step: Callable[[dict[str, nn.Parameter]], None] | None = None
    """Puts back what may not move (a scope)."""
    memory: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that parts of the run remember between steps (a scope, a gate): saved with the checkpoints, and restored
    in place."""
    look: Looker | None = None
    checkpoints: CheckpointStore | None = None
    checkpoint_every_s: float = 60.0
    until: int | None = None
    """A step at which to pause: a checkpoint is written, and the loop can be run again from there."""
    log: Callable[[dict[str, Any]], None] = lambda line: None
    progress: Callable[[int, int, str], None] = lambda step, steps, text: None
    storage: Mapping[str, torch.dtype] = field(default_factory=dict)
    """Storage dtype of each moving parameter, for master_dtype="param"."""
    processes: Processes = ALONE
    """Who takes the same steps with other shares of the weights and of the batches."""


@dataclass(frozen=True)
class LoopResult:
    """How a loop ended."""

    steps: int
    reason: str
    figures: dict[str, Any]
    is_paused: bool = False
    """There are steps left: `until` was reached first."""


def run_loop(loop: Loop) -> LoopResult:
    """Run the steps that are left, and leave the model in evaluation mode.

    Raises:
        BadInput: nothing may move.
        CannotFinish: a loss or a gradient is NaN or infinite (names the step and the tensor); nothing more is saved.
    """
    if not loop.moving:
        raise BadInput("no parameter may move: every one is frozen or outside the scope")
    if isinstance(loop.rate, FittedRate) and loop.probe is None:
        raise BadInput("a rate that is fitted during the run needs a loss to look at, and this run gives it none")
    for parameter in loop.model.parameters():
        parameter.requires_grad_(False)
    for parameter in loop.moving.values():
        parameter.requires_grad_(True)
    loop = _together(loop)
    loop.model.eval()  # dropout would make a step depend on more than weights and batch, and a killed run on chance
    movers = loop.movers if loop.movers is not None else Movers(loop.moving, keeps_dtype=True)
    optimizer = make_optimizer(list(movers.of.values()), loop.optimizer)
    start, stop, rate_state = _restore(loop, movers, optimizer)
    figures: dict[str, Any] = {}
    saved_at = time.monotonic()
    step = start
    limit = loop.steps if loop.until is None else min(loop.until, loop.steps)
    while step < limit and not stop:
        with movers.watching():
            figures, rate_state = _step(loop, movers, optimizer, step, rate_state)
        step += 1
        stop = _look(loop, step, figures)
        loop.log({"step": step, **figures})
        loop.progress(step, loop.steps, _progress_text(figures))
        if loop.checkpoints is not None and _is_due(loop, saved_at):
            _save(loop, movers, optimizer, step, stop, rate_state)
            saved_at = time.monotonic()
    for parameter in loop.model.parameters():
        parameter.requires_grad_(False)
    is_paused = step < loop.steps and not stop
    if is_paused and loop.checkpoints is not None:
        _save(loop, movers, optimizer, step, stop, rate_state)
    return LoopResult(step, stop or f"the step limit of {limit}", figures, is_paused)


def _together(loop: Loop) -> Loop:
    """The loop as one of several processes runs it: the first one writes, and decides where they could differ."""
    if loop.processes.count == 1:
        return loop
    store = loop.checkpoints and GatheredCheckpoints(loop.checkpoints, loop.processes, loop.moving, loop.memory)
    return replace(
        loop,
        checkpoints=store,
        look=loop.look and FirstLooks(loop.look, loop.processes),
        log=loop.log if loop.processes.is_first else lambda line: None,
    )


def _is_due(loop: Loop, saved_at: float) -> bool:
    """Whether to write a checkpoint now, by the first process's clock."""
    return loop.processes.of_first(time.monotonic() - saved_at >= loop.checkpoint_every_s)


def _step(
    loop: Loop, movers: Movers, optimizer: torch.optim.Optimizer, step: int, rate_state: State
) -> tuple[dict[str, Any], State]:
    """Figures for the log, and what the rate remembers."""
    began = time.perf_counter()
    parts = loop.parts(step)
    gradients = loop.gradient(loop.model, parts)
    tensors = gradients.tensors
    norm = global_norm(tensors)
    _check_finite(loop, tensors, norm, gradients.figures, step)
    clip(tensors, norm, loop.optimizer.clip)
    units, unit_steps = gradients.units, UnitSteps(optimizer, loop.optimizer, movers.of, loop.counts)
    fitted: dict[str, Any] = {}
    if isinstance(loop.rate, FittedRate) and loop.probe is not None and loop.rate.is_due(step):
        look = partial(loop.probe, loop.model, parts)
        along = None if units is None else unit_steps.direction(tensors, units)
        losses = _losses_along_step(loop, movers, optimizer, tensors, look, along)
        rate_state, fitted = loop.rate.refit(rate_state, losses)
    base: float = rate_state["rate"] if rate_state else loop.optimizer.learning_rate
    learning_rate = base * loop.rate.factor(step, loop.steps)
    if units is None:
        _move(movers, optimizer, tensors, learning_rate)
    else:
        unit_steps.step(tensors, units, learning_rate)
    if loop.optimizer.master_dtype == "param":
        _round_to_storage(loop, movers, optimizer)
    if loop.after_step is not None:
        loop.after_step(movers.of)
    movers.put_back()
    figures = {
        **gradients.figures,
        "gradient_norm": float(norm),
        "learning_rate": learning_rate,
        **fitted,
        "seconds": round(time.perf_counter() - began, 4),
    }
    return figures, rate_state


def _move(movers: Movers, optimizer: torch.optim.Optimizer, tensors: list[Tensor], learning_rate: float) -> None:
    """Everything that may move makes the optimizer's step."""
    for mover, tensor in zip(movers.of.values(), tensors, strict=True):
        mover.grad = tensor
    optimizer.param_groups[0]["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _losses_along_step(
    loop: Loop,
    movers: Movers,
    optimizer: torch.optim.Optimizer,
    gradients: list[Tensor],
    look: Callable[[], Tensor],
    direction: list[Tensor] | None = None,
) -> Callable[[Sequence[float]], list[float]]:
    """Distances along the step that these gradients are about to make -> the loss there; all stays as it was."""
    if direction is None:
        direction = next_direction(optimizer, loop.optimizer, list(movers.of.values()), gradients)
    return lambda distances: losses_along(movers, direction, distances, look)


def _check_finite(loop: Loop, tensors: list[Tensor], norm: Tensor, figures: Mapping[str, float], step: int) -> None:
    losses = [name for name, value in figures.items() if not math.isfinite(value)]
    if not losses and math.isfinite(float(norm)):
        return
    broken = next(
        (name for name, tensor in zip(loop.moving, tensors, strict=True) if not torch.isfinite(global_norm([tensor]))),
        "no single tensor",
    )
    what = f"{losses[0]} is not finite" if losses else "the gradient is not finite"
    raise CannotFinish(
        f"step {step + 1}: {what} (first such gradient: {broken}). Use a smaller learning rate, a bounded forget term "
        "such as npo, or a retain term; the last checkpoint still stands"
    )


@torch.no_grad()
def _round_to_storage(loop: Loop, movers: Movers, optimizer: torch.optim.Optimizer) -> None:
    """Weights and moments as the file's dtype would hold them."""
    for name, parameter in movers.of.items():
        dtype = loop.storage[name]
        parameter.copy_(parameter.to(dtype))
        for key in MOMENTS[loop.optimizer.name]:
            moment = optimizer.state[parameter][key]
            moment.copy_(moment.to(dtype))


def _look(loop: Loop, step: int, figures: dict[str, Any]) -> str:
    if loop.look is None or (step % loop.look.every and step != loop.steps):
        return ""
    look = loop.look(step, loop.model)
    figures.update(look.figures)
    return look.stop


def _progress_text(figures: Mapping[str, Any]) -> str:
    has_parts = any(name.endswith("_loss") for name in figures)
    endings = ("_loss", "_accuracy") if has_parts else ("loss", "_accuracy")
    shown = {name: value for name, value in figures.items() if name.endswith(endings)}
    return "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in shown.items())


def _save(
    loop: Loop, movers: Movers, optimizer: torch.optim.Optimizer, step: int, stop: str, rate_state: State
) -> None:
    assert loop.checkpoints is not None
    tensors: dict[str, Tensor] = {}
    counts: dict[str, float] = {}
    for name, parameter in movers.of.items():
        tensors[f"weight/{name}"] = parameter.detach()
        for key in MOMENTS[loop.optimizer.name]:
            tensors[f"{key}/{name}"] = optimizer.state[parameter][key]
            counts[name] = float(optimizer.state[parameter]["step"])
    tensors.update({f"memory/{name}": tensor for name, tensor in loop.memory.items()})
    state: State = {"optimizer_steps": counts, "stop": stop, "look": loop.look.state if loop.look else {}}
    loop.checkpoints.save(step, tensors, {**state, "rate": rate_state})


def _restore(loop: Loop, movers: Movers, optimizer: torch.optim.Optimizer) -> tuple[int, str, State]:
    """Put back the last checkpoint: the step to go on with, why to stop at once if so decided, the rate's memory."""
    found = loop.checkpoints.load() if loop.checkpoints is not None else None
    if found is None:
        return 0, "", loop.rate.init(loop.optimizer.learning_rate) if isinstance(loop.rate, FittedRate) else {}
    step, tensors, state = found
    with torch.no_grad():
        for name, parameter in movers.of.items():
            parameter.copy_(tensors[f"weight/{name}"])
            if moments := MOMENTS[loop.optimizer.name]:
                optimizer.state[parameter] = {
                    "step": torch.tensor(state["optimizer_steps"][name], device=parameter.device),
                    **{key: tensors[f"{key}/{name}"].clone().to(parameter.device) for key in moments},
                }
        movers.put_back()
        for name, tensor in loop.memory.items():
            tensor.copy_(tensors[f"memory/{name}"])
    if loop.look is not None:
        loop.look.state.update(state["look"])
    return step, str(state["stop"]), state["rate"]
