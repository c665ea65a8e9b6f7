"""The basis in which a model is trained: a rotation chosen on its own data before the first step, left at the end.

The choice is a function of weights, data and seed, so a run that was stopped comes to it again; what it came to is
noted when the run begins, and another one is refused.

Source: RoSTE arXiv:2502.09003 (searched once, before training, on 128 sequences).
Checked against: stopped and continued to the same bits; a choice that came out otherwise; changes too small for a file.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from letheon.blueprint import make_blueprint
from letheon.data.batches import Batch, by_length
from letheon.data.encode import Example
from letheon.errors import BadInput, require
from letheon.lowbit.architectures import block_layout
from letheon.lowbit.low_bit_pass import (
    THROUGH,
    Basis,
    LowBitPass,
    check_pass,
    kept_online,
    leave_basis,
    mark_trained,
    take_basis,
)
from letheon.lowbit.online import describe_online
from letheon.lowbit.rotating import Rotated, turned_parameters, without_down
from letheon.lowbit.rotations.adaptive import changed
from letheon.lowbit.site_errors import SiteChoice, describe_choices
from letheon.methods import name_of
from letheon.models import ModelFolder, as_matrix, read_tensor, read_weights
from letheon.quiet import quiet_transformers
from letheon.runs.environment import process_count
from letheon.runs.folder import replacing_folder
from letheon.runs.progress import Progress
from letheon.runs.record import Stage
from letheon.training.prepare import Opened
from letheon.training.refreshed_basis import turn_weights
from letheon.training.straight_through import check_matrices

SEQUENCES = 128
"""Of the data that a choice looks at, at most."""
_START = "start"
"""In a stage's work folder: the weights that training began at."""


def enter_basis(
    opened: Opened,
    chosen: LowBitPass,
    rotation: Any,
    examples: Sequence[Example],
    *,
    seed: int,
    stage: Stage,
    progress: Progress,
) -> Basis:
    """Rotate the loaded model into the basis of its low-bit pass; what stays in the forward pass is returned.

    Args:
        opened: the original, as it was loaded.
        chosen: the pass; without activations nothing is done.
        rotation: a method of kind rotation.
        examples: data of the run, of which a seeded sample is looked at.
        seed: of the sample.
        stage: gets the choices and their errors as notes.
        progress: where lines for a person go.
    Raises:
        BadInput: what a rotation refuses; a choice that is not the one this run began with.
    """
    if chosen.grids is None:
        return Basis()
    online, choices = kept_online(opened.model), tuple[SiteChoice, ...]()
    if name_of(rotation) == "none" or hasattr(opened.model.config, THROUGH):
        take_basis(opened.model, online)
    else:
        rotated = rotation.rotate(opened.model, sampled(opened, examples, seed=seed))
        online, choices = rotated.online, rotated.choices
        _tell(rotated, stage, progress)
    _note(stage, "online_rotations", describe_online(online))
    basis = Basis(online=online, blocks=tuple(block_layout(opened.model)), choices=choices)
    if name_of(rotation) != "none" or online.down:
        _keep_start(opened.model, basis, stage)
    return basis


def sampled(opened: Opened, examples: Sequence[Example], *, seed: int) -> list[Batch]:
    """What a choice looks at: some of the data, a function of the seed."""
    sample = sorted(random.Random(seed).sample(range(len(examples)), min(SEQUENCES, len(examples))))
    return by_length([examples[item] for item in sample], pad=opened.encoder.pad, device=opened.device)


def leave(opened: Opened, chosen: LowBitPass, rotation: Any, basis: Basis) -> None:
    """Make an ordinary model of a trained one, and say in its configuration what it was trained through."""
    if chosen.grids is not None:
        leave_basis(opened.model, basis.online)
        mark_trained(opened.model, chosen, rotation, basis.online)


