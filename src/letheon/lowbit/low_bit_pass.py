"""A low-bit forward pass by its name, the basis it is taken in, and where a folder keeps both.

    int4, int4/128, int8, fp4, nf4    weights alone
    w4a4kv4 and the like              weights a row (sym), inputs of linears a token, keys and values a token and head
The basis is a rotation, merged into the weights before the first step: training, clipping, scopes and the optimizer
see W R. By gradient steps alone this is the published form, Q(W R) with W as it was: the gradient by W is that by W R
times R^T, and R is orthogonal. AdamW's steps do depend on the basis they are taken in.

What is saved is an ordinary model at full precision. R1 and R2 stay merged, the weight half of R4 is taken out again,
and R3 has no weights. config.json remembers what is needed to go on:
    "letheon_through": {"pass": "w4a4kv4", "rotation": {"name": "adaptive", ...}, "online": {"keys": [...], "down": []}}

Source: RoSTE arXiv:2502.09003; training in the merged basis is this project's.
Checked against: SGD in both forms in float64; folders written, read and rounded again; every word, and strange ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from letheon.errors import BadInput, require
from letheon.lowbit.activations import ActivationGrids, check_grids, grids_named
from letheon.lowbit.architectures import BlockLayout, block_layout, model_layout
from letheon.lowbit.online import MARKER, OnlineRotations, describe_online, read_online
from letheon.lowbit.rotating import rotate_down, unrotate_down, widths
from letheon.lowbit.site_errors import SiteChoice
from letheon.methods import build, describe, name_of
from letheon.numerics.grids import CodebookGrid, Grid, grid_named

THROUGH = "letheon_through"
"""Name in config.json."""


@dataclass(frozen=True, kw_only=True)
class LowBitPass:
    """What is rounded in every forward pass."""

    name: str = ""
    """How it is spelled; empty: nothing is rounded."""
    weights: Grid | CodebookGrid | None = None
    """Of the linears in the decoder's blocks."""
    grids: ActivationGrids | None = None
    """Of what they are given, and of keys and values."""


@dataclass(frozen=True, kw_only=True)
class Basis:
    """Where a low-bit pass is taken."""

    online: OnlineRotations = field(default_factory=OnlineRotations)
    """What is rotated while it runs."""
    blocks: tuple[BlockLayout, ...] | None = None
    """Of the model as it was loaded; None: as it is."""
    choices: tuple[SiteChoice, ...] = ()
    """Of a rotation that chooses."""


def pass_named(name: str | None) -> LowBitPass:
    """The pass that a word stands for; None stands for no rounding.

    Raises:
        BadInput: another word.

    >>> pass_named("w4a8kv4").weights
    Grid(bits=4, scheme='sym', group='row', clip='absmax', scale_dtype='float32')
    """
    if name is None:
        return LowBitPass()
    if re.fullmatch(r"w\d+a\d+kv\d+", name):
        bits, grids = grids_named(name)
        is_still = grids.inputs.is_off and grids.keys.is_off and grids.values.is_off
        return LowBitPass(name=name, weights=None if bits == 16 else Grid(bits=bits), grids=None if is_still else grids)
    try:
        return LowBitPass(name=name, weights=grid_named(name))
    except BadInput as error:
        raise BadInput([f"{problem}; or w4a4kv4 and the like" for problem in error.problems]) from error


def with_open_settings(kind: str, given: Any, values: Mapping[str, Any]) -> Any:
    """A method in which settings that are null, since nobody has said them, take these values.

    A setting that was written out at its default, as a resolved recipe has it, is open as well.

    Args:
        kind: of the method.
        given: as the user spelled it.
        values: setting -> value; those that the method does not have are left out.
    Raises:
        BadInput, UnknownName: what the method refuses.
    """
    method = build(kind, given, where=kind)
    open_ones = {one.name for one in fields(method) if getattr(method, one.name) is None}
    return replace(method, **{name: value for name, value in values.items() if name in open_ones})


def rotation_for(given: Any, chosen: LowBitPass) -> Any:
    """The rotation of a pass: an adaptive one weighs its errors on the grids of the pass, unless told otherwise.

    R3 is off unless somebody asks for it, since no file that ships can say it. R4 is on: it is taken out again before
    anything is saved.

    Raises:
        BadInput: a rotation where nothing but weights is rounded; what the method refuses.
    """
    grids = chosen.grids or ActivationGrids()
    bits = chosen.weights.bits if isinstance(chosen.weights, Grid) else 16
    values = {"bits": bits, "input_bits": grids.inputs.bits, "cache_bits": grids.keys.bits}
    values |= {"keys": False, "down": True}
    rotation = with_open_settings("rotation", given, values)
    require(
        name_of(rotation) == "none" or chosen.grids is not None,
        f"rotation {name_of(rotation)!r} chooses the basis in which activations are rounded, and nothing rounds them. "
        "Say --through w4a4kv4 (or the like), or --rotation none",
    )
    return rotation


