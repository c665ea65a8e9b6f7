"""The command `letheon`: finds the file of the command that was typed, runs it, and ends with its exit code.

Source: this project.  Checked against: --help in a process without torch; every exit code.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

import letheon
from letheon.cli.ending import INTERRUPTED, complain, typed
from letheon.cli.page import CONTEXT, Page, PagedGroup
from letheon.errors import BadInput, UnknownName
from letheon.runs.environment import command_line, process_count

COMMANDS = (
    "train",
    "forget",
    "quantize",
    "audit",
    "benchmark",
    "harness",
    "ask",
    "verify",
    "report",
    "run",
    "runs",
    "methods",
    "doctor",
    "demo",
)
"""In the order of --help; each is a file of this folder."""
SHARED = ("train", "forget")
"""What several processes can do together."""
EXAMPLES = ("letheon demo", "letheon forget MODEL --forget forget.jsonl --retain retain.jsonl")


READER_GONE = 141
"""What a shell gives a command whose reader has seen enough, as in `letheon methods | head`."""


class Commands(PagedGroup):
    """Imports a command's file when it is called, and no other."""

    page = Page(EXAMPLES)

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in order."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name. Raises UnknownName with the nearest."""
        if cmd_name not in COMMANDS:
            raise UnknownName(cmd_name, COMMANDS, what="a command", remedy="letheon --help")
        if process_count() > 1 and cmd_name not in SHARED:
            raise BadInput(
                f"{cmd_name} works in one process, and {process_count()} were started (WORLD_SIZE). Run it without "
                f"torchrun. Several processes are for {' and '.join(SHARED)}"
            )
        module = importlib.import_module(f"letheon.cli.{cmd_name}")
        return typer.main.get_command(module.app)

    def summaries(self, ctx: Any) -> dict[str, str]:
        """Command -> the first line of its file, read without importing it."""
        return {name: _summary(name) for name in COMMANDS}


app = typer.Typer(cls=Commands, add_completion=False, rich_markup_mode=None, context_settings=CONTEXT)


def _version(is_asked: bool) -> bool:
    if is_asked:
        print(f"letheon {letheon.__version__}")
        raise typer.Exit
    return is_asked


@app.callback()
def letheon_command(
    version: bool = typer.Option(
        False, "--version", help="The version", show_default=False, is_eager=True, callback=_version
    ),
) -> None:
    """Make a language model forget, and prove that it stays forgotten."""


def main() -> None:
    """What the installed command calls."""
    code = run(sys.argv[1:])
    if process_count() > 1:
        # A thread that carried what processes told one another may still hold a tensor when Python takes itself down,
        # and would abort a process that did all it had to.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(args: Sequence[str]) -> int:
    """Run one command line, and return its exit code. Nothing is raised."""
    given = list(args)
    command = " ".join(["letheon", *given[:1]]) if given[:1] and given[0] in COMMANDS else "letheon"
    as_json = "--json" in given
    token = command_line.set(typed(given))
    try:
        code = typer.main.get_command(app).main(given or ["--help"], prog_name="letheon", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        return complain(error, command=command, given=given, as_json=as_json)
    except SystemExit:  # typer's answer to a closed pipe, with a code that means NOT DELETED here
        return READER_GONE
    finally:
        command_line.reset(token)
    if code == INTERRUPTED:  # typer turns Ctrl-C into this code, without a word
        return complain(KeyboardInterrupt(), command=command, given=given, as_json=as_json)
    return code if isinstance(code, int) else 0


def _summary(name: str) -> str:
    tree = ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").split("\n")[0].rstrip(".")
