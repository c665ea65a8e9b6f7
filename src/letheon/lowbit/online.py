"""Rotations that stay in the forward pass, and where a model's configuration keeps them.

Two places of a block cannot take a rotation into their weights: keys behind a rotary embedding (R3), and the input of
the MLP's last linear, behind its activation (R4; the weight is rotated to match). A rotated model is only right
together with its R4, so they are written into config.json as signs, and read back from there:
    "letheon_rotation": {
        "method": {"name": "hadamard", ...},
        "online": {"keys": [{"blocks": [0, 1], "size": 32, "signs": "+-+..."}], "down": []}
    }

Source: this project; the places are QuaRot's, arXiv:2404.00456.
Checked against: written and read, a model that was saved and loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.lowbit.architectures import BlockLayout
from letheon.numerics.hadamard import Hadamard

MARKER = "letheon_rotation"
"""Name in config.json."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OnlineRotations:
    """What is rotated while the model runs."""

    keys: Mapping[int, Hadamard] = field(default_factory=dict)
    """Block -> R3, over the channels of a head."""
    down: Mapping[int, Hadamard] = field(default_factory=dict)
    """Block -> R4, over the inputs of the MLP's last linear; its weight is rotated already."""


def describe_online(online: OnlineRotations) -> dict[str, Any]:
    """The rotations as plain data, those with equal signs written once."""
    return {"keys": _written(online.keys), "down": _written(online.down)}


def read_online(config: Any) -> OnlineRotations:
    """The rotations of a model from its configuration; none where it was not rotated.

    Raises:
        BadInput: a marker that this version does not understand.
    """
    marker = getattr(config, MARKER, None)
    if marker is None:
        return OnlineRotations()
    try:
        online = marker["online"]
        return OnlineRotations(keys=_read(online["keys"]), down=_read(online["down"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"config.json: {MARKER} is damaged ({type(error).__name__}: {error}). Rotate the original model again"
        ) from error


def layers_of(
    online: OnlineRotations, blocks: Sequence[BlockLayout]
) -> tuple[dict[str, Hadamard], dict[str, Hadamard]]:
    """The same by name: attention -> R3, linear -> R4."""
    keys = {blocks[index].attention: rotation for index, rotation in online.keys.items()}
    down = {name: rotation for index, rotation in online.down.items() if (name := blocks[index].down) is not None}
    return keys, down


def _written(rotations: Mapping[int, Hadamard]) -> list[dict[str, Any]]:
    found: dict[tuple[int, str], list[int]] = {}
    for index, rotation in rotations.items():
        found.setdefault((rotation.size, _signs_as_text(rotation.signs)), []).append(index)
    return [{"blocks": blocks, "size": size, "signs": signs} for (size, signs), blocks in found.items()]


def _read(entries: list[dict[str, Any]]) -> dict[int, Hadamard]:
    found: dict[int, Hadamard] = {}
    for entry in entries:
        rotation = Hadamard(size=int(entry["size"]), signs=_signs_from_text(entry["signs"]))
        found.update({int(index): rotation for index in entry["blocks"]})
    return found


def _signs_as_text(signs: Tensor | None) -> str:
    return "" if signs is None else "".join("+" if sign > 0 else "-" for sign in signs.tolist())


def _signs_from_text(text: str) -> Tensor | None:
    if set(text) - {"+", "-"}:
        raise ValueError("signs are + and -")
    return torch.tensor([1 if sign == "+" else -1 for sign in text], dtype=torch.int8) if text else None
