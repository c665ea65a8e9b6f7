"""Answers that are read off a model instead of being said by it: one of several, for each question.

    accuracy = the likeliest of the reader's choices is the answer, token by token, its end of text among them
A reader is given the prompts alone and names its choices itself, so that it cannot learn the answers which it is scored
on. An answer that is not among the choices is a wrong one. What needs words or log-probabilities of tokens (the
continuation of a text, a sampled answer) a reader cannot give, and these columns are not measured.

Source: this project.  Checked against: a scripted reader, an answer that is no choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from letheon.audits.asked import AskedSets
from letheon.audits.columns import Scores
from letheon.errors import NotMeasured

Tokens = tuple[int, ...]
READ = {"forget_accuracy": "questions", "forget_accuracy_held_out": "held_out"}
"""Column that a reader can fill -> what is asked."""


@dataclass(frozen=True)
class Choices:
    """What a reader says to some prompts."""

    answers: Sequence[Tokens]
    """The choices, with their end of text."""
    scores: Float[NDArray[np.float64], "prompts answers"]
    """The higher, the likelier."""


Reader = Callable[[Sequence[Tokens]], Choices]
"""Prompts, as tokens -> choices."""


def read_column(column: str, sets: AskedSets, reader: Reader, *, role: str) -> Scores:
    """One column of the matrix: 1 where the likeliest choice is the answer, else 0.

    Raises:
        NotMeasured: a column that a reader cannot fill, nothing to ask, or scores that are not finite.
    """
    if column not in READ:
        raise NotMeasured("what is read off hidden states is one of several answers, and no text or probability")
    asked = sets[f"{role}_{READ[column]}"]
    if not len(asked):
        raise NotMeasured(f"there is nothing to ask for {column} ({role} set)")
    found = reader([example.prompt_ids for example in asked.examples])
    if found.scores.shape != (len(asked), len(found.answers)) or not np.isfinite(found.scores).all():
        raise NotMeasured(f"what was read for {column} is not one finite score a choice")
    given = [tuple(found.answers[place]) for place in found.scores.argmax(1)]
    right = [float(one == example.answer_ids) for one, example in zip(given, asked.examples, strict=True)]
    return Scores(asked.items, asked.units, right)
