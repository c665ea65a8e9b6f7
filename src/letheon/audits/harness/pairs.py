"""Questions as the texts that lm-evaluation-harness takes, proven to become the very tokens that a benchmark asks.

lm-evaluation-harness takes a context and a continuation, both text, and encodes them by rules of its own:
    a text that begins with the beginning-of-text token gets no other; any other gets what the tokenizer adds
    space at the end of the context is moved to the continuation, and is scored with it
    the continuation's tokens are those of the whole behind as many as the context alone has
So a question is written as the text of its tokens, the end of text among them, and encoded again by these rules. Where
other tokens come out it is refused: a number of other tokens would be another number. Space at the end of a prompt
(chat templates end in a line end) is asked by itself as well, and its log-probability taken off.

Source: lm-evaluation-harness 0.4.13 (TemplateLM._encode_pair, HFLM.tok_encode and tok_batch_encode).
Checked against: the tokens that HFLM itself makes, on tokenizers with and without a beginning, and with a template.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from letheon.data.encode import Example
from letheon.errors import BadInput


@dataclass(frozen=True)
class Pair:
    """An answer behind its prompt, as text."""

    context: str
    continuation: str
    """The answer with the end of text."""
    space: str
    """The white space at the context's end, which is scored with the continuation; mostly none."""
    tokens: int
    """Labelled tokens: those of the continuation without the space."""


def as_pair(tokenizer: Any, example: Example) -> Pair:
    """An example as texts. Raises BadInput where lm-evaluation-harness would ask other tokens, or score others."""
    context, whole = _text(tokenizer, example.prompt_ids), _text(tokenizer, example.ids)
    rest = whole[len(context) :] if whole.startswith(context) else _text(tokenizer, example.answer_ids)
    stripped = context.rstrip()
    space = context[len(stripped) :]
    found = [*encode_pair(tokenizer, context, rest)] if stripped else [[], []]
    before = [*found[0], *encode_pair(tokenizer, stripped, space)[1]] if space and stripped else found[0]
    if [*found[0], *found[1]] != [*example.ids] or before != [*example.prompt_ids]:
        raise BadInput(
            f"{rest[:40]!r} behind its prompt becomes other tokens in lm-evaluation-harness, which encodes both as one "
            "text. With this tokenizer that number cannot be had there: use letheon benchmark"
        )
    return Pair(context, rest, space, len(example.answer_ids))


def as_prompt(tokenizer: Any, ids: Sequence[int]) -> str:
    """A prompt to be continued, as text. Raises BadInput where lm-evaluation-harness would show other tokens."""
    text = _text(tokenizer, ids)
    if encode_prompt(tokenizer, text) != [*ids]:
        raise BadInput(
            f"the prompt that ends in {text[-40:]!r} becomes other tokens in lm-evaluation-harness. With this "
            "tokenizer its answer cannot be had there: use letheon benchmark"
        )
    return text


def encode_pair(
    tokenizer: Any, context: str, continuation: str, *, add_bos: bool | None = None
) -> tuple[list[int], list[int]]:
    """(tokens of the context, tokens that are scored), as lm-evaluation-harness has them.

    Args:
        tokenizer: of the model.
        context: empty: the continuation follows the beginning-of-text token (or the end of text, where there is none).
        continuation: what is scored.
        add_bos: its model argument add_bos_token.
    """
    if not context:
        first, ids = _first(tokenizer), list(tokenizer.encode(continuation, add_special_tokens=False, verbose=False))
        return (ids[:1], ids[1:]) if ids[:1] == [first] else ([first], ids)
    stripped = context.rstrip()
    continuation, context = context[len(stripped) :] + continuation, stripped
    before = encode_text(tokenizer, context, add_bos=add_bos)
    return before, encode_text(tokenizer, context + continuation, add_bos=add_bos)[len(before) :]


def encode_text(tokenizer: Any, text: str, *, add_bos: bool | None = None) -> list[int]:
    """The tokens of a text that is scored."""
    if text.startswith(tokenizer.decode(_first(tokenizer))):
        add_bos = False
    return _encoded(tokenizer, text, add_bos)


def encode_prompt(tokenizer: Any, text: str, *, add_bos: bool | None = None) -> list[int]:
    """The tokens of a prompt that is continued."""
    begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    return _encoded(tokenizer, text, False if begins else add_bos)


def encode_rolling(tokenizer: Any, text: str, *, add_bos: bool | None = None) -> list[int]:
    """The tokens of a text that is scored as a whole: the first of them is not."""
    return [_first(tokenizer), *encode_text(tokenizer, text, add_bos=add_bos)]


def fingerprint(tokenizer: Any, docs: Sequence[Mapping[str, Any]], *, add_bos: bool | None = None) -> str:
    """Hash of every token that these questions become with a tokenizer: another tokenizer, another hash.

    Args:
        tokenizer: of the model.
        docs: rows of a task's file: `context`, `continuations`, `space`, `room`.
        add_bos: as in `encode_pair`.
    """
    made: list[Any] = []
    for doc in docs:
        context = doc["context"]
        made += [encode_pair(tokenizer, context, one, add_bos=add_bos) for one in doc["continuations"]]
        if doc["space"]:
            made.append(encode_pair(tokenizer, context.rstrip(), doc["space"], add_bos=add_bos))
        if doc["room"]:
            made.append(encode_prompt(tokenizer, context, add_bos=add_bos))
    return hashlib.sha256(json.dumps(made).encode()).hexdigest()


def _first(tokenizer: Any) -> int:
    return int(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)


def _encoded(tokenizer: Any, text: str, add_bos: bool | None) -> list[int]:
    how = {} if add_bos is None else {"add_special_tokens": add_bos}
    return list(tokenizer.encode(text, verbose=False, **how))


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
