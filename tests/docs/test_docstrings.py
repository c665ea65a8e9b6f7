"""Examples in docstrings run, and docstrings become pages whatever they hold."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import letheon

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(letheon.__path__, "letheon.")
    if not module.name.endswith("__main__")
)
EXTENSION = Path(__file__).parents[2] / "docs" / "_ext" / "docstrings.py"


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example may write a run folder
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_prose_is_escaped_and_what_is_laid_out_stays() -> None:
    spec = importlib.util.spec_from_file_location("docs_docstrings", EXTENSION)
    assert spec is not None and spec.loader is not None
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    lines = ["Keep *all*.", "", "Args:", "    a_: shape (B,)", "", "    loss = |x|", "", ">>> f()", "1"]
    assert extension.as_rst(lines) == [
        r"Keep \*all\*.",
        "",
        *["::", "", "    Args:", "        a_: shape (B,)", ""],
        *["::", "", "        loss = |x|", ""],
        *["::", "", "    >>> f()", "    1", ""],
    ]
