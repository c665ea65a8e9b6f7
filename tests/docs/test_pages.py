"""Pages made from docstrings: they cannot fall behind, and they show what was written."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from letheon.cli.methods import as_typed
from letheon.methods import cards
from letheon.unlearning.presets import PRESETS

EXTENSION = Path(__file__).parents[2] / "docs" / "_ext" / "pages.py"


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_pages", EXTENSION)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_method_has_its_heading_docstring_and_settings(pages: ModuleType) -> None:
    body = pages.render(cards())
    for card in cards():
        heading = f"### {pages.markdown_prose(card.name)}\n\n"
        assert heading + pages.markdown(card.docstring) in body
        for setting in card.settings:
            assert f"`{setting.name}` (`{setting.annotation}`" in body


def test_a_new_kind_needs_no_entry(pages: ModuleType) -> None:
    assert "## Odd kinds\n" in pages.render([replace(cards()[0], kind="odd_kind")])


def test_every_preset_is_listed_with_paper_settings_and_what_was_measured(pages: ModuleType) -> None:
    body = pages.render_presets(PRESETS, as_typed)
    for name, row in PRESETS.items():
        assert f"`{name}`\n: {pages.markdown_prose(row.paper)}" in body and as_typed(row.settings) in body
        assert pages.markdown_prose(row.measured) in body


def test_the_page_of_methods_has_the_places_to_fill(pages: ModuleType) -> None:
    page = (EXTENSION.parents[1] / f"{pages.PAGE}.md").read_text(encoding="utf-8")
    assert pages.MARKER in page and pages.PRESETS_MARKER in page


def test_a_docstring_falls_into_prose_and_what_is_laid_out(pages: ModuleType) -> None:
    docstring = "A: b.\n\nFor x:\n    y = x\n    z\nand on.\n\nSource: p.  Checked against: q,\nr.\n\n>>> 1\n1"
    assert pages.blocks(docstring) == [
        (True, "A: b."),
        (True, "For x:"),
        (False, "    y = x\n    z"),
        (True, "and on."),
        (True, "Source: p."),
        (True, "Checked against: q,\nr."),
        (False, ">>> 1\n1"),
    ]


def test_no_word_of_any_docstring_is_lost(pages: ModuleType) -> None:
    for card in cards():
        shown = " ".join(text for _, text in pages.blocks(card.docstring))
        assert shown.split() == card.docstring.split()


def test_text_that_looks_like_markup_is_shown_as_it_is(pages: ModuleType) -> None:
    assert pages.markdown_prose("a_b *c* <i> [x](y) `d_e`") == r"a\_b \*c\* \<i\> \[x\]\(y\) `d_e`"
    assert pages.rst("a_b *c* |d| `e_f`") == [r"a\_b \*c\* \|d\| ``e_f``", ""]
    assert pages.markdown("  ````") == "`````text\n  ````\n`````"
    assert pages.rst("  y*") == ["::", "", "      y*", ""]
