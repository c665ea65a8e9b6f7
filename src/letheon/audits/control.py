"""What a model that never knew would score: the control that every cell is compared with.

In this order, the first that there is:
    reference   a model retrained without the forget set, under the same condition, asked the same items
    holdout     the same model asked about units it was never trained on
    lookalike   the same model asked the same questions about invented names (absent from every input)

Source: this project.  Checked against: invented names stand in no input; a model that knows only real names.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from letheon.data.records import DataFile, Record

Kind = Literal["reference", "holdout", "lookalike"]
_WORD = re.compile(r"[^\W\d_]+")
_TRIES = 200


@dataclass(frozen=True)
class Control:
    """Which control an audit has, in a word and a sentence."""

    kind: Kind
    sentence: str


def choose_control(*, has_reference: bool, holdout_units: int, lookalikes: int) -> Control:
    """The first control that there is. Without any, look-alikes with none found: cells are then not measured."""
    if has_reference:
        return Control("reference", "a model retrained without the forget set, under the same condition")
    if holdout_units >= 3:
        return Control("holdout", f"{holdout_units} units that were never trained on, asked of the same model")
    if lookalikes:
        return Control("lookalike", f"{lookalikes} of the same questions about invented names, asked of the same model")
    return Control("lookalike", "none: no reference, no holdout, and no name was found in the questions")


def lookalike_questions(forget: DataFile, others: Iterable[DataFile], *, seed: int) -> list[tuple[str, str, str, str]]:
    """Each forget question with its unit's name replaced by an invented one: (item, unit, prompt, answer).

    The name is the unit itself or an alias where it stands in the prompt. An invented name has the same number of words
    and letters put together from pieces of the names in the data, and none of its words stands in any input.
    """
    known = _words([forget, *others])
    names = [name for name in (_name(record) for record in forget.questions) if name]
    pieces = sorted({piece for name in names for word in _WORD.findall(name) for piece in _cut(word)})
    invented: dict[str, str] = {}
    made: list[tuple[str, str, str, str]] = []
    for record in forget.questions:
        name = _name(record)
        if name is None or not pieces:
            continue
        if record.unit not in invented:
            invented[record.unit] = _invent(name, pieces, known, random.Random(f"{seed}/{record.unit}"))
        replaced = record.prompt.replace(name, invented[record.unit])
        if invented[record.unit]:
            made.append((f"lookalike/{record.line}", record.unit, replaced, record.answer))
    return made


def _name(record: Record) -> str | None:
    """The part of the prompt that names the unit, or None."""
    return next((name for name in (record.unit, *record.aliases) if name in record.prompt), None)


def _words(files: Sequence[DataFile]) -> set[str]:
    """Every word of every input, lower case."""
    return {
        word.casefold()
        for file in files
        for record in file.records
        for text in (record.content, record.unit, *record.paraphrase, *record.wrong, *record.aliases)
        for word in _WORD.findall(text)
    }


def _cut(word: str) -> tuple[str, str]:
    """A word in two pieces, in the middle."""
    middle = (len(word) + 1) // 2
    return word[:middle].casefold(), word[middle:].casefold()


def _invent(name: str, pieces: Sequence[str], known: set[str], rng: random.Random) -> str:
    """A name of as many words, none of them known; empty when none was found."""

    def word(_: re.Match[str]) -> str:
        for _try in range(_TRIES):
            made = rng.choice(pieces) + rng.choice(pieces)
            if made not in known and len(made) > 2:
                return made.capitalize()
        return "\0"

    invented = _WORD.sub(word, name)
    return "" if "\0" in invented else invented
