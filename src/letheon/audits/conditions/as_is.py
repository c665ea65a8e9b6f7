"""The file as it is.

Source: this project.  Checked against: the model's own forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from letheon.models import ModelFolder


@dataclass(frozen=True, kw_only=True)
class AsIs:
    """No settings."""

    @property
    def provenance(self) -> str:
        """One line for the report."""
        return "weights as they are in the file, float32 arithmetic"

    @contextmanager
    def applied(self, model: Any, folder: ModelFolder) -> Iterator[None]:
        """Nothing is done."""
        yield