def check_basis(folder: ModelFolder, chosen: LowBitPass, rotation: Any, *, may_refresh: bool = False) -> None:
    """Refuse a folder that cannot be trained through this pass, before its weights are loaded.

    Raises:
        BadInput: a mixture of experts; an architecture that cannot be rotated, or whose activations cannot be rounded;
            a model that was trained through low bits and now would not be; rotations that are to be chosen anew where
            that cannot be.
    """
    if getattr(rotation, "refresh_every", None) is not None:
        require(
            may_refresh,
            "refresh_every: what unlearning measures before its first step (the original's log-probabilities, a gate) "
            "holds in the basis that it begins in. Leave it out, or use it with letheon train",
        )
        require(
            THROUGH not in folder.config,
            f"refresh_every: {folder.path} was trained through low bits already, and which rotations are merged into "
            "its weights is not written down. Leave it out",
        )
    require(
        THROUGH not in folder.config or chosen.grids is not None,
        f"MODEL {folder.path}: was trained through low bits ({THROUGH} in config.json), and training it without would "
        "undo that. Say --through w4a4kv4 (or what it was), or take the entry out of config.json",
    )
    if chosen == LowBitPass():
        return
    model = make_blueprint(folder.path)

    def ask_weights() -> None:
        if chosen.weights is not None:
            check_matrices(model)

    def ask_activations() -> None:
        if chosen.grids is not None:
            check_pass(model, chosen, rotation)

    problems: list[str] = []
    for ask in (ask_weights, ask_activations):
        try:
            ask()
        except BadInput as error:
            problems += [f"MODEL {folder.path}: {problem}" for problem in error.problems]
    if problems:
        raise BadInput(problems)


def check_alone(through: str | None) -> None:
    """Raise BadInput where several processes each hold a share of the weights that a grid is laid over."""
    count = process_count()
    require(
        through is None or count == 1,
        f"through {through!r} is not known to give in {count} processes what it gives in one: each holds a share of "
        "every weight. Run it without torchrun",
    )


def start_of(stage: Stage) -> ModelFolder | None:
    """The weights that training began at, where they are not those of the original's file.

    A rotation changes nearly every weight and nothing of the model; what training changed is counted from here.
    """
    folder = stage.work / _START
    return read_weights(folder, role="start of the run") if folder.is_dir() else None


@torch.no_grad()
def turn_start(opened: Opened, rotation: Any, began: Basis, ended: Basis, stage: Stage) -> None:
    """Write the weights that training began at in the basis that it ended in, where that is another one."""
    folder = start_of(stage)
    names = {
        name
        for one in changed(began.choices, ended.choices)
        if one.site == "values"
        for name in turned_parameters(opened.model, block_layout(opened.model)[one.block], one.site)
    }
    if folder is None or not names:
        return
    state = {name: read_tensor(folder, name).to(opened.device) for name in folder.tensors}
    turn_weights(opened.model, rotation, {name: state[name] for name in names}, began, ended)
    with replacing_folder(stage.work / _START) as written, quiet_transformers():
        opened.model.save_pretrained(written, state_dict=state)


@torch.no_grad()
def _keep_start(model: Any, basis: Basis, stage: Stage) -> None:
    """Put the rotated original aside, as it would be saved: float32, and R4 taken out."""
    state: dict[str, Tensor] = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for block in basis.blocks or ():
        if block.down is not None and (rotation := basis.online.down.get(block.index)) is not None:
            module, name = model.get_submodule(block.down), f"{block.down}.weight"
            state[name] = as_matrix(module, without_down(as_matrix(module, state[name]), rotation).cpu()).contiguous()
    with replacing_folder(stage.work / _START) as folder, quiet_transformers():
        model.save_pretrained(folder, state_dict=state)


def _tell(rotated: Rotated, stage: Stage, progress: Progress) -> None:
    """What was chosen, and why: into the record, and in a line for a person."""
    if rotated.is_untied:
        progress.say("the head has weights of its own now, so the file grows by an embedding")
    if not rotated.choices:
        return
    _note(stage, "rotation_choices", describe_choices(rotated.choices), same=_chosen)
    parts = []
    for site in dict.fromkeys(choice.site for choice in rotated.choices):
        of_site = [choice for choice in rotated.choices if choice.site == site]
        turned = sum(choice.chosen != "identity" for choice in of_site)
        before = sum(choice.errors["identity"].total for choice in of_site) / len(of_site)
        after = sum(choice.errors[choice.chosen].total for choice in of_site) / len(of_site)
        parts.append(f"{site} {turned} of {len(of_site)} (error {before:.3g} -> {after:.3g})")
    progress.say(f"rotated where that lowers the error: {', '.join(parts)}")


def _chosen(choices: Any) -> list[tuple[Any, ...]]:
    return [(choice["block"], choice["site"], choice["chosen"]) for choice in choices]


def _note(stage: Stage, name: str, found: Any, *, same: Callable[[Any], Any] = lambda noted: noted) -> None:
    """Keep what was found; a run that is continued has to find the `same` again."""
    begun = stage.entry.notes.get(name)
    if begun is not None and same(begun) != same(found):
        raise BadInput(
            f"{stage.run}: the sites to rotate came out otherwise than when the run began, since another machine sums "
            "otherwise. Continue it where it was begun, or begin anew with another --out"
        )
    stage.note(name, found)
