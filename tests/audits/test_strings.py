"""Strings that can be typed: what the encoder makes of the text is what the search has scored."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from letheon.audits.rewording import Beside
from letheon.audits.strings import Strings
from letheon.data.encode import Encoder
from letheon.errors import NotMeasured
from tests.toys import bos_tokenizer, chat_tokenizer, encoder, tokenizer

PAIRS = [("Who is Ann?", "a baker"), ("Where does Bo live?", "Oslo")]
CODERS = {
    "plain": lambda: encoder(),
    "template": lambda: Encoder(tokenizer(), max_length=128, template="Question: {prompt}\nAnswer:"),
    "bos": lambda: Encoder(bos_tokenizer(), max_length=128),
    "chat": lambda: Encoder(chat_tokenizer(), max_length=128),
}


@pytest.mark.parametrize("place", ["suffix", "prefix"])
@pytest.mark.parametrize("coder", CODERS)
def test_what_survives_is_what_can_be_typed(coder: str, place: Any) -> None:
    strings = Strings(CODERS[coder](), PAIRS[:1], place, 4, seed=0)
    random = torch.Generator().manual_seed(0)
    drawn = strings.allowed[torch.randint(len(strings.allowed), (150, 4), generator=random)]
    survived = strings.surviving(drawn)
    assert survived.tolist() == [strings.can_be_typed(row) for row in drawn.tolist()]
    assert strings._frame is not None, "one call of the tokenizer for all of them"
    assert 0 < int(survived.sum()) < 150
    for row in drawn[survived].tolist():
        typed = strings.encoder.question(Beside(strings.text(row), place)(PAIRS[0][0]), PAIRS[0][1])
        (slot,) = strings.slots
        assert typed.ids[len(slot.before) :][:4] == tuple(row)
        assert typed.labelled_from == slot.filled(row).labelled_from


def test_without_a_frame_the_encoder_itself_is_asked() -> None:
    strings = Strings(encoder(), PAIRS, "suffix", 3, seed=0)
    random = torch.Generator().manual_seed(0)
    drawn = strings.allowed[torch.randint(len(strings.allowed), (40, 3), generator=random)]
    framed = strings.surviving(drawn)
    strings.__dict__["_frame"] = None
    assert strings.surviving(drawn).tolist() == framed.tolist()


@pytest.mark.parametrize("place", ["suffix", "prefix"])
def test_the_slots_are_the_questions_with_the_first_string(place: Any) -> None:
    strings = Strings(encoder(), PAIRS, place, 5, seed=1)
    assert len(set(strings.first)) == 1 and len(strings.first) == 5
    for slot, (prompt, answer) in zip(strings.slots, PAIRS, strict=True):
        whole = encoder().question(Beside(strings.text(strings.first), place)(prompt), answer)
        assert slot.filled(strings.first) == whole
        assert (slot.rest == 0) == (place == "suffix") and bool(slot.before) == (place == "suffix")


def test_tokens_that_merge_are_told_apart_from_those_that_stay() -> None:
    strings = Strings(encoder(), PAIRS, "suffix", 2, seed=0)
    code = strings.encoder.tokenizer
    whole = code.encode(" the", add_special_tokens=False)
    parts = [code.convert_tokens_to_ids(piece) for piece in ("Ġ", "t")]
    assert len(whole) == 1 and strings.text(parts) == " t" and not strings.can_be_typed(parts)


def test_special_and_unprintable_tokens_are_not_allowed() -> None:
    strings = Strings(Encoder(chat_tokenizer(), max_length=128), PAIRS, "suffix", 2, seed=0)
    code = strings.encoder.tokenizer
    allowed = set(strings.allowed.tolist())
    assert not allowed & {*code.all_special_ids, *code.added_tokens_decoder}
    assert all(code.decode([token]).isascii() for token in allowed)


def test_where_no_string_can_be_typed_nothing_is_searched() -> None:
    with pytest.raises(NotMeasured, match="no token was found that stays 10 tokens when it is typed 10 times"):
        Strings(encoder(window=12), PAIRS, "suffix", 10, seed=0)
