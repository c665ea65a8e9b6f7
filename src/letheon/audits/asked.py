"""The sets of questions and texts an audit asks about, cut to a protocol's limits and encoded once.

Limits keep every unit while they can, and the mix of wordings: see `data.sampling`. Some sets are made only where a
probe says that it asks them (`asks`):

    answers, letters   of questions with wrong answers: see `offered`
    lower_case         the texts in lower case
    moments            no set, but a wish: the texts' first pass finds mean and deviation of log p as well

Source: this project.  Checked against: limits by hand; held-out wordings are never among the trained ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from letheon.audits.control import name_in, standing_alone
from letheon.audits.offered import Item, answers_of, has_wrong, letters_of, questions_with_wrong
from letheon.data.encode import Encoder, Example
from letheon.data.records import MAX_SHOWN, DataFile, Record
from letheon.data.sampling import sample
from letheon.errors import BadInput, UnknownName


@dataclass(frozen=True)
class Asked:
    """Some items of one set: encoded, with names that stay the same between models."""

    name: str
    items: tuple[str, ...]
    """Such as "forget/12" (line 12) or "forget/12/paraphrase 1"."""
    units: tuple[str, ...]
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    examples: tuple[Example, ...]
    with_moments: bool = False
    """Whether some probe needs mean and deviation of log p, so that one pass finds everything."""
    records: tuple[Record, ...] = ()
    """Where each item comes from; empty where that is not known."""
    names: tuple[str, ...] = ()
    """How each prompt names its unit, "" where it does not; empty where nobody has looked."""

    def __len__(self) -> int:
        return len(self.items)

    def name_at(self, position: int) -> str:
        """How a prompt names its unit; "" where it does not."""
        if self.names:
            return self.names[position]
        unit = self.units[position]
        return unit if standing_alone(unit).search(self.prompts[position]) else ""

    def only(self, positions: Sequence[int]) -> Asked:
        """The items at some positions, in that order."""
        return replace(
            self,
            items=tuple(self.items[at] for at in positions),
            units=tuple(self.units[at] for at in positions),
            prompts=tuple(self.prompts[at] for at in positions),
            answers=tuple(self.answers[at] for at in positions),
            examples=tuple(self.examples[at] for at in positions),
            records=tuple(self.records[at] for at in positions) if self.records else (),
            names=tuple(self.names[at] for at in positions) if self.names else (),
        )


@dataclass(frozen=True)
class AskedSets:
    """All sets of an audit by name; an absent one is empty."""

    sets: dict[str, Asked]

    def __getitem__(self, name: str) -> Asked:
        return self.sets.get(name, _EMPTY)


_EMPTY = Asked("", (), (), (), (), ())
ASKS = ("answers", "letters", "lower_case", "moments")
"""What a probe may ask beside questions, held-out wordings and texts."""
_OF_MEMBERSHIP = ("forget", "holdout")
"""Roles whose texts are asked for what membership alone needs."""


def kinds_of(file: DataFile) -> dict[str, list[Record]]:
    """The records that a column can be about, by `Column.asked_of`."""
    return {
        "questions": file.questions,
        "texts": file.texts,
        "wrong answers": [record for record in file.questions if has_wrong(record)],
    }


def make_sets(
    data: Mapping[str, DataFile],
    *,
    encoder: Encoder,
    limits: Mapping[str, int],
    only_units: Mapping[str, set[str]],
    also: Collection[str] = (),
) -> AskedSets:
    """Questions, held-out wordings and texts of every role. Raises BadInput with all that cannot be encoded.

    Args:
        data: role ("forget", "retain", "holdout", "general") -> file.
        encoder: of the audited model.
        limits: role -> most items of each of its sets.
        only_units: role -> the units that may be asked about; all when a role is absent.
        also: what else, of `ASKS`.
    """
    unknown = [
        UnknownName(name, ASKS, what="something that a probe can ask (asks)") for name in sorted(set(also) - set(ASKS))
    ]
    if unknown:
        raise BadInput([problem for error in unknown for problem in error.problems])
    sets: dict[str, Asked] = {}
    problems: list[str] = []
    for role, file in data.items():
        allowed = only_units.get(role)
        records = [record for record in file.records if allowed is None or record.unit in allowed]
        asked = {
            "questions": [(f"{role}/{record.line}", record, record.prompt) for record in records if record.is_question],
            "held_out": [
                (f"{role}/{record.line}/paraphrase {number}", record, prompt)
                for record in records
                if record.is_question
                for number, prompt in enumerate(record.paraphrase, start=1)
            ],
            "texts": [(f"{role}/{record.line}", record, "") for record in records if not record.is_question],
        }
        limited = {kind: _limited(items, limits.get(role, 400)) for kind, items in asked.items()}
        more, faults = _more(role, records, limited["texts"], limits.get(role, 400), also)
        for kind, items in {**limited, **more}.items():
            name = f"{role}_{kind}"
            sets[name], of_set = _encoded(name, items, encoder)
            faults += of_set
        problems += [f"{role} set {file.path}, {fault}" for fault in faults]
        if "moments" in also and role in _OF_MEMBERSHIP:
            sets[f"{role}_texts"] = replace(sets[f"{role}_texts"], with_moments=True)
    if problems:
        problems = list(dict.fromkeys(problems))
        hidden = len(problems) - MAX_SHOWN
        raise BadInput(problems[:MAX_SHOWN] + ([f"and {hidden} more"] if hidden > 0 else []))
    return AskedSets(sets)


def questions_about(name: str, items: Sequence[tuple[str, str, str, str]], encoder: Encoder) -> Asked:
    """A set of (item, unit, prompt, answer) that stands in no file, such as a control's."""
    return Asked(
        name,
        tuple(item for item, _, _, _ in items),
        tuple(unit for _, unit, _, _ in items),
        tuple(prompt for _, _, prompt, _ in items),
        tuple(answer for _, _, _, answer in items),
        tuple(encoder.question(prompt, answer) for _, _, prompt, answer in items),
    )


