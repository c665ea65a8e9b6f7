"""Makes pages from docstrings, which are plain text: prose becomes paragraphs, what was laid out stays so.

The page of methods is filled from the methods' own files at every build; there is no list to keep. The
reference is autodoc's, with each docstring turned into markup that cannot be malformed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import groupby
from typing import Any

PAGE = "methods"
MARKER = "<!-- methods -->"
PRESETS_MARKER = "<!-- presets -->"

HEADINGS = {
    "forget_term": ("Forget terms", "What is pushed away, and how far (`--method`)."),
    "retain_term": ("Retain terms", "What must not move (`--retain-term`)."),
    "balance": ("Balances", "How two gradients become one step (`--balance`)."),
    "smoother": ("Smoothers", "How flat the forgotten region must be (`--smooth`)."),
    "scope": ("Scopes", "Which weights may move (`--scope`)."),
    "rate": ("Rates", "How the learning rate changes over a run (`--rate`)."),
    "quantizer": ("Quantizers", "How a layer's weights are rounded (`letheon quantize --method`)."),
    "rotation": ("Rotations", "In which basis weights are rounded. Not yet a choice of `letheon quantize`."),
    "format": ("Formats", "What a low-bit model is written as, and who opens it (`letheon quantize --format`)."),
    "probe": ("Probes", "The columns of an audit: what the model is asked."),
    "condition": ("Conditions", "The rows of an audit: what is done to the model before it is asked."),
    "benchmark": ("Benchmarks", "Published questions with their own definitions (`letheon benchmark --benchmark`)."),
}
"""Kinds whose question can be said better than by their name; any other kind is shown under its name."""


def render(cards: list[Any]) -> str:
    """The body of the page of methods, in Markdown: kind by kind, method by method."""
    parts: list[str] = []
    for kind in dict.fromkeys(card.kind for card in cards):
        title, question = HEADINGS.get(kind, (kind.replace("_", " ").capitalize() + "s", ""))
        parts += [f"## {title}", question]
        for card in cards:
            if card.kind == kind:
                parts += [f"### {markdown_prose(card.name)}", markdown(card.docstring)]
                parts += [_setting(setting) for setting in card.settings]
    return "\n\n".join(part for part in parts if part)


def render_presets(presets: dict[str, Any], words: Callable[[dict[str, Any]], str]) -> str:
    """A list of the presets, in Markdown; `words` says settings as they are typed."""
    parts = []
    for name, row in presets.items():
        told = f"{markdown_prose(row.paper)}. Measured: {markdown_prose(row.measured)}."
        parts.append(f"`{name}`\n: {told}\n\n  `{words(row.settings)}`")
    return "\n\n".join(parts)


def _setting(setting: Any) -> str:
    default = f", default `{setting.default}`" if setting.default else ", no default"
    meaning = markdown_prose(setting.doc) or "No description."
    return f"`{setting.name}` (`{setting.annotation}`{default})\n: {meaning}"


def markdown(docstring: str) -> str:
    """A docstring as Markdown that shows every character of it."""
    parts = []
    for is_prose, text in blocks(docstring):
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
        parts.append(markdown_prose(text) if is_prose else f"{fence}text\n{text}\n{fence}")
    return "\n\n".join(parts)


def markdown_prose(text: str) -> str:
    """Text with nothing in it that Markdown would act upon, but for `code`."""
    return _outside_code(text, lambda part: re.sub(r"([\\`*_{}\[\]<>()#+.!|$~^-])", r"\\\1", part), "`{}`")


def rst(docstring: str) -> list[str]:
    """A docstring as lines of reStructuredText that show every character of it."""
    lines: list[str] = []
    for is_prose, text in blocks(docstring):
        if is_prose:
            lines += [_outside_code(text, lambda part: re.sub(r"([\\*`|_<>:])", r"\\\1", part), "``{}``")]
        else:
            lines += ["::", "", *("    " + line for line in text.split("\n"))]
        lines.append("")
    return lines


def blocks(docstring: str) -> list[tuple[bool, str]]:
    """(is it prose?, text), in order. Indented lines are laid out by hand, and so is a paragraph of >>>."""
    found: list[tuple[bool, str]] = []
    apart = re.sub(r"\s+(?=Checked against:)", "\n\n", docstring.strip("\n"))
    for paragraph in re.split(r"\n\s*\n", apart):
        if paragraph.lstrip().startswith(">>>"):
            found.append((False, paragraph))
            continue
        for is_indented, lines in groupby(paragraph.split("\n"), key=lambda line: line[:1].isspace()):
            found.append((not is_indented, "\n".join(lines)))
    return found


def _outside_code(text: str, escape: Callable[[str], str], code: str) -> str:
    parts = re.split(r"`([^`\n]+)`", text)  # every second part stood between backquotes
    return "".join(code.format(part) if odd % 2 else escape(part) for odd, part in enumerate(parts))


def _fill(app: Any, page: str, source: list[str]) -> None:
    if page == PAGE:
        from letheon.cli.methods import as_typed
        from letheon.methods import cards
        from letheon.unlearning.presets import PRESETS

        presets = render_presets(PRESETS, as_typed)
        source[0] = source[0].replace(MARKER, render(cards())).replace(PRESETS_MARKER, presets)


def _set(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = "\n".join(rst("\n".join(lines))).split("\n") if lines else []


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", _fill)
    app.connect("env-get-outdated", lambda *_: [PAGE])
    app.connect("autodoc-process-docstring", _set)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
