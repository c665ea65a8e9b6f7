"""What is true of the unit, and is not the answer, before the question: its own texts.

    p(answer | texts about the unit, prompt)
A context brings back what is known beside it. Texts of the same unit from the same set stand before the question;
those that hold the answer are left out, since with them the question could be read off. A unit without other texts is
left out by name. The control is asked with its own texts, look-alike questions with the same texts under their names.

Source: in-context relearning, Lynch et al. 2024, arXiv:2402.16835.
Checked against: no text that holds the answer, texts of no other unit, a model that answers behind a context only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from letheon.audits.attacker import Attacker
from letheon.audits.wordings import Question, Words
from letheon.data.encode import Encoder
from letheon.errors import NotMeasured, require


@dataclass(frozen=True, kw_only=True)
class InContext:
    """Settings of the attack."""

    texts: tuple[int, ...] = (1,)
    """Most texts before a question, each > 0: a row of the matrix for each."""

    along: ClassVar[str] = "texts"
    folds: ClassVar[int] = 0

    def __post_init__(self) -> None:
        usable = len(self.texts) > 0 and min(self.texts) > 0 and len(set(self.texts)) == len(self.texts)
        require(usable, f"in_context needs different numbers of texts > 0, got {list(self.texts)}")

    @property
    def provenance(self) -> str:
        """One line for the report."""
        most = ", ".join(map(str, self.texts))
        return f"at most {most} texts about the unit without the answer before every question; weights as they are"

    def asked(self, question: Question, attacker: Attacker, encoder: Encoder) -> Words:
        """The question behind texts. Raises NotMeasured: there is none that may stand there."""
        if not question.texts:
            reason = "every text about the unit holds the answer" if question.has_texts else "there is no text"
            raise NotMeasured(f"{reason}, so that no context can be given without it")
        return Words("\n".join([*question.texts[: self.texts[0]], question.prompt]))
