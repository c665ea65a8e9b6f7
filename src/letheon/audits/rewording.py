"""The same questions in other words: what stands before or behind each prompt is written there by an attacker.

An attack that finds words gives `then` a `Rewording`, a function of a prompt and of nothing else, and everything that
is asked next is asked in its words, put as a wording's are (see `wordings`): prompt and answer are encoded anew, so the
tokens that are scored are those of the text, whatever tokens the attack had in mind. Running texts have no prompt, and
are not asked.

Source: this project.  Checked against: the encoder on the longer prompt, no words = the same questions, a full window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from letheon.audits.asked import Asked, AskedSets
from letheon.audits.wordings import Put, Words, each_put, encoded, in_other_words
from letheon.data.encode import Encoder
from letheon.errors import NotMeasured

Place = Literal["suffix", "prefix"]
Rewording = Callable[[str], str]
"""A prompt -> what is asked in its place."""


@dataclass(frozen=True)
class Beside:
    """A text behind every prompt, or before it.

    >>> Beside("now!", "suffix")("Who is Ann?"), Beside("", "prefix")("Who is Ann?")
    ('Who is Ann? now!', 'Who is Ann?')
    """

    text: str
    place: Place

    def __call__(self, prompt: str) -> str:
        """The prompt with the text, a space between them where neither has one."""
        first, second = (prompt, self.text) if self.place == "suffix" else (self.text, prompt)
        is_apart = not first or not second or first[-1].isspace() or second[0].isspace()
        return first + second if is_apart else f"{first} {second}"


def reworded(sets: AskedSets, rewording: Rewording, encoder: Encoder) -> AskedSets:
    """The questions of all sets in other words; the texts left out.

    Raises:
        NotMeasured: a question that does not fit into the context window in its new words.
    """
    return AskedSets(
        {name: _in_words(one, rewording, encoder) for name, one in sets.sets.items() if not name.endswith("_texts")}
    )


def _in_words(asked: Asked, rewording: Rewording, encoder: Encoder) -> Asked:
    def one(at: int) -> Put:
        return encoded(Words(rewording(asked.prompts[at])), asked.answers[at], encoder)

    put, left = each_put(asked, one)
    if left:  # one string for everybody: a row without some of them would be another one
        item, reason = next(iter(left.items()))
        raise NotMeasured(
            f"the attacker's words leave no room for a question of {asked.name} in a window of "
            f"{encoder.max_length} tokens ({len(left)} of {len(asked)}, {item} the first: {reason})"
        )
    return in_other_words(asked, put)
