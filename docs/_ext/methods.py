"""Fills the page of methods from the methods' own files, at every build: there is no list to keep."""

from __future__ import annotations

import re
from typing import Any

PAGE = "methods"
MARKER = "<!-- methods -->"

HEADINGS = {
    "forget_term": ("Forget terms", "what is pushed away, and how far (`--method`)"),
    "retain_term": ("Retain terms", "what must not move (`--retain-term`)"),
    "balance": ("Balances", "how two gradients become one step (`--balance`)"),
    "smoother": ("Smoothers", "how flat the forgotten region must be (`--smooth`)"),
    "scope": ("Scopes", "which weights may move (`--scope`)"),
    "rate": ("Rates", "how the learning rate changes over a run (`--rate`)"),
    "quantizer": ("Quantizers", "how a layer's weights are rounded (`letheon quantize --method`)"),
    "probe": ("Probes", "the columns of an audit: what the model is asked"),
    "condition": ("Conditions", "the rows of an audit: what is done to the model before it is asked"),
}
"""Kinds whose question can be said better than by their name; any other kind is shown under its name."""


def render(cards: list[Any]) -> str:
    """The page's body, in Markdown: kind by kind, method by method."""
    parts: list[str] = []
    for kind in dict.fromkeys(card.kind for card in cards):
        title, question = HEADINGS.get(kind, (kind.replace("_", " ").capitalize() + "s", ""))
        parts += [f"## {title}", f"{question[:1].upper()}{question[1:]}." if question else ""]
        parts += [_method(card) for card in cards if card.kind == kind]
    return "\n\n".join(part for part in parts if part)


def _method(card: Any) -> str:
    body = [f"### {escaped(card.name)}", _fenced(card.docstring)]
    body += [_setting(setting) for setting in card.settings]
    return "\n\n".join(body)


def _setting(setting: Any) -> str:
    default = f", default `{setting.default}`" if setting.default else ", no default"
    return (
        f"`{setting.name}` (`{setting.annotation}`{default})\n: {escaped(setting.doc) or 'No description.'}"
    )


def _fenced(text: str) -> str:
    """Word for word, whatever it holds: the fence is longer than any run of backquotes inside."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>()#+.!|$~^-])", r"\\\1", text)


def _fill(app: Any, page: str, source: list[str]) -> None:
    if page == PAGE:
        from letheon.methods import cards

        source[0] = source[0].replace(MARKER, render(cards()))


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", _fill)
    app.connect("env-get-outdated", lambda *_: [PAGE])
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