def _more(
    role: str, records: Sequence[Record], texts: list[Item], limit: int, also: Collection[str]
) -> tuple[dict[str, list[Item]], list[str]]:
    """The sets that some probe asks for, and a fault for each question whose answers do not fit together."""
    faults: list[str] = []
    made: dict[str, list[Item]] = {}
    for kind, way in (("answers", answers_of), ("letters", letters_of)):
        if kind not in also:
            continue
        made[kind] = []
        for item in _limited(questions_with_wrong(role, records), limit):
            try:
                made[kind] += way(*item)
            except BadInput as error:
                faults += [f"line {item[1].line}: {problem}" for problem in error.problems]
    if "lower_case" in also and role in _OF_MEMBERSHIP:
        made["lower_case"] = [(item, replace(record, text=record.text.lower()), "") for item, record, _ in texts]
    return made, faults


def _limited(items: list[Item], limit: int) -> list[Item]:
    """At most `limit` items, of all units and in all wordings."""
    chosen = sample([record.unit for _, record, _ in items], [name for name, _, _ in items], limit)
    return [items[position] for position in chosen]


def _encoded(name: str, items: list[Item], encoder: Encoder) -> tuple[Asked, list[str]]:
    """The set, and a fault for each item that cannot be encoded."""
    examples: list[Example] = []
    faults: list[str] = []
    for _, record, prompt in items:
        try:
            examples.append(encoder.question(prompt, record.answer) if record.is_question else encoder.encode(record))
        except BadInput as error:
            faults += [f"line {record.line}: {problem}" for problem in error.problems]
    asked = Asked(
        name,
        tuple(item for item, _, _ in items),
        tuple(record.unit for _, record, _ in items),
        tuple(prompt for _, _, prompt in items),
        tuple(record.answer or record.text for _, record, _ in items),
        tuple(examples),
        records=tuple(record for _, record, _ in items),
        names=tuple(name_in(record, prompt) or "" for _, record, prompt in items),
    )
    return asked, faults
