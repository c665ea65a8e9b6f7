"""The very file that ships, where it is another one than the file under audit.

The weights are read from that folder into the same architecture, and those of the audited file put back afterwards. So
its configuration must be that of the audited file, but for what says how numbers are stored, and in which basis: a head
that a rotation has untied has weights of its own as long as the shipped file is asked. Where that file rounds what
flows through it, so does the model.

Source: this project.  Checked against: the shipped folder loaded by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from letheon.errors import NotMeasured
from letheon.lowbit.activations import ActivationGrids, low_bit_activations
from letheon.lowbit.online import MARKER, read_online
from letheon.models import ModelFolder
from letheon.quantization.activation_config import read_grids
from letheon.quantization.reading import inspect_any, load_any


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """Settings: which folder ships."""

    path: Path = field(default_factory=Path)
    """A folder made from the audited one, dense or of any low-bit format that is read, such as that of
    `letheon quantize`."""

    @property
    def provenance(self) -> str:
        """One line for the report."""
        return "the folder that ships, rounded and rotated while it runs where it says so"

    @contextmanager
    def applied(self, model: Any, folder: ModelFolder) -> Iterator[None]:
        """Put the shipped weights in, and the audited ones back.

        Raises:
            NotMeasured: the shipped folder holds another architecture, or the same one configured otherwise.
        """
        shipped = load_any(self.path, device=str(model.device))
        if differing := _differing(model.config.to_dict(), shipped.config.to_dict()):
            raise NotMeasured(f"{self.path} is not the same architecture: its config.json has another {differing[0]}")
        own, runs = _running(folder), _running(inspect_any(self.path, role="SHIPPED"))
        if own not in ((None, {}), runs):
            raise NotMeasured(
                f"{folder.path} rounds or rotates what flows through it, and {self.path} does not do it alike. Audit "
                "the full-precision folder, with this one as --shipped"
            )
        kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        online = read_online(shipped.config)
        running = low_bit_activations(model, grids=runs[0], online=online) if own != runs else nullcontext()
        with _tied_as(model, shipped), running:
            try:
                _load(model, shipped.state_dict())
                yield
            finally:
                _load(model, kept)


_STORAGE = {"transformers_version", "dtype", "torch_dtype", "use_cache", "tie_word_embeddings", MARKER}
"""What a configuration says that changes no number, or that is looked at by itself."""


def _running(folder: ModelFolder) -> tuple[ActivationGrids | None, dict[str, Any]]:
    """What a model rounds and rotates while it runs, as it is written; (None, {}) for nothing."""
    online = (folder.config.get(MARKER) or {}).get("online") or {}
    return read_grids(folder), online if any(online.values()) else {}


@contextmanager
def _tied_as(model: Any, other: Any) -> Iterator[None]:
    """Inside, the head has weights of its own where the other model's has."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = head.weight is embedding.weight
    if not is_tied or other.get_output_embeddings().weight is other.get_input_embeddings().weight:
        yield
        return
    shared = head.weight
    head.weight = torch.nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
    try:
        yield
    finally:
        head.weight = shared


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Settings that the two configurations do not share."""
    names = [name for name in {**before, **after} if name not in _STORAGE and not name.startswith("_")]
    return [name for name in names if name not in before or name not in after or before[name] != after[name]]


@torch.no_grad()
def _load(model: Any, state: dict[str, torch.Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        tensor.copy_(state[name])
