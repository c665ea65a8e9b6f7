"""The reference names everything that is public, and nothing that is not there."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import letheon
from letheon import errors

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def documented() -> set[str]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE.glob("*.md"))
    return set(re.findall(r"^\.\. auto(?:function|class):: (\S+)$", text, re.MULTILINE))


def public() -> set[str]:
    functions = {f"letheon.{name}" for name in letheon.__all__ if name != "__version__"}
    classes = {
        f"letheon.errors.{name}"
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.LetheonError)
    }
    return functions | classes | settings()


def settings() -> set[str]:
    """The settings that a function takes: the `...Settings` of its own module."""
    return {
        f"{module}.{name}"
        for module in letheon._MODULES.values()
        for name, value in vars(importlib.import_module(module)).items()
        if name.endswith("Settings") and value.__module__ == module
    }


def test_every_public_name_is_in_the_reference_and_no_other() -> None:
    assert documented() == public()


def test_every_page_is_reached_from_a_table_of_contents() -> None:
    docs = REFERENCE.parent
    listed: set[Path] = {docs / "index.md"}
    for page in docs.rglob("*.md"):
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            listed |= {page.parent / f"{line}.md" for line in tree.splitlines() if line and line[0] != ":"}
    assert {page for page in docs.rglob("*.md") if "_build" not in page.parts} == listed
