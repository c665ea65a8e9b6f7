"""Rotations that are chosen anew while a model is trained through low bits: the alternating form of RoSTE.

Every `refresh_every` steps the loop pauses. The sites to rotate are chosen with the weights as they are then, and where
a choice changes, what is in the old basis is written in the new one, so that the function goes on where it was:
    W <- W R_old^T R_new          m <- m R_old^T R_new          v <- the mean of v over the channels that R mixes
with m and v AdamW's moments: a gradient turns with its weight, and squares of mixed channels are their mean where these
are not correlated (every entry of R has the same square).

What a run has chosen is in its checkpoints, so one that was stopped goes on in the basis it was in. Nothing but weights
and moments may be remembered in a basis, which is so for fine-tuning; `letheon forget` measures its reference and its
gate in the basis that it begins in, and refuses.

Source: RoSTE arXiv:2502.09003 (the bilevel problem, solved in turns; its code chooses once).  Moments: this project.
Checked against: logits before and after; a turned gradient; a run stopped at and between the choices, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from letheon.data.batches import Batch
from letheon.lowbit.architectures import block_layout
from letheon.lowbit.low_bit_pass import Basis, LowBitPass
from letheon.lowbit.rotating import turn_site, turned_parameters
from letheon.lowbit.rotations.adaptive import changed
from letheon.lowbit.site_errors import SiteChoice, describe_choices
from letheon.numerics.hadamard import Hadamard
from letheon.runs.progress import Progress
from letheon.runs.record import Stage
from letheon.training.loop import CheckpointStore, Loop, LoopResult, State, run_loop
from letheon.training.stepping import MOMENTS
from letheon.training.straight_through import trained_through

_SQUARES = "exp_avg_sq"
_CHOSEN, _AT = "rotations", "rotations_at"
"""In a checkpoint's state: what was chosen, and after which step."""


def run_through(
    loop: Loop,
    chosen: LowBitPass,
    rotation: Any,
    basis: Basis,
    *,
    sample: Callable[[], Sequence[Batch]],
    stage: Stage,
    progress: Progress,
) -> tuple[LoopResult, Basis]:
    """Take the steps of a loop through low bits, choosing rotations anew where that is asked for.

    Args:
        loop: of all parameters of the model; with checkpoints where `rotation` has a `refresh_every`.
        chosen: the pass.
        rotation: a method of kind rotation.
        basis: the one that the run began with.
        sample: makes what a choice looks at.
        stage: gets what changed as a note.
        progress: where lines for a person go.
    Returns:
        How the loop ended, and the basis that the weights are in now.
    """
    every = getattr(rotation, "refresh_every", None)
    if every is None:
        with trained_through(loop.model, chosen, basis):
            return run_loop(loop), basis
    assert loop.checkpoints is not None
    store = _Remembering(loop.checkpoints, basis.choices)
    store.load()
    while True:
        choices = store.choices
        basis = replace(basis, online=rotation.online_of(loop.model, choices), choices=choices)
        until = (store.chosen_at // every + 1) * every
        with trained_through(loop.model, chosen, basis):
            result = run_loop(replace(loop, checkpoints=store, until=until))
        if not result.is_paused:
            return result, basis
        found = rotation.rotate_again(loop.model, choices, sample())
        others = changed(choices, found.choices)
        _turn_checkpoint(loop, store, rotation, choices, others)
        store.choose(found.choices, result.steps)
        _tell(others, result.steps, stage, progress)


@dataclass
class _Remembering:
    """A store whose checkpoints say what was chosen, and after which step."""

    inner: CheckpointStore
    choices: tuple[SiteChoice, ...]
    chosen_at: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """Of a checkpoint that is being turned."""
    state: State = field(default_factory=dict)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: State) -> None:
        """With the choices."""
        chosen = [[one.block, one.site, one.chosen] for one in self.choices]
        self.inner.save(step, tensors, {**state, _CHOSEN: chosen, _AT: self.chosen_at})

    def load(self) -> tuple[int, dict[str, Tensor], State] | None:
        """The last checkpoint; the choices are its own from now on."""
        found = self.inner.load()
        if found is not None and _CHOSEN in found[2]:
            said = {(block, site): name for block, site, name in found[2][_CHOSEN]}
            self.choices = tuple(replace(one, chosen=said[one.block, one.site]) for one in self.choices)
            self.chosen_at = found[2][_AT]
        return found

    def choose(self, choices: tuple[SiteChoice, ...], step: int) -> None:
        """From the last checkpoint on, other choices: its tensors are those that were put in `tensors`."""
        self.choices, self.chosen_at = choices, step
        self.save(step, self.tensors, self.state)


