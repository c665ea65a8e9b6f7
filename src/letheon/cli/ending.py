"""How a command ends: what it prints, and the exit code.

    0    done and passed
    1    the verdict is NOT DELETED or NOT USABLE; or what was verified is not whole
    2    asked wrongly
    3    the verdict is INCONCLUSIVE
    4    could not finish: disk, memory, NaN, a fault of ours
    130  interrupted; the same command continues it

Results go to standard output (as JSON with --json), everything else to standard error. A fault is one message;
LETHEON_DEBUG=1 shows where it came from. Of several processes the first one speaks.

Source: this project.  Checked against: one test for each code, through the real command.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from letheon.errors import BadInput, LetheonError
from letheon.recipes import verbs
from letheon.runs.environment import process_count, process_number
from letheon.settings import plain

INTERRUPTED = 130
CANNOT_FINISH = 4
RESUMABLE = frozenset(
    f"letheon {name}" for name in ("train", "forget", "quantize", "audit", "benchmark", "ask", "run", "demo")
)
GRACE_S = 10.0
"""Seconds that a process which is not the first keeps a fault to itself. Most faults are found by all of them alike;
torchrun ends all as soon as one ends with an error, and the first one must have told its own by then."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Outcome:
    """What a command has to say at its end."""

    result: Any
    """For --json: a dataclass, a mapping or a list."""
    lines: Sequence[str] = ()
    """For a person."""
    next: str = ""
    """The command to type next."""
    code: int = 0
    is_listing: bool = False
    """The lines say what the result says: with --json they are left out."""


@dataclass(frozen=True)
class Message:
    """What went wrong, and the code to end with."""

    text: str
    code: int
    problems: tuple[str, ...] = field(default=())


def finish(outcome: Outcome, *, command: str, as_json: bool) -> None:
    """Print the outcome and end the command. Of several processes the first one prints."""
    if process_number() > 0:
        raise typer.Exit(outcome.code)
    lines = [*outcome.lines, *([f"next: {outcome.next}"] if outcome.next else [])]
    if not (as_json and outcome.is_listing):
        print("\n".join(lines), file=sys.stderr if as_json else sys.stdout, flush=True)
    if as_json:
        result = plain(outcome.result)
        if isinstance(result, Mapping):
            result = {"command": command, **result, "exit_code": outcome.code}
        print(json.dumps(result, indent=1, ensure_ascii=False, default=str), flush=True)
    raise typer.Exit(outcome.code)


def explain(error: BaseException, *, command: str, given: Sequence[str] = ()) -> Message:
    """One message for anything that was raised by `command` with these arguments."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        continued = f". The same command continues where it stopped:\n  {typed(given)}" if command in RESUMABLE else ""
        return Message(f"interrupted{continued}", INTERRUPTED)
    if isinstance(error, BadInput):
        problems = [_without_verb(problem, command.removeprefix("letheon ")) for problem in error.problems]
        return Message(str(BadInput(problems)), error.exit_code, tuple(problems))
    if isinstance(error, LetheonError):
        return Message(str(error), error.exit_code)
    if hasattr(error, "format_message"):  # typer's own: a missing value, a surplus argument
        return Message(f"{error.format_message()}. See {command} --help".replace("..", "."), 2)
    if _is_out_of_memory(error):
        text = (
            f"out of memory ({' '.join(str(error).split())[:200] or type(error).__name__}). Use a smaller --batch-size "
            "or --micro-batch-size, or a machine with more memory; the same command continues where it stopped"
        )
        return Message(text, CANNOT_FINISH)
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        place = error.filename or "the disk"
        text = f"{place}: {error.strerror}. Free some space, or give another --out; the same command then continues"
        return Message(text, CANNOT_FINISH)
    if isinstance(error, OSError):
        return Message(f"{error.filename or 'a file'}: {error.strerror or error}", CANNOT_FINISH)
    text = (
        f"{type(error).__name__}: {error}\nThis is a fault of letheon itself. LETHEON_DEBUG=1 shows where it happened"
    )
    return Message(text, CANNOT_FINISH)


def _without_verb(problem: str, verb: str) -> str:
    """A fault without the verb that its place begins with: the command is named before it.

    >>> _without_verb("forget.batch_size: 'x' is not a whole number", "forget")
    "batch_size: 'x' is not a whole number"
    """
    place, _, said = problem.partition(": ")
    if place == verb:
        return said
    first, _, setting = place.partition(".")
    if first != verb or verb not in verbs.VERBS:
        return problem
    name = re.split(r"[. ]", setting)[0]
    is_setting = name in {known.name for known in verbs.settings(verb)}  # else a file, such as `forget.jsonl`
    return f"{setting}: {said}" if is_setting else problem


def complain(error: BaseException, *, command: str, given: Sequence[str], as_json: bool) -> int:
    """Print the message of an error, and return the exit code."""
    speaker = command
    if process_number() > 0:
        if isinstance(error, KeyboardInterrupt | typer.Abort):
            return INTERRUPTED
        time.sleep(GRACE_S)
        speaker, as_json = f"process {process_number()}: {command}", False
    if os.environ.get("LETHEON_DEBUG"):
        traceback.print_exception(error)
    message = explain(error, command=command, given=given)
    print(f"{speaker}: {message.text}", file=sys.stderr, flush=True)
    for note in getattr(error, "__notes__", []):
        print(note, file=sys.stderr, flush=True)
    if as_json:
        said = {
            "command": command.removeprefix("letheon "),
            "error": type(error).__name__,
            "problems": list(message.problems or [message.text]),
            "exit_code": message.code,
        }
        print(json.dumps(said, indent=1, ensure_ascii=False), flush=True)
    return message.code


def typed(given: Sequence[str]) -> str:
    """The command as it was typed, for typing it again."""
    if process_count() > 1:
        here = os.environ.get("LOCAL_WORLD_SIZE", str(process_count()))
        return f"torchrun --nproc-per-node {here} -m letheon {shlex.join(given)}"
    is_module = Path(sys.argv[0]).parts[-2:] == ("letheon", "__main__.py")
    return f"{'python -m letheon' if is_module else 'letheon'} {shlex.join(given)}"


def _is_out_of_memory(error: BaseException) -> bool:
    """Of Python, of a GPU (torch.cuda.OutOfMemoryError, by its name: torch may not be loaded), of torch on the CPU."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def quoted(path: Any) -> str:
    """A path as a shell takes it, relative to the current folder where it lies in it."""
    absolute, here = Path(os.path.abspath(path)), Path.cwd()
    return shlex.quote(str(absolute.relative_to(here) if absolute.is_relative_to(here) else path))
