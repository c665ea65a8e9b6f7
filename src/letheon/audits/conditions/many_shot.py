"""Questions with their answers before the question: a long example of somebody who simply answers.

    p(answer | prompt_1 answer_1 ... prompt_k answer_k prompt)      k: a row of the matrix for each
The examples are retained questions, or (`of: learned`) questions about one half of the forgotten people while the other
half is asked, both ways round. None is about the unit that is asked, nor says its name. They are drawn for each
question from the seed; those of a smaller k are the first of a larger one. Where there are too few of them, or where
they do not fit into the context window, the question is left out by name.

Source: many-shot jailbreaking, Anil et al. 2024; in-context relearning, Lynch et al. 2024, arXiv:2402.16835.
Checked against: k = 0 = the plain question to the bit, nobody among the examples who is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from letheon.audits.attacker import Attacker
from letheon.audits.wordings import Question, Words, drawn
from letheon.data.encode import Encoder
from letheon.errors import NotMeasured, require


@dataclass(frozen=True, kw_only=True)
class ManyShot:
    """Settings of the attack."""

    shots: tuple[int, ...] = (4, 16)
    """k, examples, each >= 0: a row of the matrix for each."""
    of: Literal["retain", "general", "learned"] = "retain"
    """Whose questions are the examples."""
    seed: int = 0
    """Of the draw."""

    along: ClassVar[str] = "shots"

    def __post_init__(self) -> None:
        usable = len(self.shots) > 0 and min(self.shots) >= 0 and len(set(self.shots)) == len(self.shots)
        require(usable, f"many_shot needs different shots >= 0, got {list(self.shots)}")
        require(self.seed >= 0, f"many_shot needs seed >= 0, got {self.seed}")

    @property
    def folds(self) -> int:
        """2 where the examples are about forgotten people, so that nobody is an example and asked."""
        return 2 if self.of == "learned" else 0

    @property
    def provenance(self) -> str:
        """One line for the report."""
        whose = "about one half of the people to be forgotten" if self.of == "learned" else f"of the {self.of} set"
        counts = ", ".join(map(str, self.shots))
        return f"{counts} questions {whose} with their answers before every question, seed {self.seed}; weights as is"

    def asked(self, question: Question, attacker: Attacker, encoder: Encoder) -> Words:
        """The question behind k others. Raises NotMeasured: fewer than k."""
        (count,) = self.shots
        if count == 0:
            return Words(question.prompt)
        others = [
            one
            for one in attacker.solved(self.of)
            if question.unit != one.unit
            and not any(name and name in f"{one.prompt} {one.answer}" for name in (question.unit, question.name))
        ]
        if len(others) < count:
            raise NotMeasured(f"needs {count} {self.of} questions about others, and there are {len(others)}")
        chosen = drawn(others, count, seed=self.seed, item=question.item)
        return Words(question.prompt, earlier=tuple((one.prompt, one.answer) for one in chosen))