def _turn_checkpoint(
    loop: Loop, store: _Remembering, rotation: Any, before: Sequence[SiteChoice], others: Sequence[SiteChoice]
) -> None:
    """The last checkpoint in the new basis: the model's weights as they are now, and its moments turned."""
    found = store.load()
    assert found is not None
    _, tensors, state = found
    model, blocks = loop.model, block_layout(loop.model)
    was = {(one.block, one.site): one.chosen for one in before}
    for one in others:
        block = blocks[one.block]
        names = turned_parameters(model, block, one.site)
        for name in names:
            tensors[f"weight/{name}"] = model.get_parameter(name).detach().clone()
        old, new = (rotation.rotation_of(model, one.site, name) for name in (was[one.block, one.site], one.chosen))
        for key in MOMENTS[loop.optimizer.name]:
            with _as_weights(model, {name: tensors[f"{key}/{name}"] for name in names}):
                if key == _SQUARES:
                    turn_site(model, block, one.site, _Averaging(old or new))
                else:
                    turn_site(model, block, one.site, old, back=True)
                    turn_site(model, block, one.site, new)
    store.tensors, store.state = tensors, state


@dataclass(frozen=True)
class _Averaging:
    """What becomes of squares where a rotation mixes channels, either way."""

    rotation: Hadamard

    def rotate(self, x: Tensor) -> Tensor:
        """The mean over the channels that are mixed with one another."""
        mixed = x.reshape(*x.shape[:-1], -1, self.rotation.block)
        return mixed.mean(-1, keepdim=True).expand_as(mixed).reshape(x.shape)

    restore = rotate


@contextmanager
def _as_weights(model: Any, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, these tensors stand in the place of parameters: what is done to weights in place is done to them."""
    parameters = {name: model.get_parameter(name) for name in tensors}
    kept = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = tensors[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = kept[name]


def turn_weights(model: Any, rotation: Any, tensors: Mapping[str, Tensor], began: Basis, ended: Basis) -> None:
    """Write weights in the basis that a run ended in instead of the one it began with, in place. R4 is left out.

    Args:
        tensors: parameter -> its weight, of all that R2 changes.
    """
    was, blocks = {(one.block, one.site): one.chosen for one in began.choices}, block_layout(model)
    with _as_weights(model, tensors):
        for one in changed(began.choices, ended.choices):
            if one.site == "values":
                old, new = (
                    rotation.rotation_of(model, one.site, name) for name in (was[one.block, one.site], one.chosen)
                )
                turn_site(model, blocks[one.block], one.site, old, back=True)
                turn_site(model, blocks[one.block], one.site, new)


def _tell(others: Sequence[SiteChoice], step: int, stage: Stage, progress: Progress) -> None:
    """What changed, into the record and in a line for a person."""
    earlier = [one for one in stage.entry.notes.get("rotation_changes", []) if one["step"] < step]
    stage.note("rotation_changes", [*earlier, {"step": step, "changed": describe_choices(others)}])
    if others:
        turned = sum(one.chosen != "identity" for one in others)
        progress.say(f"after {step} steps other rotations lower the error: {turned} on, {len(others) - turned} off")
