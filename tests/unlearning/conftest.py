"""A small world and a small untrained model, written once a session: what whole runs are tried on."""

from __future__ import annotations

from pathlib import Path

import pytest

from letheon.tiny.world import SMALL, write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of a half-size world by name; nobody may change them."""
    return write_world(tmp_path_factory.mktemp("world"), 0, SMALL)
