"""The question inside a sentence of another language; the answer is scored as the record has it.

    p(answer | carrier(prompt))     a row of the matrix for each language
A refusal that was learned in one language need not hold in another one. Phrases are a short table (phrases.yaml); the
question itself is not translated, so this is what an attacker without a translator can do. Answers in another form of
the other language are wrong here, for the control as well.

Source: low-resource languages jailbreak, Yong et al. 2023, arXiv:2310.02446; cross-lingual probes of RWKU, Jin et al.
2024, arXiv:2406.10890.  Checked against: every phrase of the table, a model that answers in one language only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import yaml

from letheon.audits.attacker import Attacker
from letheon.audits.wordings import Question, Words
from letheon.data.encode import Encoder
from letheon.errors import UnknownName, require

_TABLE = Path(__file__).parent.parent / "phrases.yaml"


@dataclass(frozen=True, kw_only=True)
class Language:
    """Settings of the attack."""

    languages: tuple[str, ...] = ("german", "french", "spanish", "italian")
    """Languages of the table, a row of the matrix for each."""

    along: ClassVar[str] = "languages"
    folds: ClassVar[int] = 0

    def __post_init__(self) -> None:
        require(
            len(self.languages) > 0 and len(set(self.languages)) == len(self.languages),
            f"language needs different languages, got {list(self.languages)}",
        )
        for name in self.languages:
            if name not in phrases():
                raise UnknownName(name, phrases(), what="a language of the table")

    @property
    def provenance(self) -> str:
        """One line for the report."""
        return (
            f"every question inside a sentence of another language ({', '.join(self.languages)}); weights as they are"
        )

    def asked(self, question: Question, attacker: Attacker, encoder: Encoder) -> Words:
        """The question inside the phrase."""
        return Words(phrases()[self.languages[0]].replace("{prompt}", question.prompt))


@cache
def phrases() -> dict[str, str]:
    """Language -> its carrier phrase."""
    found: dict[str, str] = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return found
