"""What is done to a model before its weights are rounded, and to what flows through it while they are.

A rotation is merged into the weights first, so the solvers see the basis in which the model ships. What nobody has said
is filled in from the rest of the request: an adaptive rotation weighs its errors on the grids that are asked for, and
parts that would stay in the forward pass (R3, R4) are left out, since other software would open the folder without
them. Who wants them says so, and then the format is asked whether its files can.

Source: this project.  Checked against: the grids that a rotation is given; requests with every part said and unsaid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from letheon.data.batches import Batch
from letheon.errors import require
from letheon.lowbit.activations import ActivationGrids
from letheon.lowbit.low_bit_pass import THROUGH, kept_online, take_basis, with_open_settings
from letheon.lowbit.online import OnlineRotations
from letheon.lowbit.rotating import Rotated, mark_rotated
from letheon.methods import describe, name_of
from letheon.models import decoder_linears
from letheon.numerics.token_grids import TokenGrid
from letheon.quantization.block_walk import TOKENS_AT_ONCE

_SITES = {"keys": "R3", "down": "R4"}
"""Sites of a rotation that stay in the forward pass, and what they are called."""


def activation_grids(act_bits: int, kv_bits: int) -> ActivationGrids | None:
    """The grids of linears' inputs, and of keys and values; None where both are off.

    Files have no clip ratio, so there is none: the range of a token is what it holds.

    Raises:
        BadInput: bits that do not exist.
    """
    known = (2, 3, 4, 5, 6, 7, 8, 16)
    for name, bits in (("act_bits", act_bits), ("kv_bits", kv_bits)):
        require(bits in known, f"{name} {bits} does not exist. Use 2 to 8, or 16 to leave these values as they are")
    if act_bits == kv_bits == 16:
        return None
    cache = TokenGrid(bits=kv_bits)
    return ActivationGrids(inputs=TokenGrid(bits=act_bits), keys=cache, values=cache)


def fitting_rotation(given: Any, *, bits: int, act_bits: int, kv_bits: int) -> Any:
    """The rotation with what nobody has said filled in. Raises BadInput, UnknownName: what a method refuses.

    Args:
        given: a rotation as the user spelled it.
        bits: of the weights; 16 where they are not on a uniform grid.
        act_bits: of linears' inputs.
        kv_bits: of keys and values.
    """
    filled = {"bits": bits, "input_bits": act_bits, "cache_bits": kv_bits, **dict.fromkeys(_SITES, False)}
    return with_open_settings("rotation", given, filled)


def left_out(given: Any, rotation: Any) -> str:
    """What is to be said about R4 where it was left out because nobody asked for it; or nothing."""
    said = given.get("down") if isinstance(given, Mapping) else getattr(given, "down", None)
    is_said = said is not None
    if is_said or not hasattr(rotation, "down"):
        return ""
    return (
        f"rotation {name_of(rotation)} goes into the weights (R1, R2); R4, which would stay in the forward pass, where "
        "transformers does not run it, is left out (--rotation.down true to have it)"
    )


def online_parts(rotation: Any, *, kv_bits: int) -> tuple[str, ...]:
    """What a rotation may leave in the forward pass: R3 only for keys of fewer than 16 bits."""
    wanted = [name for name in _SITES if getattr(rotation, name, False) and (name != "keys" or kv_bits < 16)]
    return tuple(_SITES[name] for name in wanted)


def basis_of(
    model: Any,
    rotation: Any,
    ids: Int64[Tensor, "sequences length"] | None,
    *,
    stored: torch.dtype,
    rounds_keys: bool = True,
) -> Rotated:
    """Rotate in place; what is not going to be rounded to a grid is then as the file will hold it.

    A model that was trained through low bits gets back the basis in which it was, and no other.

    Args:
        model: at full precision.
        rotation: a method of kind rotation.
        ids: calibration text; None where there is none.
        stored: dtype in which a loader of the file holds embeddings, norms and head.
        rounds_keys: whether keys are going to be rounded; where they are not, R3 has no effect and is not kept.
    Raises:
        BadInput: what the rotation refuses.
    """
    marker = getattr(model.config, THROUGH, None)
    if marker is None:
        rotated: Rotated = rotation.rotate(model, [] if ids is None else unpadded_batches(ids))
    else:
        rotated = Rotated(online=kept_online(model), is_untied=False)
        take_basis(model, rotated.online)
    if not rounds_keys:
        rotated = replace(rotated, online=OnlineRotations(down=rotated.online.down))
    if marker is not None or name_of(rotation) != "none":
        mark_rotated(model, marker["rotation"] if marker else describe(rotation), rotated.online)
        rounded = {f"{name}.weight" for name in decoder_linears(model)}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name not in rounded:
                    parameter.copy_(parameter.to(stored))
    return rotated


def unpadded_batches(ids: Int64[Tensor, "sequences length"]) -> list[Batch]:
    """Calibration text as batches of which every token is one."""
    nothing = torch.empty(0, dtype=torch.long)
    size = max(1, TOKENS_AT_ONCE // ids.shape[1])
    return [
        Batch(some, torch.ones_like(some), nothing, nothing, nothing, torch.arange(len(some)))
        for some in torch.split(ids, size)
    ]
