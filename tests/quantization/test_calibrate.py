"""Calibration text: the stream by hand, the draw, and text that says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from letheon.data.records import read_records
from letheon.errors import BadInput
from letheon.quantization.calibrate import Calibration, make_calibration
from tests.toys import tokenizer

TEXTS = ["Ada lives in a town by the sea.", "The river is long.", "Who plays the flute?"]


def made(folder: Path, lines: list[str], **settings: Any) -> Calibration:
    path = folder / "text.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    wanted = {"sequences": 4, "length": 8, "seed": 0, **settings}
    return make_calibration(read_records(path, role="calibration"), tokenizer(), **wanted)


def as_texts(texts: list[str]) -> list[str]:
    return [f'{{"text": "{text}"}}' for text in texts]


def test_records_follow_one_another_and_each_is_closed(tmp_path: Path) -> None:
    lines = [*as_texts(TEXTS), '{"prompt": "Who is it?", "answer": " Ada"}']
    stream: list[int] = []
    for text in [*TEXTS, "Who is it? Ada"]:
        stream += [*tokenizer()(text, add_special_tokens=False)["input_ids"], tokenizer().eos_token_id]
    found = made(tmp_path, lines, sequences=1000, length=5)
    assert found.ids.shape == (len(stream) // 5, 5)
    assert found.ids.flatten().tolist() == stream[: found.tokens]
    assert "sequences of 5 tokens, not the 1000 that were asked for" in found.warnings[0]


def test_of_much_text_a_draw_is_taken_in_the_order_of_the_text(tmp_path: Path) -> None:
    lines = as_texts([f"{text} {number}" for number in range(40) for text in TEXTS])
    whole = [row.tolist() for row in made(tmp_path, lines, sequences=10_000, length=24).ids]
    one, same, other = (made(tmp_path, lines, sequences=12, length=24, seed=seed) for seed in (1, 1, 2))
    places = [whole.index(row.tolist()) for row in one.ids]
    assert places == sorted(set(places)) and len(places) == 12 and not one.warnings
    assert one.ids.equal(same.ids) and not one.ids.equal(other.ids)


@pytest.mark.parametrize(
    ("texts", "settings", "said"),
    [
        (
            ["a"],
            {"length": 50},
            r"calibration set .*text\.jsonl: \d+ tokens, fewer than one sequence of 50\. Give more",
        ),
        (TEXTS, {"length": 1}, "sequence_length must be 2 or more, got 1"),
        (TEXTS, {"sequences": 0}, "sequences must be 1 or more, got 0"),
    ],
)
def test_text_that_is_too_little(tmp_path: Path, texts: list[str], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        made(tmp_path, as_texts(texts), **settings)


def test_one_token_over_and_over_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letheon.quantization.calibrate._tokens", lambda record, tokenizer: [7] * 20)
    with pytest.raises(BadInput, match="one token over and over says nothing"):
        made(tmp_path, as_texts(TEXTS))
