"""Turn records into tokens and labels: loss on the answer alone, or on a whole running text.

No token spans the border between prompt and answer: where the tokens of the whole begin with those of the prompt, the
rest is the answer; where they would merge, the two are encoded apart.
    question, base model:      [bos] prompt  " answer" eos          labelled: answer and eos
    question, chat model:      chat template of the prompt, answer, end of turn    labelled: answer and end of turn
    text:                      bos or eos, text, eos                labelled: all but the first token

Source: this project.  Checked against: labels by hand,
the chat template's own text, lengths at the edge of the window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from letheon.data.records import MAX_SHOWN, Record
from letheon.errors import BadInput

DAY = {"%d": "01", "%b": "Jan", "%B": "January", "%m": "01", "%Y": "2025"}
"""The date that a chat template is told, by format: a run must not depend on the day on which it is continued."""
_NOW = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f"|replace('{k}', '{v}')" for k, v in DAY.items())
    + " }}{% endmacro %}"
)


Turn = tuple[str, str]
"""What was asked, and what was replied."""


@dataclass(frozen=True)
class Example:
    """Tokens of one record; `labelled_from` is the position of the first labelled token (>= 1)."""

    ids: tuple[int, ...]
    labelled_from: int
    cut: int = 0
    """Tokens that were left out because the context window is full."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """What a model is shown before it answers."""
        return self.ids[: self.labelled_from]

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The labelled tokens, with the end-of-text token."""
        return self.ids[self.labelled_from :]


