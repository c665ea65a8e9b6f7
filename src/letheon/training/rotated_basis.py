"""The basis in which a model is trained: a rotation chosen on its own data before the first step, left at the end.

The choice is a function of weights, data and seed, so a run that was stopped comes to it again; what it came to is
noted when the run begins, and another one is refused.

Source: RoSTE arXiv:2502.09003 (searched once, before training, on 128 sequences).
Checked against: stopped and continued to the same bits; a choice that came out otherwise.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from letheon.blueprint import make_blueprint
from letheon.data.batches import by_length
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
from letheon.lowbit.rotating import Rotated
from letheon.lowbit.site_errors import describe_choices
from letheon.methods import name_of
from letheon.models import ModelFolder
from letheon.runs.environment import process_count
from letheon.runs.progress import Progress
from letheon.runs.record import Stage
from letheon.training.prepare import Opened

SEQUENCES = 128
"""Of the data that a choice looks at, at most."""


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
    online = kept_online(opened.model)
    if name_of(rotation) == "none" or hasattr(opened.model.config, THROUGH):
        take_basis(opened.model, online)
    else:
        sample = sorted(random.Random(seed).sample(range(len(examples)), min(SEQUENCES, len(examples))))
        batches = by_length([examples[item] for item in sample], pad=opened.encoder.pad, device=opened.device)
        rotated = rotation.rotate(opened.model, batches)
        online = rotated.online
        _note(rotated, stage, progress)
    said = describe_online(online)
    begun = stage.entry.notes.get("online_rotations")
    if begun is not None and begun != said:
        raise BadInput(
            f"{stage.run}: the sites to rotate came out otherwise than when the run began, since another machine sums "
            "otherwise. Continue it where it was begun, or begin anew with another --out"
        )
    stage.note("online_rotations", said)
    return Basis(online=online, blocks=tuple(block_layout(opened.model)))


def leave(opened: Opened, chosen: LowBitPass, rotation: Any, basis: Basis) -> None:
    """Make an ordinary model of a trained one, and say in its configuration what it was trained through."""
    if chosen.grids is not None:
        leave_basis(opened.model, basis.online)
        mark_trained(opened.model, chosen, rotation, basis.online)


def check_basis(folder: ModelFolder, chosen: LowBitPass, rotation: Any) -> None:
    """Refuse a folder that cannot be trained through this pass, before its weights are loaded.

    Raises:
        BadInput: an architecture that cannot be rotated, or whose activations cannot be rounded; a model that was
            trained through low bits and now would not be.
    """
    require(
        THROUGH not in folder.config or chosen.grids is not None,
        f"MODEL {folder.path}: was trained through low bits ({THROUGH} in config.json), and training it without would "
        "undo that. Say --through w4a4kv4 (or what it was), or take the entry out of config.json",
    )
    if chosen.grids is not None:
        try:
            check_pass(make_blueprint(folder.path), chosen, rotation)
        except BadInput as error:
            raise BadInput([f"MODEL {folder.path}: {problem}" for problem in error.problems]) from error


def check_alone(through: str | None) -> None:
    """Raise BadInput where several processes each hold a share of the weights that a grid is laid over."""
    count = process_count()
    require(
        through is None or count == 1,
        f"through {through!r} is not known to give in {count} processes what it gives in one: each holds a share of "
        "every weight. Run it without torchrun",
    )


def _note(rotated: Rotated, stage: Stage, progress: Progress) -> None:
    if rotated.is_untied:
        progress.say("the head has weights of its own now, so the file grows by an embedding")
    if rotated.choices:
        turned = sum(choice.chosen != "identity" for choice in rotated.choices)
        progress.say(f"{turned} of {len(rotated.choices)} sites rotated, where that lowers the error")
        stage.note("rotation_choices", describe_choices(rotated.choices))
