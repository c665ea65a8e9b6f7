"""The forms in which a benchmark shows a question. What is labelled, and what a model goes on from, depends on them.

    chat     the tokenizer's chat template
    llama2   "[INST] {q} [/INST]" | "{a}"             no space between, as TOFU has it
    base     "Question: {q}\\nAnswer:" | " {a}"
    phi      "Question: {q}\\n" | "Answer: {a}"        TOFU's code for base models: the tag is labelled too
    plain    "{q}" | " {a}"                           how letheon trains a model without a chat template
Left of the bar is shown, right of it labelled, with the end of text (of the turn) behind.

Source: TOFU's model_config.yaml and data_module.py.  Checked against: the text that the tokens decode to.
"""

from __future__ import annotations

from typing import Literal

from letheon.data.encode import Encoder, Example
from letheon.errors import BadInput

Form = Literal["auto", "chat", "llama2", "base", "phi", "plain"]
"""auto: chat where the tokenizer has a template, else base."""

_FORMS = {
    "llama2": ("[INST] {q} [/INST]", "{a}"),
    "base": ("Question: {q}\nAnswer:", " {a}"),
    "phi": ("Question: {q}\n", "Answer: {a}"),
    "plain": ("{q}", " {a}"),
}


def resolved(form: Form, encoder: Encoder) -> str:
    """The form without "auto". Raises BadInput: chat without a chat template."""
    if form == "chat" and not encoder.uses_chat:
        raise BadInput("the chat form was asked for, and the tokenizer has no chat template. Use base or plain")
    return ("chat" if encoder.uses_chat else "base") if form == "auto" else form


def question(encoder: Encoder, form: str, asked: str, answer: str) -> Example:
    """A question and an answer in a resolved form. Raises BadInput: no tokens, or more than the window holds."""
    if form != "chat":
        shown, rest = _FORMS[form]
        return encoder.followed(shown.replace("{q}", asked), rest.replace("{a}", answer))
    example = encoder.question(asked, answer)
    if example.cut:
        raise BadInput(
            f"{asked[:40]!r} and its answer are {example.cut} tokens longer than the context window "
            f"{encoder.max_length}. Nothing is cut here: use a model with a longer window"
        )
    return example
