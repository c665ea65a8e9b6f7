"""A dense model folder whose weights lie on the low-bit grid: every loader opens it, and it is as large as before.

What is stored is Q(W) in the original's dtype. In bfloat16 a value of the grid may be rounded once more, so the file
itself is what an audit should open (`letheon audit --shipped`).

Source: this project.  Checked against: transformers loads it; weights equal the rounded ones to the stored precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from letheon.models import DTYPES, ModelFolder
from letheon.quantization.limits import Plan, check_dense
from letheon.quantization.low_bit import LowBitModel
from letheon.quantization.saving import FolderWriter
from letheon.quantization.stored_layers import plain

_LOAD = """
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
"""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Settings of the dense folder."""

    dtype: Literal["original", "float32", "bfloat16", "float16"] = "original"
    """Of what is stored; original: each weight as in the folder it came from."""

    quant_method: ClassVar[str] = ""

    def loads_as(self, folder: ModelFolder) -> str:
        """What a layer is stored as."""
        return folder.dtype if self.dtype == "original" else self.dtype

    def check(self, plan: Plan) -> None:
        """Raise BadInput for what the file cannot hold, before anything is solved."""
        check_dense(plan, "dense")

    def write(self, model: LowBitModel, target: Path) -> None:
        """Write the model into an empty folder.

        Raises:
            CannotFinish: NaN, or a value that the dtype cannot hold.
        """
        wanted = model.original.dtype if self.dtype == "original" else self.dtype
        folder = FolderWriter(target, model, dtype=wanted)
        folder.write_shards(self._tensors(model, folder))
        folder.finish(quantization=None, load=_LOAD)

    @staticmethod
    def read(folder: ModelFolder) -> Iterator[tuple[str, Tensor]]:
        """Every tensor under its name."""
        return plain(folder, list(folder.tensors))

    def _tensors(self, model: LowBitModel, folder: FolderWriter) -> Iterator[tuple[str, Tensor]]:
        before = model.original
        for name, tensor in model.dense():
            if name in folder.tied_again:
                continue
            if not tensor.is_floating_point():
                yield name, tensor
                continue
            entry = before.tensors.get(name)
            kept = DTYPES[entry.dtype] if entry is not None and entry.dtype in DTYPES else before.dtype
            yield name, tensor.to(getattr(torch, kept if self.dtype == "original" else self.dtype))
