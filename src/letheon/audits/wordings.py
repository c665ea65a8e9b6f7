"""Ask a model in other words: conditions that change what is asked, and nothing of the model.

A wording is a condition with three more things:
    along   the field whose values are rows, such as "templates"; "" for a wording of one row
    folds   parts that the forget set is cut into, as for an attack (see `halves`); 0: nothing of it is known
    asked(question, attacker, encoder)   the words for one question; NotMeasured where it cannot be put so
It gets no model. It is told neither the answer nor anything that holds it; where an answer has to be shown (choices, a
relation asked backwards) the wording leaves a place for it, and what is scored is something else or a choice. The
control is asked in the same words. What does not fit into the context window is left out by name and never cut.

Source: this project.  Checked against: a wording that changes nothing = the plain questions to the bit, what a wording
is told, both ways round, windows that are one token too small.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from letheon.audits.asked import Asked, AskedSets
from letheon.audits.attacker import Attacker
from letheon.audits.control import standing_alone
from letheon.audits.halves import Half, parts
from letheon.data.encode import Encoder, Example, Turn
from letheon.errors import BadInput, NotMeasured

T = TypeVar("T")
ROLES = ("forget", "lookalike", "holdout")
"""Whose questions are asked in other words."""
KINDS = ("questions", "held_out")
_NAMED = 5
"""Items that a sentence names."""
Fact = tuple[str, str]
"""(relation, answer) of a unit."""
_MOST_BESIDE = 3
"""Other facts of a unit that a question asked backwards names, at most."""
_LINE = re.compile(r"line \d+")
"""The fact of a record that names none."""


def relation_of(fact: str) -> str:
    """The last part of a fact; "" where it names no relation.

    >>> relation_of("Brulod Sulkip/birthplace"), relation_of("Brulod Sulkip/line 3"), relation_of("birthplace")
    ('birthplace', '', '')
    """
    subject, _, relation = fact.rpartition("/")
    return relation if subject and relation.strip() and not _LINE.fullmatch(relation) else ""


@dataclass(frozen=True)
class Question:
    """What a wording is told of a question. The answer is not in it."""

    item: str
    unit: str
    fact: str
    """Such as "Brulod Sulkip/birthplace"; "" where it is not known."""
    prompt: str
    name: str
    """How the prompt names the unit; "" where it does not."""
    texts: tuple[str, ...] = ()
    """Texts about the unit, those left out that hold the answer."""
    has_texts: bool = False
    """Whether there were any before."""
    beside: tuple[Fact, ...] = ()
    """The fewest other facts of the unit that, with this one, are true of nobody else among those asked about; empty
    where this one is true of the unit alone, or no three others are enough."""


@dataclass(frozen=True)
class Words:
    """How a question is put."""

    prompt: str
    earlier: tuple[Turn, ...] = ()
    """(what was asked, what was replied) before."""
    begun: str = ""
    """The first words of the reply."""
    given: int = 0
    """Tokens of the answer that are shown; the rest is scored."""
    shows: Literal["", "choices", "answer"] = ""
    """"choices": {choices} in the prompt stands for the answer among wrong ones. "answer": {answer} stands for it, and
    the unit's name is scored, which must be the only one of whom that answer and the facts `beside` are true."""
    beside: tuple[Fact, ...] = ()
    """The facts that a prompt which shows the answer says as well."""


@runtime_checkable
class Wording(Protocol):
    """A condition that changes what is asked."""

    @property
    def along(self) -> str: ...

    @property
    def folds(self) -> int: ...

    def asked(self, question: Question, attacker: Attacker, encoder: Encoder) -> Words: ...


