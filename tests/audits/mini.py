"""What the small world of these tests is made of; see conftest.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letheon.data.encode import Encoder, Example
from letheon.data.records import DataFile, read_records
from letheon.models import load_model
from tests.toys import encoder


@dataclass(frozen=True)
class Mini:
    """A world of eight people to be forgotten, and its models."""

    files: Mapping[str, Path]
    base: Path
    target: Path
    reference: Path

    @property
    def encoder(self) -> Encoder:
        return encoder()

    def load(self, folder: Path) -> Any:
        return load_model(folder)

    def data(self, role: str) -> DataFile:
        return read_records(self.files[role], role=role)

    def questions(self, role: str) -> list[Example]:
        return self.encoder.encode_all(self.data(role).questions)

    @property
    def inputs(self) -> dict[str, Path]:
        """What an audit of a model that no run of forget has made must be told."""
        roles = ("forget", "retain", "holdout", "general")
        return {"original": self.target, **{f"{role}_data": self.files[role] for role in roles}}
