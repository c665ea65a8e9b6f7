"""The page of methods is made from the methods' files, so that it cannot fall behind them."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from letheon.methods import cards

EXTENSION = Path(__file__).parents[2] / "docs" / "_ext" / "methods.py"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_methods", EXTENSION)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_method_has_its_heading_docstring_and_settings(page: ModuleType) -> None:
    body = page.render(cards())
    for card in cards():
        assert f"### {page.escaped(card.name)}\n" in body
        assert card.docstring in body
        for setting in card.settings:
            assert f"`{setting.name}` (`{setting.annotation}`" in body


def test_a_new_kind_needs_no_entry(page: ModuleType) -> None:
    assert "## Odd kinds\n" in page.render([replace(cards()[0], kind="odd_kind")])


def test_text_that_looks_like_markup_is_shown_as_it_is(page: ModuleType) -> None:
    assert page.escaped("a_b *c* <script> [x](y)") == r"a\_b \*c\* \<script\> \[x\]\(y\)"
    body = page.render([replace(cards()[0], docstring="before\n````\nafter")])
    assert "`````text\nbefore\n````\nafter\n`````" in body


def test_the_page_has_the_place_to_fill(page: ModuleType) -> None:
    assert page.MARKER in (EXTENSION.parents[1] / f"{page.PAGE}.md").read_text(encoding="utf-8")
