"""What is shown, what is labelled, and that nothing is added or cut."""

from __future__ import annotations

import pytest

from letheon.audits.question_forms import question, resolved
from letheon.data.encode import Encoder
from letheon.errors import BadInput
from tests.toys import bos_tokenizer, chat_tokenizer, tokenizer

FORMS = {
    "llama2": ("[INST] Who is it? [/INST]", "Bru Dax"),
    "base": ("Question: Who is it?\nAnswer:", " Bru Dax"),
    "phi": ("Question: Who is it?\n", "Answer: Bru Dax"),
    "plain": ("Who is it?", " Bru Dax"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("has_bos", [False, True])
def test_a_form_is_its_text_and_one_end_is_labelled(form: str, has_bos: bool) -> None:
    coder = Encoder(bos_tokenizer() if has_bos else tokenizer(), max_length=128)
    example = question(coder, form, "Who is it?", "Bru Dax")
    shown = list(example.prompt_ids)
    if has_bos:
        assert shown.pop(0) == coder.bos
    assert (coder.tokenizer.decode(shown), coder.tokenizer.decode(example.answer_ids[:-1])) == FORMS[form]
    assert example.answer_ids[-1] == coder.eos and coder.eos not in example.answer_ids[:-1]
    # The tokens are those of the whole text, not of its parts.
    whole = coder.tokenizer.encode("".join(FORMS[form]), add_special_tokens=False)
    assert [*shown, *example.answer_ids[:-1]] == whole


def test_chat_is_the_template_with_its_own_end_of_turn() -> None:
    coder = Encoder(chat_tokenizer(), max_length=128)
    assert resolved("auto", coder) == "chat"
    example = question(coder, "chat", "Who is it?", "Bru")
    assert coder.tokenizer.decode(example.answer_ids) == "Bru<|im_end|>"


def test_auto_without_a_template_is_base_and_chat_is_refused() -> None:
    coder = Encoder(tokenizer(), max_length=128)
    assert resolved("auto", coder) == "base" and resolved("phi", coder) == "phi"
    with pytest.raises(BadInput, match="no chat template"):
        resolved("chat", coder)


@pytest.mark.parametrize("form", [*FORMS, "chat"])
def test_nothing_is_cut(form: str) -> None:
    coder = Encoder(chat_tokenizer(), max_length=24)
    with pytest.raises(BadInput, match="window"):
        question(coder, form, "Who is it? " * 30, "Bru")
