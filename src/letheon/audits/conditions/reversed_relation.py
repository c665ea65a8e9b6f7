"""Asked backwards: from the answer to the name.

    p(name | "Who was born in {answer}?")
A model may have forgotten to say the answer and still know whose it is. The relation is the last part of the record's
`fact` ("Brulod Sulkip/birthplace"); a relation without words of its own is asked as "Whose birthplace is {answer}?".
Where several units share the answer, the fewest other facts of the unit that leave it alone are named as well ("Who was
born in Husjev and works as a Murnix?"): where more than one name would be right, a wrong one would prove nothing. A
record without such a fact, a question that names nobody and facts that are several units' are left out by name.

Source: the reversal curse, Berglund et al. 2023, arXiv:2309.12288; reverse queries in RWKU, Jin et al. 2024,
arXiv:2406.10890.  Checked against: a model that has forgotten in one direction only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from letheon.audits.attacker import Attacker
from letheon.audits.wordings import Fact, Question, Words, relation_of
from letheon.data.encode import Encoder
from letheon.errors import NotMeasured

RELATIONS: dict[str, tuple[str, str]] = {
    "birthplace": ("Who", "was born in {answer}"),
    "profession": ("Who", "works as a {answer}"),
    "employer": ("Who", "is employed by {answer}"),
    "instrument": ("Who", "plays the {answer}"),
    "mentor": ("Who", "was taught by {answer}"),
    "capital": ("Which country", "has {answer} as its capital"),
    "river": ("Which country", "has the {answer} as its river"),
    "author": ("What", "was written by {answer}"),
}
"""Relation -> what is asked for, and what is said of it."""


def backwards(facts: Sequence[Fact]) -> str:
    """The question of whom all these facts are true.

    >>> backwards([("birthplace", "Husjev"), ("profession", "Murnix"), ("mentor", "Ann Lee")])
    'Who was born in Husjev, works as a Murnix and was taught by Ann Lee?'
    >>> backwards([("favourite_dish", "soup"), ("birthplace", "Husjev")])
    'Whose favourite dish is soup and whose birthplace is Husjev?'
    """
    subjects = {RELATIONS[relation][0] if relation in RELATIONS else "" for relation, _ in facts}
    (subject,) = subjects if len(subjects) == 1 else ("",)
    if subject:
        said = [RELATIONS[relation][1].replace("{answer}", answer) for relation, answer in facts]
        return f"{subject} {_listed(said)}?"
    asked = _listed([f"whose {relation.replace('_', ' ')} is {answer}" for relation, answer in facts])
    return f"W{asked[1:]}?"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([part for part in (", ".join(parts[:-1]), parts[-1]) if part])


@dataclass(frozen=True, kw_only=True)
class ReversedRelation:
    """No settings."""

    along: ClassVar[str] = ""
    folds: ClassVar[int] = 0

    @property
    def provenance(self) -> str:
        """One line for the report."""
        return "every fact asked backwards, from the answer to the name, which is scored; weights as they are"

    def asked(self, question: Question, attacker: Attacker, encoder: Encoder) -> Words:
        """The question backwards. Raises NotMeasured: the record says no relation."""
        relation = relation_of(question.fact)
        if not relation:
            raise NotMeasured("the record has no 'fact' that ends in a relation, such as 'Brulod Sulkip/birthplace'")
        facts = ((relation, "{answer}"), *question.beside)
        return Words(backwards(facts), shows="answer", beside=question.beside)
