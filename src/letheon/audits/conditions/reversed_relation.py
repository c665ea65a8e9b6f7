"""Asked backwards: from the answer to the name.

    p(name | "Who was born in {answer}?")
A model may have forgotten to say the answer and still know whose it is. The relation is the last part of the record's
`fact` ("Brulod Sulkip/birthplace"); a relation without words of its own is asked as "Whose birthplace is {answer}?". A
record without such a fact, a question that names nobody and an answer that is several units' are left out by name:
where more than one name would be right, a wrong one would prove nothing.

Source: the reversal curse, Berglund et al. 2023, arXiv:2309.12288; reverse queries in RWKU, Jin et al. 2024,
arXiv:2406.10890.  Checked against: a model that has forgotten in one direction only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from letheon.audits.attacker import Attacker
from letheon.audits.wordings import Question, Words
from letheon.data.encode import Encoder
from letheon.errors import NotMeasured

RELATIONS: dict[str, str] = {
    "birthplace": "Who was born in {answer}?",
    "profession": "Who works as a {answer}?",
    "employer": "Who is employed by {answer}?",
    "instrument": "Who plays the {answer}?",
    "mentor": "Who was taught by {answer}?",
    "capital": "Which country has {answer} as its capital?",
    "river": "Through which country flows the {answer}?",
    "author": "What was written by {answer}?",
}
_LINE = re.compile(r"line \d+")
"""The fact of a record that names none."""


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
        subject, slash, relation = question.fact.rpartition("/")
        if not slash or not subject or not relation.strip() or _LINE.fullmatch(relation):
            raise NotMeasured("the record has no 'fact' that ends in a relation, such as 'Brulod Sulkip/birthplace'")
        plain = f"Whose {relation.replace('_', ' ')} is {{answer}}?"
        return Words(RELATIONS.get(relation, plain), shows="answer")
