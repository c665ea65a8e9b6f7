"""A string of n tokens behind some questions, or before them, such that typing its text gives these tokens again.

    tokens of (prompt + text(s), answer) = before + s + after        for every question, with the same before and after
A search for tokens finds many strings that no text gives: their characters merge into other tokens when they are typed.
Such a string is a score of nothing that could be asked, so none is ever kept.

Source: GCG, Zou et al. 2023, arXiv:2307.15043 (its filter; here with the questions around the string).
Checked against: the encoder on the longer prompt, with templates of both kinds, tokens that merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from letheon.audits.attacker import Attacker, Solved
from letheon.audits.rewording import Beside, Place
from letheon.data.encode import Encoder, Example
from letheon.data.sampling import sample
from letheon.errors import NotMeasured

Tokens = tuple[int, ...]
_MARKER = "qzqz"
_TRIES = 2000
_DRAWS = 8


@dataclass(frozen=True)
class Slot:
    """One question with room for the string."""

    before: Tokens
    after: Tokens
    """What follows the string: the rest of the prompt, and the answer."""
    rest: int
    """Tokens of `after` that are not the answer's."""

    def filled(self, tokens: Sequence[int]) -> Example:
        """The question with the string in its place."""
        return Example((*self.before, *tokens, *self.after), len(self.before) + len(tokens) + self.rest)


class Strings:
    """The strings of n tokens that can be typed into some questions.

    Args:
        encoder: of the attacked model.
        wordings: (prompt, answer) of the questions.
        place: "suffix" or "prefix".
        count: n.
        seed: of the string to begin with: one token, repeated.
    Raises:
        NotMeasured: no string was found that could be typed.
    """

    def __init__(
        self, encoder: Encoder, wordings: Sequence[tuple[str, str]], place: Place, count: int, *, seed: int
    ) -> None:
        self.encoder, self.wordings, self.place = encoder, wordings, place
        self.first, self.slots = self._begin(count, seed)

    @cached_property
    def allowed(self) -> Int[Tensor, " allowed"]:
        """Tokens that stand for printable ASCII characters."""
        tokenizer = self.encoder.tokenizer
        kept = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids) - set(tokenizer.added_tokens_decoder))
        texts = tokenizer.batch_decode([[token] for token in kept], clean_up_tokenization_spaces=False)
        found = [
            token for token, text in zip(kept, texts, strict=True) if text and text.isascii() and text.isprintable()
        ]
        if not found:
            raise NotMeasured("the tokenizer has no token of printable ASCII characters")
        return torch.tensor(found)

    def text(self, tokens: Sequence[int]) -> str:
        """What is typed."""
        return str(self.encoder.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def can_be_typed(self, tokens: Sequence[int]) -> bool:
        """Whether the text of the tokens gives them again, in every question."""
        typed = Beside(self.text(tokens), self.place)
        return all(
            self.encoder.question(typed(prompt), answer).ids == slot.filled(tokens).ids
            for slot, (prompt, answer) in zip(self.slots, self.wordings, strict=True)
        )

    def surviving(self, candidates: Sequence[Tokens] | Int[Tensor, "candidates n"]) -> Bool[Tensor, " candidates"]:
        """Which of the strings can be typed into the first question: all are looked at in one go."""
        slot, (prompt, _) = self.slots[0], self.wordings[0]
        shown = slot.after[: slot.rest]
        rows = [list(map(int, tokens)) for tokens in candidates]
        texts = self.encoder.tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
        typed = [Beside(text, self.place)(prompt) for text in texts]
        return torch.tensor(
            [
                tuple(found) == (*slot.before, *tokens, *shown)
                for found, tokens in zip(self._prompt_ids(typed), rows, strict=True)
            ],
            dtype=torch.bool,
        )

    def varied(self, *, seed: int) -> Tokens:
        """A string of as many tokens drawn one by one, each the first of eight draws with which it can be typed."""
        random, string = torch.Generator().manual_seed(seed), self.first
        for place in range(len(string)):
            drawn = self.allowed[torch.randint(len(self.allowed), (_DRAWS,), generator=random)].tolist()
            near = [(*string[:place], token, *string[place + 1 :]) for token in drawn]
            string = next((one for one in near if self.can_be_typed(one)), string)
        return string

    # --- inside

    def _prompt_ids(self, prompts: list[str]) -> list[list[int]]:
        """`Encoder.prompt_ids` of many prompts, by one call of the tokenizer where that is the same."""
        if self._frame is None:
            return [self.encoder.prompt_ids(prompt) for prompt in prompts]
        return self._framed(prompts, *self._frame)

    @cached_property
    def _frame(self) -> tuple[str, str] | None:
        """What a template, and the token for the beginning, put around a prompt."""
        shown = self.encoder.tokenizer.decode(self.encoder.prompt_ids(_MARKER), clean_up_tokenization_spaces=False)
        head, found, tail = shown.partition(_MARKER)
        prompt = Beside(self.text(self.first), self.place)(self.wordings[0][0])
        is_same = bool(found) and self._framed([prompt], head, tail) == [self.encoder.prompt_ids(prompt)]
        return (head, tail) if is_same else None

    def _framed(self, prompts: list[str], head: str, tail: str) -> list[list[int]]:
        whole = [f"{head}{prompt}{tail}" for prompt in prompts]
        return [list(ids) for ids in self.encoder.tokenizer(whole, add_special_tokens=False)["input_ids"]]

    def _begin(self, count: int, seed: int) -> tuple[Tokens, list[Slot]]:
        order = torch.randperm(len(self.allowed), generator=torch.Generator().manual_seed(seed))[:_TRIES]
        for token in self.allowed[order].tolist():
            tokens = (token,) * count
            typed = Beside(self.text(tokens), self.place)
            slots = [self._slot(typed(prompt), answer, tokens) for prompt, answer in self.wordings]
            if all(slot is not None for slot in slots):
                return tokens, [slot for slot in slots if slot is not None]
        raise NotMeasured(f"no token was found that stays {count} tokens when it is typed {count} times")

    def _slot(self, prompt: str, answer: str, tokens: Tokens) -> Slot | None:
        """Where the tokens stand in a question; None where they do not."""
        example = self.encoder.question(prompt, answer)
        places = range(example.labelled_from - len(tokens) + 1)
        order = reversed(places) if self.place == "suffix" else places
        found = next((at for at in order if example.ids[at : at + len(tokens)] == tokens), None)
        if found is None or example.cut:
            return None
        end = found + len(tokens)
        return Slot(example.ids[:found], example.ids[end:], example.labelled_from - end)


def learned_questions(
    attacker: Attacker, encoder: Encoder, *, room: int, count: int, seed: int
) -> list[tuple[str, str]]:
    """The questions of V that a string is for, (prompt, answer): one of each unit first.

    Args:
        room: tokens that must fit beside each of them.
        count: most questions.
        seed: of the draw.
    Raises:
        NotMeasured: no question leaves room.
    """

    def fits(one: Solved) -> bool:
        example = encoder.question(one.prompt, one.answer)
        # One more than the string: a space may be a token.
        return not example.cut and len(example.ids) + room < encoder.max_length

    asked = [one for one in attacker.solved("learned") if fits(one)]
    if not asked:
        raise NotMeasured(f"no learned question leaves room for {room} tokens in a window of {encoder.max_length}")
    places = sample([one.unit for one in asked], [f"{seed}/{number}" for number in range(len(asked))], count)
    return [(asked[place].prompt, asked[place].answer) for place in places]
