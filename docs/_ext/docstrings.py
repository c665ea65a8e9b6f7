"""Docstrings here are plain text: prose becomes paragraphs, and what is laid out by hand stays as it is."""

from __future__ import annotations

import re
from typing import Any

SECTION = re.compile(r"^(Args|Raises|Returns|Yields|Source|Checked against):")


def as_rst(lines: list[str]) -> list[str]:
    """The docstring as reStructuredText that cannot be malformed.

    A paragraph is prose when none of its lines is indented and it opens no section and no doctest; anything
    else (formulas, argument lists, examples) is shown word for word.
    """
    rst: list[str] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        block = paragraph.split("\n")
        is_prose = not any(line.startswith((" ", "\t", ">>>")) or SECTION.match(line) for line in block)
        if is_prose:
            rst += [re.sub(r"([\\*`|_<>:])", r"\\\1", line) for line in block]
        else:
            rst += ["::", "", *("    " + line for line in block)]
        rst.append("")
    return rst


def _replace(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines) if lines else []


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _replace)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