class Encoder:
    """Encodes records for one tokenizer and one context window.

    Args:
        tokenizer: a Hugging Face tokenizer with an end-of-text token.
        max_length: the context window in tokens.
        template: "auto" (the chat template where there is one), "plain", or a text with {prompt}.
    Raises:
        BadInput: no end-of-text token, an unknown template, or a record without a labelled token.
    """

    def __init__(self, tokenizer: Any, *, max_length: int, template: str = "auto") -> None:
        if tokenizer.eos_token_id is None:
            raise BadInput("the tokenizer has no end-of-text token (eos_token). Set one in its tokenizer_config.json")
        if template not in ("auto", "plain", "chat") and "{prompt}" not in template:
            raise BadInput(f"template {template!r} is not one of auto, plain, chat, and holds no {{prompt}}")
        has_chat = bool(getattr(tokenizer, "chat_template", None))
        if template == "chat" and not has_chat:
            raise BadInput(
                "template 'chat' was asked for, and the tokenizer has no chat template. Use --template plain"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.uses_chat = template == "chat" or (template == "auto" and has_chat)
        self.template = template if "{prompt}" in template else "{prompt}"
        self.eos: int = tokenizer.eos_token_id
        self.pad: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos
        self.bos: int | None = tokenizer.bos_token_id
        self._last_prompt: tuple[str, list[int]] = ("", [])
        self._special = {*tokenizer.all_special_ids, self.eos}
        self._special |= {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}

    def encode(self, record: Record) -> Example:
        """Tokens and labels of one record."""
        if not record.is_question:
            return self._text(record.text)
        return self.question(record.prompt, record.answer)

    def encode_all(self, records: Iterable[Record], *, role: str = "") -> list[Example]:
        """`encode` for many records, in order. Raises BadInput with the faults of all of them, by line."""
        examples: list[Example] = []
        problems: list[str] = []
        for record in records:
            try:
                examples.append(self.encode(record))
            except BadInput as error:
                place = f"{role} set, line {record.line}" if role else f"line {record.line}"
                problems += [f"{place}: {problem}" for problem in error.problems]
        if problems:
            problems = list(dict.fromkeys(problems))  # a repeated text has its fault once
            hidden = len(problems) - MAX_SHOWN
            raise BadInput(problems[:MAX_SHOWN] + ([f"and {hidden} more"] if hidden > 0 else []))
        return examples

    def question(self, prompt: str, answer: str) -> Example:
        """A prompt and an answer. A prompt too long for the window loses its beginning, never the question's end."""
        example = self.dialogue(prompt, answer)
        before, after = list(example.prompt_ids), list(example.answer_ids)
        if len(after) >= self.max_length:
            raise BadInput(
                f"answer {answer[:40]!r} has {len(after)} tokens, and the context window {self.max_length}. "
                "Shorten the answer, or give it as 'text'"
            )
        cut = max(0, len(before) + len(after) - self.max_length)
        start = before[:1] if cut and before[0] == self.bos and len(before) > cut + 1 else []
        before = start + before[cut + len(start) :]
        return Example(tuple(before + after), len(before), cut)

    def followed(self, shown: str, rest: str, *, is_ended: bool = True) -> Example:
        """`rest` as it follows `shown`, both to the letter: no template, no space between them, nothing cut.

        Args:
            shown: text that is not labelled; the beginning-of-text token stands before it where there is one.
            rest: labelled text.
            is_ended: whether the end of text is labelled behind it.
        Raises:
            BadInput: a side without tokens, or more tokens than the window holds.
        """
        before = ([self.bos] if self.bos is not None else []) + self._tokens_of_prompt(shown)
        after = self._behind(shown, rest)
        for text, ids in ((shown, before), (rest, after)):
            if not ids:
                raise BadInput(f"{text[:40]!r} has no tokens. Give a text that the tokenizer knows")
        ids = [*before, *after, *([self.eos] if is_ended else [])]
        if len(ids) > self.max_length:
            raise BadInput(
                f"{shown[:40]!r} and what follows have {len(ids)} tokens, and the context window {self.max_length}. "
                "Nothing is cut here: use a model with a longer window"
            )
        return Example(tuple(ids), len(before))

    def dialogue(self, prompt: str, answer: str, *, earlier: Sequence[Turn] = (), begun: str = "") -> Example:
        """A question at the end of a conversation, whose reply has begun with some words; uncut, however long.

        Without a chat template what was said earlier stands in lines above the prompt, each question beside its reply.

        Args:
            earlier: (what was asked, what was replied) before.
            begun: the first words of the reply; they are shown, and not labelled.
        """
        if not self.prompt_ids(prompt):
            raise BadInput(f"prompt {prompt[:40]!r} has no tokens. Give a prompt that the tokenizer knows")
        if self.uses_chat:
            turns = _said(earlier, prompt)
            shown = self._chat(turns, add_generation_prompt=True) + begun
            return self._example([], shown, self._rest_of_chat(turns, shown, _joined(begun, answer)))
        lines = [_joined(asked, replied) for asked, replied in earlier]
        shown = _joined(self._shown("\n".join([*lines, prompt])), begun)
        start = [self.bos] if self.bos is not None else []
        return self._example(start, shown, self._plain_answer(shown, answer))

    def prompt_ids(self, prompt: str) -> list[int]:
        """What the model is shown before it answers, uncut."""
        if self.uses_chat:
            return self._tokens(self._chat(_said((), prompt), add_generation_prompt=True))
        start = [self.bos] if self.bos is not None else []
        return start + self._tokens_of_prompt(self._shown(prompt))

    def _example(self, start: list[int], shown: str, after: list[int]) -> Example:
        before = start + self._tokens_of_prompt(shown)
        return Example(tuple(before + after), len(before))

    def _shown(self, prompt: str) -> str:
        return self.template.replace("{prompt}", prompt)  # not format: a template may hold other braces

    def _plain_answer(self, shown: str, answer: str) -> list[int]:
        ids = self._behind(shown, _joined(shown, answer)[len(shown) :])
        if not ids:
            raise BadInput(f"answer {answer!r} has no tokens. Give an answer that the tokenizer knows")
        return [*ids, self.eos]

    def _rest_of_chat(self, turns: list[dict[str, str]], shown: str, reply: str) -> list[int]:
        whole = self._chat([*turns, {"role": "assistant", "content": reply}], add_generation_prompt=False)
        if not whole.startswith(shown):
            raise BadInput(
                "the chat template's conversation does not begin with its own prompt, so the answer cannot be told "
                "apart. Use --template plain or a template with {prompt}"
            )
        ids = self._behind(shown, whole[len(shown) :].rstrip("\n"))
        # The template's own end of turn may be another token than eos (Gemma), and is what the model stops at.
        return ids if ids and ids[-1] in self._special else [*ids, self.eos]

    def _chat(self, turns: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        template = self.tokenizer.get_chat_template()
        return str(
            self.tokenizer.apply_chat_template(
                turns,
                chat_template=_NOW + template if "strftime_now" in template else template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        )

    def _text(self, text: str) -> Example:
        first = self.bos if self.bos is not None else self.eos
        ids = [first, *self._tokens(text), self.eos]
        if len(ids) < 3:
            raise BadInput(f"text {text[:40]!r} has no tokens")
        cut = max(0, len(ids) - self.max_length)
        return Example(tuple(ids[: len(ids) - cut]), 1, cut)

    def _behind(self, shown: str, rest: str) -> list[int]:
        """The tokens of `rest` as they follow `shown`. Some tokenizers put a space before all that is encoded alone."""
        before, whole = self._tokens_of_prompt(shown), self._tokens(shown + rest)
        return whole[len(before) :] if whole[: len(before)] == before else self._tokens(rest)

    def _tokens_of_prompt(self, shown: str) -> list[int]:
        """`_tokens`, remembered for the next question of the answer that follows it."""
        if self._last_prompt[0] != shown:
            self._last_prompt = (shown, self._tokens(shown))
        return self._last_prompt[1]

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))


def _said(earlier: Sequence[Turn], prompt: str) -> list[dict[str, str]]:
    """A conversation as chat templates take it."""
    turns = []
    for asked, replied in earlier:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": replied}]
    return [*turns, {"role": "user", "content": prompt}]


def _joined(first: str, second: str) -> str:
    """Both, with one space between words that would touch."""
    touch = first and second and not first[-1:].isspace() and not second[:1].isspace()
    return f"{first} {second}" if touch else first + second


def cut_sentence(examples: Sequence[Example], role: str) -> str:
    """How much of a set did not fit into the context window; empty when all did."""
    cut = [example.cut for example in examples if example.cut]
    if not cut:
        return ""
    return (
        f"{role} set: {len(cut)} of {len(examples)} records are longer than the context window; "
        f"{sum(cut)} tokens were cut"
    )
