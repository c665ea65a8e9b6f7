"""Examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import letheon

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(letheon.__path__, "letheon.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example may write a run folder
    if name.endswith("_triton"):
        pytest.importorskip("triton")  # comes with torch's builds for GPUs
    assert doctest.testmod(importlib.import_module(name)).failed == 0
