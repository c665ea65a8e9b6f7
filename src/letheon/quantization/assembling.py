"""From a model in memory and the files of its blocks to what a format writes: names as the original's files have them.

Source: this project.
Checked against: every tensor of every architecture under its name and in its dtype; a head that was untied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from letheon.lowbit.activations import ActivationGrids
from letheon.lowbit.architectures import block_layout
from letheon.lowbit.matrices import decoder_matrices
from letheon.lowbit.online import OnlineRotations, layers_of
from letheon.models import DTYPES, ModelFolder, names_in_folder, read_tensor
from letheon.quantization.kept_blocks import KeptLayers
from letheon.quantization.low_bit import LowBitModel

T = TypeVar("T")


class _Renamed(Mapping[str, T]):
    """Other names for what is looked up when it is asked for."""

    def __init__(self, names: Mapping[str, str], look_up: Callable[[str], T]) -> None:
        self._names, self._look_up = names, look_up

    def __getitem__(self, name: str) -> T:
        return self._look_up(self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def low_bit_model(
    model: Any,
    files: Sequence[Path],
    *,
    original: ModelFolder,
    card: str,
    config: Mapping[str, Any],
    grids: ActivationGrids | None = None,
    online: OnlineRotations | None = None,
) -> LowBitModel:
    """What is to be written of a model whose blocks are in files.

    Args:
        model: in memory, as it is now; of its rounded layers only the names are looked at.
        files: of `kept_blocks`.
        original: where it came from: names, dtypes, and what is only there (masks of older folders).
        card: text of the README.md.
        config: changes to config.json.
        grids: of activations, keys and values while it runs.
        online: what it rotates while it runs.
    """
    kept = KeptLayers(files)
    in_files = names_in_folder(model, original)
    matrices = decoder_matrices(model)
    # An expert's layer is a part of a parameter, and is called what files call it.
    layers = {in_files.get(f"{name}.weight", f"{name}.weight").removesuffix(".weight"): name for name in kept}
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters())  # tied ones once
    rounded = {matrices[name].parameter for name in kept}
    names = {in_files[name]: name for name in parameters if name not in rounded}
    prefix = f"{model.base_model_prefix}."
    # What stands in the files alone: masks and positions of older folders.
    known = {own.removeprefix(prefix) for own, _ in model.named_parameters(remove_duplicate=False)}
    taken = {*names, *(f"{name}.weight" for name in layers)}
    alone = [name for name in original.tensors if name not in taken and name.removeprefix(prefix) not in known]

    def other(name: str) -> Tensor:
        if name not in parameters:
            return read_tensor(original, name)
        entry = original.tensors.get(in_files[name])
        dtype = DTYPES[entry.dtype] if entry is not None and entry.dtype in DTYPES else original.dtype
        return parameters[name].detach().cpu().to(getattr(torch, dtype))

    _, down = layers_of(online or OnlineRotations(), block_layout(model))
    turned = {stored for stored, name in layers.items() if matrices[name].is_turned}
    experts = {stored for stored, name in layers.items() if matrices[name].is_expert}
    return LowBitModel(
        original=original,
        layers=_Renamed(layers, kept.__getitem__),
        others=_Renamed({**names, **{name: name for name in alone}}, other),
        transposed=frozenset(turned),
        grids=grids,
        down=down,
        experts=frozenset(experts),
        config=config,
        card=card,
    )
