"""What was said is kept as it comes, and asked for once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from letheon.audits.answers import WHO, Answers, answers_of
from letheon.errors import BadInput, CannotFinish
from letheon.runs.ledger import ANSWERS_NAME


def counting(most: int = 100, stop_after: int = 1000) -> Any:
    asked: list[tuple[str, int, float]] = []

    def model(messages: Any, n: int, temperature: float) -> Sequence[str]:
        if len(asked) == stop_after:
            raise CannotFinish("gone")
        asked.append((messages[0]["content"], n, temperature))
        return [f"{len(asked)}.{number}" for number in range(min(n, most))]

    model.asked = asked  # type: ignore[attr-defined]
    return model


def test_fewer_answers_than_wanted_are_asked_for_again_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    model, came = counting(most=2), []
    answers = Answers(tmp_path / ANSWERS_NAME, model, came.append)
    assert answers.to("Q", n=5, temperature=1.0) == ["1.0", "1.1", "2.0", "2.1", "3.0"]
    assert [n for _, n, _ in model.asked] == [5, 3, 1] and came == [2, 2, 1]
    assert answers.to("Q", n=3, temperature=1.0) == ["1.0", "1.1", "2.0"] and len(model.asked) == 3
    assert answers.to("Q", n=1, temperature=0.5) == ["4.0"], "another temperature is another question"


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = Answers(tmp_path / ANSWERS_NAME, counting(most=2, stop_after=2))
    with pytest.raises(CannotFinish, match="gone"):
        first.to("Q", n=5, temperature=1.0)
    with open(tmp_path / ANSWERS_NAME, "ab") as file:
        file.write(b'{"question": "torn')
    model = counting()
    again = Answers(tmp_path / ANSWERS_NAME, model)
    assert again.have("Q", 1.0) == 4
    assert again.to("Q", n=5, temperature=1.0) == ["1.0", "1.1", "2.0", "2.1", "1.0"]
    assert model.asked == [("Q", 1, 1.0)]
    lines = [json.loads(line) for line in (tmp_path / ANSWERS_NAME).read_text().splitlines()]
    assert [line["given"] for line in lines] == [["1.0", "1.1"], ["2.0", "2.1"], ["1.0"]]
    assert {(line["prompt"], line["temperature"]) for line in lines} == {("Q", 1.0)}


@pytest.mark.parametrize(
    ("given", "shown"), [([], "a list of 0"), (["a", "b", "c"], "a list of 3"), ("ab", "str"), ([1], "a list of 1")]
)
def test_what_is_no_list_of_texts_is_refused(given: Any, shown: str, tmp_path: Path) -> None:
    answers = Answers(tmp_path / ANSWERS_NAME, lambda messages, n, temperature: given)
    with pytest.raises(CannotFinish, match=f"the model gave {shown} where 1 to 2 texts were asked for"):
        answers.to("Q", n=2, temperature=1.0)
    assert not (tmp_path / ANSWERS_NAME).exists()


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    who = {"endpoint": "https://x/v1", "model": "a"}
    with (
        answers_of(who, counting(), tmp_path, arrived=lambda count: None),
        pytest.raises(BadInput, match="in use"),
        answers_of(who, counting(), tmp_path, arrived=lambda count: None),
    ):
        pass
    other = {**who, "model": "b"}
    with (
        pytest.raises(BadInput, match=r"holds answers of another: model 'a', now 'b'. Give another --out"),
        answers_of(other, counting(), tmp_path, arrived=lambda count: None),
    ):
        pass
    (tmp_path / WHO).write_text("[")
    with pytest.raises(BadInput, match="is not what letheon ask writes"):
        answers_of(who, counting(), tmp_path, arrived=lambda count: None).__enter__()


def test_a_line_that_is_no_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / ANSWERS_NAME).write_text('{"question": "a", "given": ["x"]}\n{"question": 1}\n')
    with pytest.raises(BadInput, match=r"answers.jsonl, line 2: not an answer of letheon ask"):
        Answers(tmp_path / ANSWERS_NAME, counting())
