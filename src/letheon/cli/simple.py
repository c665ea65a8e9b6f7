"""Commands that are not verbs: their options are those of a function.

Source: this project.  Checked against: every such command's --help.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import typer

from letheon.cli.page import CONTEXT, Page, paged

F = TypeVar("F", bound=Callable[..., Any])

JSON = typer.Option(False, "--json", help="The result as JSON on standard output", show_default=False)
QUIET = typer.Option(False, "--quiet", help="No progress", show_default=False)


def new_app() -> typer.Typer:
    """An app without decoration; a file's `app`."""
    return typer.Typer(add_completion=False, rich_markup_mode=None)


def command(app: typer.Typer, *examples: str) -> Callable[[F], F]:
    """Make a function a command of the app, with these examples on its page."""
    return app.command(cls=paged(Page(examples)), context_settings=CONTEXT)


def takes_context(function: F) -> F:
    """Let typer hand the call's context to `ctx: Any`: what it hands over is not of the type that asks for it."""
    function.__annotations__ = {**function.__annotations__, "ctx": typer.Context}
    return function
