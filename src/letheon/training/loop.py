"""The only training loop: fine-tuning, unlearning and whatever comes later run in it. Dropout is off.

A step asks for a logical batch, gets gradients for it, clips, moves what may move, lets the scope put back what may
not, and writes a line to metrics.jsonl. Checkpoints come by time and hold everything that the next step depends on;
batches are a function of (seed, step), so a killed run continues with the same ones and ends with the same bits on the
same machine and number of threads.

Source: this project.  Checked against: stop-and-resume bit by bit, AdamW's closed form on one step, storage rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from letheon.errors import BadInput, CannotFinish, require
from letheon.training.gradients import Gradient, Parts, clip, global_norm

State = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW, its clipping and how weights are stored."""

    learning_rate: float
    """Base rate, > 0; multiplied with the schedule's factor."""
    betas: tuple[float, ...] = (0.9, 0.999)
    """Decay of the first and second moment, each in [0, 1)."""
    weight_decay: float = 0.0
    """Decoupled weight decay, >= 0."""
    clip: float | None = 1.0
    """Largest global gradient norm; null: no clipping."""
    master_dtype: Literal["float32", "param"] = "float32"
    """"float32" keeps what moves in float32. "param" rounds weights and moments to the file's dtype after every step,
    as the published bf16 training does; small steps are then lost, which is why it is not the default."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"learning_rate must be > 0, got {self.learning_rate}")
        require(self.weight_decay >= 0, f"weight_decay must be >= 0, got {self.weight_decay}")
        require(self.clip is None or self.clip > 0, f"clip must be > 0 or null, got {self.clip}")
        is_pair = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(is_pair, f"betas must be two numbers in [0, 1), got {list(self.betas)}")


@runtime_checkable
class Rate(Protocol):
    """A learning-rate schedule."""

    def factor(self, step: int, steps: int) -> float: ...


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
    after_step: Callable[[dict[str, nn.Parameter]], None] | None = None
    """Puts back what may not move (a scope)."""
    memory: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that parts of the run remember between steps (a scope, a gate): saved with the checkpoints, and restored
    in place."""
    look: Looker | None = None
    checkpoints: CheckpointStore | None = None
    checkpoint_every_s: float = 60.0
    log: Callable[[dict[str, Any]], None] = lambda line: None
    progress: Callable[[int, int, str], None] = lambda step, steps, text: None
    storage: Mapping[str, torch.dtype] = field(default_factory=dict)
    """Storage dtype of each moving parameter, for master_dtype="param"."""


@dataclass(frozen=True)
class LoopResult:
    """How a loop ended."""

    steps: int
    reason: str
    figures: dict[str, float]


