"""What a model that never knew would score: the control that every cell is compared with.

In this order, the first that there is:
    reference   a model retrained without the forget set, under the same condition, asked the same items
    holdout     the same model asked about units it was never trained on
    lookalike   the same model asked the same questions about invented names (absent from every input)
Membership is told from holdout units alone: how familiar an invented name is, its inventor decides.

Source: this project.  Checked against: invented names stand in no input; a model that knows only real names.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from letheon.data.records import DataFile, Record

Kind = Literal["reference", "holdout", "lookalike"]
_WORD = re.compile(r"[^\W\d_]+")
_TRIES = 200
MIN_HOLDOUT = 3
"""Holdout units below which no interval can be given."""


@dataclass(frozen=True)
class Control:
    """Which control an audit has, in a word and a sentence."""

    kind: Kind
    sentence: str


def choose_control(*, has_reference: bool, has_shipped: bool, holdout_units: int, lookalikes: int) -> Control:
    """The first control that there is. Without any, look-alikes with none found: cells are then not measured."""
    if has_reference:
        but = "; the folder that ships with the retrained model as it is" if has_shipped else ""
        return Control("reference", f"a model retrained without the forget set, under the same condition{but}")
    if holdout_units >= MIN_HOLDOUT:
        return Control("holdout", f"{holdout_units} units that were never trained on, asked of the same model")
    if lookalikes:
        return Control("lookalike", f"{lookalikes} of the same questions about invented names, asked of the same model")
    return Control("lookalike", "none: no reference, no holdout, and no name was found in the questions")


@dataclass(frozen=True)
class LookalikeNames:
    """Invented names, one for each unit of the forget set.

    An invented name has as many words as the real one, put together from pieces of the names in the data; none of its
    words stands in any input.
    """

    of_unit: Mapping[str, str]

    def swap(self, record: Record, prompt: str) -> str | None:
        """The prompt with the unit's name, or its alias, replaced; None where there is no name in it."""
        found = name_in(record, prompt)
        invented = self.of_unit.get(record.unit)
        return None if found is None or not invented else standing_alone(found).sub(lambda _: invented, prompt)


def lookalike_names(forget: DataFile, others: Iterable[DataFile], *, seed: int) -> LookalikeNames:
    """Invent a name for each unit whose name, or an alias of it, stands in one of its questions.

    Args:
        forget: the forget set.
        others: every other input, whose words may not occur in an invented name.
        seed: the same seed and files give the same names.
    """
    known = _words([forget, *others])
    names: dict[str, str] = {}
    for record in forget.questions:
        for prompt in (record.prompt, *record.paraphrase):
            if (found := name_in(record, prompt)) is not None:
                names.setdefault(record.unit, found)
    pieces = sorted({piece for name in names.values() for word in _WORD.findall(name) for piece in _cut(word)})
    invented = {unit: _invent(name, pieces, known, random.Random(f"{seed}/{unit}")) for unit, name in names.items()}
    return LookalikeNames({unit: name for unit, name in invented.items() if name})


def lookalike_items(asked: Sequence[tuple[str, Record, str]], names: LookalikeNames) -> list[tuple[str, str, str, str]]:
    """The same questions about invented names: (item, unit, prompt, answer). A question that names nobody is left out.

    Args:
        asked: (item, record, wording) of forget questions.
        names: from `lookalike_names`.
    """
    swapped = [(item, record, names.swap(record, prompt)) for item, record, prompt in asked]
    return [
        (f"lookalike/{item}", record.unit, prompt, record.answer)
        for item, record, prompt in swapped
        if prompt is not None
    ]


def name_in(record: Record, prompt: str) -> str | None:
    """The part of the prompt that names the unit, or None."""
    return next((name for name in (record.unit, *record.aliases) if standing_alone(name).search(prompt)), None)


def standing_alone(name: str) -> re.Pattern[str]:
    """`Ann`, but not the one in `Joanna`."""
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")


def _words(files: Sequence[DataFile]) -> set[str]:
    """Every word of every input, lower case."""
    return {
        word.casefold()
        for file in files
        for record in file.records
        for text in (
            record.content,
            record.unit,
            record.fact,
            *record.paraphrase,
            *record.wrong,
            *record.choices,
            *record.aliases,
        )
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
    return "" if "\0" in invented or invented == name else invented