def silencing(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """The wordings: a model that knows may not answer in them, so the original has to be asked in the same words."""
    return {name: condition for name, condition in conditions.items() if isinstance(condition, Wording)}


@dataclass(frozen=True)
class Reworded:
    """The questions in other words."""

    sets: AskedSets
    left: Mapping[str, str]
    """Item that is not asked -> why."""

    def why(self, role: str) -> str:
        """The commonest reason for which items of a role are left out; "" where none are."""
        found = [reason for item, reason in self.left.items() if item.split("/")[0] == role]
        return max(found, key=found.count, default="")

    def sentence(self, row: str) -> str:
        """How many questions a row does not ask, why, and the first of them by name; "" where all are asked."""
        if not self.left:
            return ""
        reasons = Counter(self.left.values())
        why = "; ".join(f"{count}: {reason}" for reason, count in reasons.items())
        named = ", ".join(list(self.left)[:_NAMED])
        more = f" and {len(self.left) - _NAMED} more" if len(self.left) > _NAMED else ""
        of = len(self.left) + sum(map(len, self.sets.sets.values()))
        return f"row {row} leaves out {len(self.left)} of {of} questions ({why}), namely {named}{more}"


def reworded(wording: Wording, sets: AskedSets, encoder: Encoder, *, roles: Collection[str] = ROLES) -> Reworded:
    """Every question about the forgotten and about the control, in other words.

    Args:
        roles: those that are asked.
    Raises:
        NotMeasured: fewer units to be forgotten than the wording's parts.
        AskedOfNobody: a wording has reached for what is asked of the model.
    """
    facts = _Facts(sets)
    put: dict[str, Put] = {}
    left: dict[str, str] = {}
    for part in parts(sets, wording.folds):
        for role in roles:
            for kind in KINDS:
                asked = part.sets[f"{role}_{kind}"]

                def one(at: int, asked: Asked = asked, part: Half = part, role: str = role) -> Put:
                    words = wording.asked(facts.question(asked, at, role), part.attacker, encoder)
                    return facts.put(words, asked, at, encoder)

                found, why = each_put(asked, one)
                put, left = put | found, left | why
    names = [f"{role}_{kind}" for role in roles for kind in KINDS]
    return Reworded(AskedSets({name: in_other_words(sets[name], put) for name in names if len(sets[name])}), left)


Put = tuple[Example, str, str]
"""(tokens, prompt, what is scored)."""


def each_put(asked: Asked, put: Callable[[int], Put]) -> tuple[dict[str, Put], dict[str, str]]:
    """Item -> how it is put, and item -> why it cannot be; `put` is told the item's position."""
    found: dict[str, Put] = {}
    left: dict[str, str] = {}
    for at, item in enumerate(asked.items):
        try:
            found[item] = put(at)
        except NotMeasured as reason:
            left[item] = str(reason)
    return found, left


def in_other_words(asked: Asked, put: Mapping[str, Put]) -> Asked:
    """The items that are put in other words, in their order."""
    kept = [at for at, item in enumerate(asked.items) if item in put]
    found = [put[asked.items[at]] for at in kept]
    return replace(
        asked.only(kept),
        examples=tuple(example for example, _, _ in found),
        prompts=tuple(prompt for _, prompt, _ in found),
        answers=tuple(answer for _, _, answer in found),
    )


def encoded(words: Words, answer: str, encoder: Encoder) -> Put:
    """A question in its words, encoded anew as anybody would type it, and nothing of it cut.

    Raises:
        NotMeasured: no room in the context window, or an answer that is shown to its end.
    """
    try:
        example = encoder.dialogue(words.prompt, answer, earlier=words.earlier, begun=words.begun)
    except BadInput as error:
        raise NotMeasured(str(error)) from error
    if len(example.ids) > encoder.max_length:
        raise NotMeasured(f"does not fit into the context window of {encoder.max_length} tokens in these words")
    if not words.given:
        return example, words.prompt, answer
    if words.given >= len(example.answer_ids) - 1:  # its last is the end of text
        raise NotMeasured(f"the answer has no more than {words.given} tokens")
    example = Example(example.ids, example.labelled_from + words.given)
    rest = encoder.tokenizer.decode(example.answer_ids[:-1], skip_special_tokens=True).strip()
    return example, words.prompt, rest


class _Facts:
    """What is known of the units in the sets: their texts, wrong answers, and whose an answer is."""

    def __init__(self, sets: AskedSets) -> None:
        self.texts: dict[tuple[str, str], list[str]] = {}
        self.wrong: dict[str, tuple[str, ...]] = {}
        self.owners: dict[Fact, set[str]] = {}
        self.facts: dict[str, dict[str, str]] = {}
        self.names: dict[str, set[str]] = {}
        for name, asked in sets.sets.items():
            role, _, kind = name.partition("_")
            for at, unit in enumerate(asked.units):
                if kind == "texts":
                    self.texts.setdefault((role, unit), []).append(asked.answers[at])
                elif kind in KINDS and role != "lookalike":
                    self._learn(unit, relation_of(asked.records[at].fact) if asked.records else "", asked.answers[at])
            for record in asked.records:
                self.names.setdefault(record.unit, set()).update(*map(_words, (record.unit, *record.aliases)))
                self.wrong.setdefault(record.fact, record.wrong or ())
                if record.wrong:
                    self.wrong[record.fact] = record.wrong

    def _learn(self, unit: str, relation: str, answer: str) -> None:
        self.owners.setdefault((relation, answer.casefold()), set()).add(unit)
        if relation:
            self.facts.setdefault(unit, {}).setdefault(relation, answer)

    def _owners(self, facts: Sequence[Fact]) -> set[str]:
        """Of whom all of these are true. An answer whose relation is not known counts for every relation."""
        every = [
            self.owners.get((relation, answer.casefold()), set()) | self.owners.get(("", answer.casefold()), set())
            for relation, answer in facts
        ]
        return set.intersection(*every)

    def _tells(self, unit: str, name: str, text: str) -> bool:
        """Whether a text holds a word of a unit's name, so that the name could be copied from it."""
        return bool(_words(text) & (self.names.get(unit, set()) | _words(unit) | _words(name)))

    def _beside(self, unit: str, name: str, asked: Fact) -> tuple[Fact, ...]:
        """The fewest other facts of a unit that tell it from all others, in the order of the file; none names it."""
        facts = self.facts.get(unit, {}).items()
        others = [one for one in facts if one[0] != asked[0] and not self._tells(unit, name, one[1])]
        return next(
            (
                some
                for count in range(_MOST_BESIDE + 1)
                for some in itertools.combinations(others, count)
                if len(self._owners([asked, *some])) == 1
            ),
            (),
        )

    def question(self, asked: Asked, at: int, role: str) -> Question:
        """What a wording is told of an item."""
        unit, name = asked.units[at], asked.name_at(at)
        texts = self.texts.get(("forget" if role == "lookalike" else role, unit), [])
        allowed = [text for text in texts if not standing_alone(asked.answers[at].casefold()).search(text.casefold())]
        if role == "lookalike":
            allowed = [standing_alone(unit).sub(lambda _: name, text) for text in allowed] if name else []
        fact = asked.records[at].fact if asked.records else ""
        beside = self._beside(unit, name, (relation_of(fact), asked.answers[at])) if relation_of(fact) else ()
        return Question(asked.items[at], unit, fact, asked.prompts[at], name, tuple(allowed), bool(texts), beside)

    def put(self, words: Words, asked: Asked, at: int, encoder: Encoder) -> Put:
        """An item in its words. Raises NotMeasured: no wrong answers, an answer of several, no room."""
        prompt, answer = words.prompt, asked.answers[at]
        if words.shows == "choices":
            prompt = prompt.replace("{choices}", self._choices(asked, at))
        elif words.shows == "answer":
            prompt, answer = prompt.replace("{answer}", answer), self._only_owner(asked, at, words.beside)
        return encoded(replace(words, prompt=prompt), answer, encoder)

    def _choices(self, asked: Asked, at: int) -> str:
        """The answer among wrong ones, in an order of their hash, under letters."""
        wrong = self.wrong.get(asked.records[at].fact, ()) if asked.records else ()
        if not wrong:
            raise NotMeasured("the record has no 'wrong' answers to choose from")
        all_of_them = sorted({asked.answers[at], *wrong}, key=lambda choice: _hash(f"{asked.items[at]}/{choice}"))
        return "\n".join(f"{chr(ord('A') + place)}. {choice}" for place, choice in enumerate(all_of_them))

    def _only_owner(self, asked: Asked, at: int, beside: Sequence[Fact]) -> str:
        """The name that is asked for."""
        name = asked.name_at(at)
        if not name:
            raise NotMeasured("the question does not name its unit, so that nobody can be asked for")
        relation = relation_of(asked.records[at].fact) if asked.records else ""
        if len(self._owners([(relation, asked.answers[at]), *beside])) > 1:
            raise NotMeasured("the answer is that of several units, so that more than one name would be right")
        if self._tells(asked.units[at], name, asked.answers[at]):
            raise NotMeasured("the answer holds a part of the name that is asked for")
        return name


def _words(text: str) -> set[str]:
    """Its words in lower case, initials left out."""
    return {word for word in re.findall(r"\w+", text.casefold()) if len(word) > 1}


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def drawn(pool: Sequence[T], count: int, *, seed: int, item: str) -> list[T]:
    """`count` of a pool, without repeats, chosen by a hash of seed, item and place: the same wherever it runs."""
    ranked = sorted(range(len(pool)), key=lambda place: _hash(f"{seed}/{item}/{place}"))
    return [pool[place] for place in ranked[:count]]
