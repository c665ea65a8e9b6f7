"""Whether a text gives an answer away: its words stand in the text, one behind the other.

    words    Unicode NFKC, case folded, what is no letter or digit is a border
    match    the words of an accepted answer are consecutive words of the text      "It was Oslo, I think." has "oslo"
Accepted is the answer; and where the answer is a name of the unit, its other names (`aliases`) as well. An alias of
somebody whom the question names is no answer.

Source: this project.  Checked against: by hand: case, accents, word borders, other scripts, names of the unit.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from letheon.data.records import Record

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The words of a text, normalised.

    >>> words("  Ｏslo, NORWAY!")
    ['oslo', 'norway']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def accepted(record: Record) -> tuple[str, ...]:
    """What counts as the answer of a record."""
    names = (record.unit, *record.aliases)
    said = [words(name) for name in names]
    return (record.answer, *(names if words(record.answer) in said else ()))


def gives_away(text: str, answers: Iterable[str]) -> bool:
    """Whether one of the answers stands in the text. An answer without words stands nowhere."""
    given = words(text)
    return any(_stands_in(words(answer), given) for answer in answers)


def _stands_in(answer: Sequence[str], given: Sequence[str]) -> bool:
    count = len(answer)
    return count > 0 and any(list(given[at : at + count]) == list(answer) for at in range(len(given) - count + 1))
