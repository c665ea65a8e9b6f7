"""The very file that ships, where it is another one than the file under audit.

The weights are read from that folder into the same architecture, and those of the audited file put back afterwards.

Source: this project.  Checked against: the shipped folder loaded by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from letheon.errors import NotMeasured
from letheon.models import ModelFolder, load_model


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """Settings: which folder ships."""

    path: Path = field(default_factory=Path)
    """A dense model folder made from the audited one, such as that of `letheon quantize`."""

    @property
    def provenance(self) -> str:
        """One line for the report."""
        return "the weights of the folder that ships"

    @contextmanager
    def applied(self, model: Any, folder: ModelFolder) -> Iterator[None]:
        """Put the shipped weights in, and the audited ones back.

        Raises:
            NotMeasured: the shipped folder holds another architecture.
        """
        kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        shipped = load_model(self.path, device=str(model.device)).state_dict()
        differing = [
            name for name, tensor in kept.items() if name not in shipped or shipped[name].shape != tensor.shape
        ]
        if differing:
            raise NotMeasured(
                f"{self.path} is not the same architecture: {differing[0]} differs in shape or is missing"
            )
        try:
            _load(model, shipped)
            yield
        finally:
            _load(model, kept)


@torch.no_grad()
def _load(model: Any, state: dict[str, torch.Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        tensor.copy_(state[name])
