"""Columns of text."""

from __future__ import annotations

import sys

import pytest

from letheon.cli.table import table

ROWS = [("a", "bb", "a long last column"), ("aaa", "", "")]


def test_columns_stand_below_one_another() -> None:
    assert table(ROWS) == ["a    bb  a long last column", "aaa"]
    assert table(ROWS, indent="  ")[0] == "  a    bb  a long last column"
    assert table([]) == []


def test_a_terminal_cuts_and_a_pipe_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "14")
    assert len(table(ROWS)[0]) == 27
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert table(ROWS)[0] == "a    bb  a lo…"
