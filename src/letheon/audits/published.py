"""Read the files of a published benchmark as they are: JSON lines, or one JSON array, of objects or of texts.

Source: the files of TOFU, MUSE and WMDP.  Checked against: both forms of the same rows; one test for each fault.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from letheon.data.records import MAX_SHOWN
from letheon.errors import BadInput, nearest

Kind = Literal["text", "texts", "number"]


@dataclass(frozen=True)
class Rows:
    """One file: its rows in order, with the fields that were asked for."""

    name: str
    """Of the file, without its ending: what items are called by."""
    path: Path
    rows: tuple[dict[str, Any], ...]

    def item(self, position: int) -> str:
        """What row `position` (from 0) is called in a log."""
        return f"{self.name}/{position}"


def find(folder: Path, name: str, *, what: str) -> Path:
    """`name`.json or `name`.jsonl in a folder. Raises BadInput where neither is."""
    for ending in (".json", ".jsonl"):
        if (folder / f"{name}{ending}").is_file():
            return folder / f"{name}{ending}"
    raise BadInput(f"{what} {folder}: no {name}.json and no {name}.jsonl in it. Give the folder of the published files")


def read_rows(path: Path, fields: Mapping[str, Kind], *, optional: Sequence[str] = ()) -> Rows:
    """The rows of a file.

    Args:
        path: JSON lines, or one array.
        fields: field -> "text" (not empty), "texts" (a list of such, not empty; one text is taken for a list of one)
            or "number" (whole). A row that is a bare text stands for {"text": it}.
        optional: fields that a row may lack.
    Raises:
        BadInput: with every fault (the first 20 listed), each with file, row and field.
    """
    problems: list[str] = []
    rows: list[dict[str, Any]] = []
    for place, row in _parsed(path, problems):
        ready: dict[str, Any] = {}
        given = {"text": row} if isinstance(row, str) else row
        if not isinstance(given, Mapping):
            problems.append(f"{place}: holds {type(row).__name__}, not an object with {', '.join(map(repr, fields))}")
            continue
        for name, kind in fields.items():
            if given.get(name) is None:
                if name not in optional:
                    problems.append(f"{place}: no {name!r} field.{nearest(name, [str(key) for key in given])}")
                continue
            try:
                ready[name] = _field(given[name], kind)
            except TypeError:
                problems.append(f"{place}: field {name!r} is {_short(given[name])}, not {_WORDS[kind]}")
        rows.append(ready)
    if not rows and not problems:
        problems.append(f"{path}: holds no rows. Give the published file")
    if problems:
        hidden = len(problems) - MAX_SHOWN
        raise BadInput(problems[:MAX_SHOWN] + ([f"and {hidden} more in {path}"] if hidden > 0 else []))
    return Rows(path.stem, path, tuple(rows))


_WORDS: dict[Kind, str] = {
    "text": "a text that is not empty",
    "texts": "a list of texts that are not empty",
    "number": "a whole number",
}


def _parsed(path: Path, problems: list[str]) -> list[tuple[str, Any]]:
    """(place, value) of every row; faults are added to `problems`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file. Give the published file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}). It must be UTF-8") from error
    if text.lstrip().startswith("["):
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path}: not JSON ({error}). Download it again") from error
        return [(f"{path}, row {number}", row) for number, row in enumerate(whole)]
    found: list[tuple[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                found.append((f"{path}, line {number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                problems.append(f"{path}, line {number}: not JSON ({error}). Each line is one JSON object")
    return found


def _field(value: Any, kind: Kind) -> Any:
    """The value, or TypeError."""
    if kind == "number":
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError
        return value
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not items or not all(map(_is_text, items)):
        raise TypeError
    if kind == "text" and not isinstance(value, str):
        raise TypeError
    return value if kind == "text" else tuple(items)


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value.strip()) and bool(value.encode("utf-8"))
    except UnicodeEncodeError:  # half a character, which no tokenizer takes
        return False


def _short(value: Any) -> str:
    return repr(value)[:40]