def check_pass(model: Any, chosen: LowBitPass, rotation: Any) -> None:
    """Refuse an architecture whose pass cannot be taken; its weights are not needed for that.

    Raises:
        BadInput: with every reason.
    """
    problems: list[str] = []
    marker = getattr(model.config, THROUGH, None)
    is_another = name_of(rotation) != "none" and (marker or {}).get("rotation") != describe(rotation)
    if marker is not None and is_another:
        problems.append("was trained in another rotated basis already, which stays as it is. Use --rotation none")

    def ask_grids() -> None:
        if chosen.grids is not None:
            check_grids(model, chosen.grids)

    for ask in (lambda: rotation.check(model), ask_grids, lambda: kept_online(model)):
        try:
            ask()
        except BadInput as error:
            problems += error.problems
    if problems:
        raise BadInput(list(dict.fromkeys(problems)))


def read_pass(config: Any) -> tuple[LowBitPass, OnlineRotations]:
    """Through what a model was trained, and what is rotated then, from its configuration.

    No rounding and no rotation where the configuration says nothing of it.

    Raises:
        BadInput: an entry that this version does not understand.
    """
    marker = getattr(config, THROUGH, None)
    if marker is None:
        return LowBitPass(), OnlineRotations()
    try:
        named, online, _ = marker["pass"], marker["online"], marker["rotation"]["name"]
        if not isinstance(named, str) or not isinstance(online, Mapping):
            raise _damaged("no pass, or no rotations, in it")
        return pass_named(named), read_online(_Said(marker))
    except (KeyError, TypeError) as error:
        raise _damaged(f"{type(error).__name__}: {error}") from error
    except BadInput as error:
        raise error if THROUGH in str(error) else _damaged(error.problems[0]) from error


def kept_online(model: Any) -> OnlineRotations:
    """What a folder says is rotated in its low-bit pass; nothing where it was never trained through one.

    Raises:
        BadInput: what `read_pass` raises, and rotations that are those of another model. Weights are not needed.
    """
    _, online = read_pass(model.config)
    if not online.keys and not online.down:
        return online
    layout = model_layout(model)
    known, depth = widths(model, layout), len(layout.blocks)
    for site, rotations in (("keys", online.keys), ("down", online.down)):
        for index, rotation in rotations.items():
            if not 0 <= index < depth:
                raise _damaged(f"block {index} of {depth}")
            if rotation.size != known.get(site):
                raise _damaged(f"a rotation of {rotation.size} channels for the {known.get(site)} of {site}")
    return online


def _damaged(why: str) -> BadInput:
    return BadInput(f"config.json: {THROUGH} is damaged ({why}). Train the original model again")


def take_basis(model: Any, online: OnlineRotations) -> None:
    """Rotate the weights that a low-bit pass reads in another basis (R4), as they were while it was trained."""
    for block in block_layout(model):
        if (rotation := online.down.get(block.index)) is not None:
            rotate_down(model, block, rotation)


def leave_basis(model: Any, online: OnlineRotations) -> None:
    """The reverse: an ordinary model again. Its configuration no longer says that a transform is missing."""
    for block in block_layout(model):
        if (rotation := online.down.get(block.index)) is not None:
            unrotate_down(model, block, rotation)
    vars(model.config).pop(MARKER, None)


def mark_trained(model: Any, chosen: LowBitPass, rotation: Any, online: OnlineRotations) -> None:
    """Write into the configuration through what, and in which basis, the model was trained.

    A basis that was there already keeps the name of the rotation that made it.
    """
    earlier = getattr(model.config, THROUGH, None)
    made_by = describe(rotation) if earlier is None else earlier["rotation"]
    said = {"pass": chosen.name, "rotation": made_by, "online": describe_online(online)}
    setattr(model.config, THROUGH, said)


def basis_said(config: Mapping[str, Any]) -> Any:
    """In which basis a folder's weights stand, as data that can be compared; None for the one they were made in."""
    trained = (config.get(THROUGH) or {}).get("rotation") or {}
    return config.get(MARKER) or (trained if trained.get("name", "none") != "none" else None)


class _Said:
    """A configuration that holds a marker under the name that rotations are read from."""

    def __init__(self, marker: Any) -> None:
        setattr(self, MARKER, marker)
