"""Questions with wrong answers beside the right one: as items to be asked, and back as one question each.

    answers   each offered answer behind the question, no letters shown: "forget/12/answer 0" is the right one
    letters   "question\\nA. ...\\nB. ...\\nAnswer:" with the letter of the right answer, once for each cyclic shift of
              the order: "forget/12/shift 0" is the order of the file
A record offers its `choices`, or its answer among its `wrong` ones in an order that depends on its name alone.
Asked are the wordings that were never trained on (`paraphrase`), where a record has some: TOFU rephrases the answer
for the same end.

Source: WMDP arXiv:2403.03218 (prompt), TOFU arXiv:2401.06121.  Checked against: prompts by hand, a round trip.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase

from letheon.data.records import Record
from letheon.errors import require

LETTERS = ascii_uppercase
Item = tuple[str, Record, str]
"""Its name, its record and the wording that is asked."""


@dataclass(frozen=True)
class Question:
    """One question of a set whose items are its answers or its shifts."""

    item: str
    unit: str
    positions: tuple[int, ...]
    """Of its items in the set, by their number."""


def has_wrong(record: Record) -> bool:
    """Whether there is a wrong answer to it."""
    return record.is_question and bool(record.wrong or record.choices)


def questions_with_wrong(role: str, records: Iterable[Record]) -> list[Item]:
    """The questions that offer wrong answers, in wordings that were not trained on where there are some."""
    return [
        (item, record, prompt)
        for record in records
        if has_wrong(record)
        for item, prompt in (
            [(f"{role}/{record.line}/paraphrase {n}", prompt) for n, prompt in enumerate(record.paraphrase, start=1)]
            or [(f"{role}/{record.line}", record.prompt)]
        )
    ]


def answers_of(item: str, record: Record, prompt: str) -> list[Item]:
    """One item an answer, the right one first.

    Raises:
        BadInput: the right answer stands among the wrong ones, or not among the choices.
    """
    wrong = record.wrong or tuple(choice for choice in record.choices if choice.strip() != record.answer.strip())
    _check(record)
    answers = (record.answer, *dict.fromkeys(wrong))
    return [(f"{item}/answer {number}", replace(record, answer=one), prompt) for number, one in enumerate(answers)]


def letters_of(item: str, record: Record, prompt: str) -> list[Item]:
    """One item a cyclic shift; its answer is the letter behind which the right answer then stands.

    Raises:
        BadInput: as for `answers_of`, or more choices than there are letters.
    """
    _check(record)
    choices = list(dict.fromkeys(record.choices))
    if not choices:
        choices = [record.answer, *dict.fromkeys(record.wrong)]
        random.Random(item).shuffle(choices)
    require(len(choices) <= len(LETTERS), f"{len(choices)} choices are more than there are letters. Give at most 26")
    right = [choice.strip() for choice in choices].index(record.answer.strip())
    return [
        (
            f"{item}/shift {shift}",
            replace(record, answer=LETTERS[(right - shift) % len(choices)]),
            _lettered(prompt, [*choices[shift:], *choices[:shift]]),
        )
        for shift in range(len(choices))
    ]


def by_question(items: Sequence[str], units: Sequence[str]) -> list[Question]:
    """The questions whose answers or shifts these items are, in the order of their first one."""
    found: dict[str, dict[int, int]] = {}
    for position, item in enumerate(items):
        name, _, last = item.rpartition("/")
        found.setdefault(name, {})[int(last.split(" ")[1])] = position
    return [
        Question(name, units[next(iter(numbers.values()))], tuple(numbers[number] for number in sorted(numbers)))
        for name, numbers in found.items()
    ]


def _lettered(prompt: str, choices: Sequence[str]) -> str:
    lines = [f"{letter}. {choice.strip()}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([prompt, *lines, "Answer:"])


def _check(record: Record) -> None:
    right = record.answer.strip()
    require(
        right not in [wrong.strip() for wrong in record.wrong],
        "the right answer stands in 'wrong' as well. Take it out there",
    )
    choices = [choice.strip() for choice in record.choices]
    require(
        not choices or right in choices,
        "the right answer is none of 'choices'. Spell it as it stands there, in 'answer'",
    )
    require(
        bool(record.wrong) or len(set(choices)) > 1,
        "'choices' offers the right answer alone. Give at least one wrong one",
    )
