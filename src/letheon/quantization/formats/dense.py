"""A dense model folder whose weights lie on the low-bit grid: every loader opens it, and it is as large as before.

What is stored is Q(W) in the original's dtype. In bfloat16 a value of the grid may be rounded once more, so the file
itself is what an audit should open (`letheon audit --shipped`).

Source: this project.  Checked against: transformers loads it; weights equal the rounded ones to the stored precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from letheon.models import ModelFolder, save_model


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Settings of the dense folder."""

    dtype: Literal["original", "float32", "bfloat16", "float16"] = "original"
    """Of what is stored; original: each weight as in the folder it came from."""

    def write(self, model: Any, target: Path, *, original: ModelFolder, card: str) -> None:
        """Write the model, whose weights have been rounded already, into an empty folder."""
        save_model(model, target, original=original, save_dtype=self.dtype, card=card)
