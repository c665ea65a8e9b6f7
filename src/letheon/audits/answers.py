"""What a model behind an address has said, kept as it comes: nothing is asked twice, and nothing that was said is lost.

    answers.jsonl    one line an answer that arrived: question (a hash), prompt, temperature, given (texts)
    asked.json       who was asked; answers of another model are not mixed in
A run that was stopped, for whatever reason, finds its answers there and asks for those that are missing.

Source: this project.  Checked against: a model that fails in the middle, one that gives fewer answers than it was asked
for, a torn line, another model's folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from letheon.audits.endpoint import Asked
from letheon.errors import BadInput, CannotFinish
from letheon.runs.folder import append_line, lock, write_json
from letheon.runs.ledger import ANSWERS_NAME

WHO = "asked.json"


@dataclass
class Answers:
    """A model, and the file of what it has said."""

    path: Path
    model: Asked
    arrived: Callable[[int], None] = lambda count: None
    """Told how many answers came."""
    _kept: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, line in enumerate(_whole_lines(self.path), start=1):
            try:
                held = json.loads(line)
                self._kept.setdefault(str(held["question"]), []).extend(map(str, held["given"]))
            except (ValueError, KeyError, TypeError):
                raise BadInput(f"{self.path}, line {number}: not an answer of letheon ask. Remove the line") from None

    def have(self, prompt: str, temperature: float) -> int:
        """How many answers are kept."""
        return len(self._kept.get(_question(prompt, temperature), ()))

    def to(self, prompt: str, *, n: int, temperature: float) -> list[str]:
        """n answers, those that are kept first.

        Raises:
            CannotFinish: the model gave something else than 1 to n texts; and what the model itself raises.
        """
        kept = self._kept.setdefault(_question(prompt, temperature), [])
        while len(kept) < n:
            wanted = n - len(kept)
            given = self.model([{"role": "user", "content": prompt}], wanted, temperature)
            texts = _checked(given, wanted)
            line = {
                "question": _question(prompt, temperature),
                "prompt": prompt,
                "temperature": temperature,
                "given": texts,
            }
            append_line(self.path, json.dumps(line, ensure_ascii=False))
            kept += texts
            self.arrived(len(texts))
        return kept[:n]


@contextmanager
def answers_of(
    who: Mapping[str, Any], model: Asked, folder: Path, *, arrived: Callable[[int], None]
) -> Iterator[Answers]:
    """The folder's answers, while this process holds it.

    Raises:
        BadInput: the folder holds answers of somebody else, or another process is asking.
    """
    with lock(folder):
        path = folder / WHO
        if path.exists():
            before = _read(path)
            changes = [
                f"{name} {before.get(name)!r}, now {value!r}"
                for name, value in who.items()
                if before.get(name) != value
            ]
            if changes:
                raise BadInput(f"{folder} holds answers of another: {'; '.join(changes)}. Give another --out")
        else:
            write_json(path, dict(who))
        yield Answers(folder / ANSWERS_NAME, model, arrived)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise BadInput(f"{path} is not what letheon ask writes. Give another --out") from None


def _question(prompt: str, temperature: float) -> str:
    return hashlib.sha256(json.dumps([prompt, float(temperature)]).encode()).hexdigest()[:32]


def _whole_lines(path: Path) -> list[str]:
    """Lines that were written to their end: behind the last line end a kill may have left a piece."""
    if not path.exists():
        return []
    return path.read_bytes().decode("utf-8", "replace").split("\n")[:-1]


def _checked(given: Any, wanted: int) -> list[str]:
    is_list = isinstance(given, list | tuple)
    if not is_list or not 1 <= len(given) <= wanted or not all(isinstance(text, str) for text in given):
        shown = f"a list of {len(given)}" if is_list else type(given).__name__
        raise CannotFinish(
            f"the model gave {shown} where 1 to {wanted} texts were asked for. A callable is called with (messages, n, "
            "temperature) and returns a list of n strings"
        )
    return list(given)
