"""List the methods, or show one with its settings."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

import typer

from letheon.cli.ending import Outcome, finish
from letheon.cli.simple import JSON, command, new_app
from letheon.cli.table import table
from letheon.cli.verb import flag
from letheon.errors import UnknownName
from letheon.methods import KINDS, Card, card, cards
from letheon.recipes import verbs
from letheon.settings import plain

MEASURED = (
    "measured: the same terms on the embedded world, at rates and steps of its own; the presets' are for large models"
)

app = new_app()


@command(app, "letheon methods npo", "letheon methods --kind quantizer --json")
def methods(
    name: str | None = typer.Argument(None, metavar="NAME", help="One method with its settings; a file with --kind"),
    kind: str | None = typer.Option(None, metavar="KIND", help=f"Only these: {', '.join(KINDS)}"),
    presets: bool = typer.Option(False, "--presets", help="Published methods, as `letheon forget --preset` takes them"),
    json: bool = JSON,
) -> None:
    """List the methods, or show one with its settings. Each is one file; its name is what you type."""
    if presets:
        _presets(json)
    found = _chosen(name, kind)
    lines = [line for one in found for line in _page(one)] if name else _listing(found)
    following = "" if name else "letheon methods NAME"
    outcome = Outcome([as_data(one) for one in found], lines, next=following, is_listing=True)
    finish(outcome, command="methods", as_json=json)


def as_data(one: Card) -> dict[str, Any]:
    """A method as an object of --json."""
    return {
        "name": one.name,
        "kind": one.kind,
        "summary": one.summary,
        "source": one.source,
        "checked_against": one.checked_against,
        "settings": plain(one.settings),
        "options": _options(one.kind),
    }


def _chosen(name: str | None, kind: str | None) -> list[Card]:
    if kind is not None and kind not in KINDS:
        raise UnknownName(kind, KINDS, what="a kind of method")
    if name is not None and name.endswith(".py") and kind is not None:
        return [card(kind, name)]
    all_cards = [one for one in cards() if kind in (None, one.kind)]
    found = [one for one in all_cards if name in (None, one.name)]
    if name is not None and not found:
        raise UnknownName(name, {one.name for one in all_cards}, what="a method", remedy="letheon methods")
    return found


def _listing(found: Sequence[Card]) -> list[str]:
    lines: list[str] = []
    for kind in dict.fromkeys(one.kind for one in found):
        options = ", ".join(_options(kind))
        lines.append(f"{kind}" + (f"  ({options})" if options else ""))
        lines += table([(one.name, one.summary) for one in found if one.kind == kind], indent="  ")
        lines.append("")
    return lines


def _page(one: Card) -> list[str]:
    options = _options(one.kind)
    lines = [f"{one.name}, a {one.kind.replace('_', ' ')}" + (f" ({', '.join(options)} {one.name})" if options else "")]
    lines += ["", *textwrap.indent(one.docstring, "  ").splitlines(), ""]
    option = options[0].split(" ")[-1] if options else ""
    for setting in one.settings:
        name = f"{option}.{setting.name}" if option else setting.name
        lines.append(f"  {name}  {setting.annotation}, default {setting.default or 'none'}")
        lines += textwrap.wrap(setting.doc, 100, initial_indent="      ", subsequent_indent="      ")
    return [*lines, ""]


def _options(kind: str) -> list[str]:
    """Where methods of a kind are named: `forget --method`."""
    return [
        f"{verb} {flag(setting)}"
        for verb in verbs.VERBS
        for setting, known in verbs.kinds(verb).items()
        if known == kind
    ]


def _presets(as_json: bool) -> None:
    from letheon.unlearning.presets import PRESETS

    data = [
        {"name": name, "source": row.paper, "settings": row.settings, "measured": row.measured}
        for name, row in PRESETS.items()
    ]
    lines: list[str] = []
    for name, row in PRESETS.items():
        lines += [
            name,
            *_wrapped(row.paper),
            *_wrapped(as_typed(row.settings)),
            *_wrapped(f"measured: {row.measured}"),
            "",
        ]
    lines.append(MEASURED)
    following = "letheon forget MODEL --preset NAME --forget forget.jsonl --retain retain.jsonl"
    finish(Outcome(data, lines, next=following, is_listing=True), command="methods", as_json=as_json)


def _wrapped(text: str) -> list[str]:
    # An option and its value stay on one line, so that what is copied can be typed.
    bound = re.sub(r"(--\S+) (?=[^-])", "\\1\0", text)
    lines = textwrap.wrap(bound, 110, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def as_typed(chosen: dict[str, Any]) -> str:
    """Settings as options of a command line."""
    words = []
    for name, value in chosen.items():
        if isinstance(value, dict):
            words.append(f"{flag(name)} {value['name']}")
            words += [f"{flag(name)}.{key} {item}" for key, item in value.items() if key != "name"]
        else:
            words.append(f"{flag(name)} {'null' if value is None else value}")
    return " ".join(words)