def run_loop(loop: Loop) -> LoopResult:
    """Run the steps that are left, and leave the model in evaluation mode.

    Raises:
        BadInput: nothing may move.
        CannotFinish: a loss or a gradient is NaN or infinite (names the step and the tensor); nothing more is saved.
    """
    if not loop.moving:
        raise BadInput("no parameter may move: every one is frozen or outside the scope")
    for parameter in loop.model.parameters():
        parameter.requires_grad_(False)
    for parameter in loop.moving.values():
        parameter.requires_grad_(True)
    loop.model.eval()  # dropout would make a step depend on more than weights and batch, and a killed run on chance
    settings = loop.optimizer
    optimizer = torch.optim.AdamW(
        list(loop.moving.values()),
        lr=settings.learning_rate,
        betas=(settings.betas[0], settings.betas[1]),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    start, stop = _restore(loop, optimizer)
    figures: dict[str, float] = {}
    saved_at = time.monotonic()
    step = start
    while step < loop.steps and not stop:
        figures = _step(loop, optimizer, step)
        step += 1
        stop = _look(loop, step, figures)
        loop.log({"step": step, **figures})
        loop.progress(step, loop.steps, _progress_text(figures))
        if loop.checkpoints is not None and time.monotonic() - saved_at >= loop.checkpoint_every_s:
            _save(loop, optimizer, step, stop)
            saved_at = time.monotonic()
    for parameter in loop.model.parameters():
        parameter.requires_grad_(False)
    return LoopResult(step, stop or f"the step limit of {loop.steps}", figures)


def _step(loop: Loop, optimizer: torch.optim.Optimizer, step: int) -> dict[str, float]:
    began = time.perf_counter()
    gradients = loop.gradient(loop.model, loop.parts(step))
    norm = global_norm(gradients.tensors)
    _check_finite(loop, gradients.tensors, norm, gradients.figures, step)
    clip(gradients.tensors, norm, loop.optimizer.clip)
    for parameter, gradient in zip(loop.moving.values(), gradients.tensors, strict=True):
        parameter.grad = gradient
    learning_rate = loop.optimizer.learning_rate * loop.rate.factor(step, loop.steps)
    optimizer.param_groups[0]["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if loop.optimizer.master_dtype == "param":
        _round_to_storage(loop, optimizer)
    if loop.after_step is not None:
        loop.after_step(loop.moving)
    seconds = time.perf_counter() - began
    return {
        **gradients.figures,
        "gradient_norm": float(norm),
        "learning_rate": learning_rate,
        "seconds": round(seconds, 4),
    }


def _check_finite(loop: Loop, tensors: list[Tensor], norm: Tensor, figures: Mapping[str, float], step: int) -> None:
    losses = [name for name, value in figures.items() if not math.isfinite(value)]
    if not losses and math.isfinite(float(norm)):
        return
    broken = next(
        (name for name, tensor in zip(loop.moving, tensors, strict=True) if not torch.isfinite(tensor).all()),
        "no single tensor",
    )
    what = f"{losses[0]} is not finite" if losses else "the gradient is not finite"
    raise CannotFinish(
        f"step {step + 1}: {what} (first such gradient: {broken}). Use a smaller learning rate, a bounded forget term "
        "such as npo, or a retain term; the last checkpoint still stands"
    )


@torch.no_grad()
def _round_to_storage(loop: Loop, optimizer: torch.optim.Optimizer) -> None:
    """Weights and moments as the file's dtype would hold them."""
    for name, parameter in loop.moving.items():
        dtype = loop.storage[name]
        parameter.copy_(parameter.to(dtype))
        for key in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[parameter][key]
            moment.copy_(moment.to(dtype))


def _look(loop: Loop, step: int, figures: dict[str, float]) -> str:
    if loop.look is None or (step % loop.look.every and step != loop.steps):
        return ""
    look = loop.look(step, loop.model)
    figures.update(look.figures)
    return look.stop


def _progress_text(figures: Mapping[str, float]) -> str:
    has_parts = any(name.endswith("_loss") for name in figures)
    endings = ("_loss", "_accuracy") if has_parts else ("loss", "_accuracy")
    shown = {name: value for name, value in figures.items() if name.endswith(endings)}
    return "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in shown.items())


def _save(loop: Loop, optimizer: torch.optim.Optimizer, step: int, stop: str) -> None:
    assert loop.checkpoints is not None
    tensors: dict[str, Tensor] = {}
    counts: dict[str, float] = {}
    for name, parameter in loop.moving.items():
        memory = optimizer.state[parameter]
        tensors[f"weight/{name}"] = parameter.detach()
        tensors[f"exp_avg/{name}"] = memory["exp_avg"]
        tensors[f"exp_avg_sq/{name}"] = memory["exp_avg_sq"]
        counts[name] = float(memory["step"])
    tensors.update({f"memory/{name}": tensor for name, tensor in loop.memory.items()})
    state: State = {"optimizer_steps": counts, "stop": stop, "look": loop.look.state if loop.look else {}}
    loop.checkpoints.save(step, tensors, state)


def _restore(loop: Loop, optimizer: torch.optim.Optimizer) -> tuple[int, str]:
    """Put back the last checkpoint; the step to go on with, and why to stop at once if that was decided already."""
    found = loop.checkpoints.load() if loop.checkpoints is not None else None
    if found is None:
        return 0, ""
    step, tensors, state = found
    with torch.no_grad():
        for name, parameter in loop.moving.items():
            parameter.copy_(tensors[f"weight/{name}"])
            optimizer.state[parameter] = {
                "step": torch.tensor(state["optimizer_steps"][name], device=parameter.device),
                "exp_avg": tensors[f"exp_avg/{name}"].clone().to(parameter.device),
                "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].clone().to(parameter.device),
            }
        for name, tensor in loop.memory.items():
            tensor.copy_(tensors[f"memory/{name}"])
    if loop.look is not None:
        loop.look.state.update(state["look"])
    return step, str(state["stop"])
