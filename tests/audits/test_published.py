"""Files of published benchmarks: both forms give the same rows, and every fault has its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from letheon.audits.published import find, read_rows
from letheon.errors import BadInput
from tests.audits.benchmarks.data import write

ROWS = [{"q": "Who?", "w": ["a", "b"], "n": 1, "more": None}, {"q": "Where?", "w": ["c"], "n": 0}]


def test_lines_and_an_array_are_the_same_rows(tmp_path: Path) -> None:
    fields = {"q": "text", "w": "texts", "n": "number"}
    lines, array = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.json", ROWS, as_array=True)
    found = read_rows(lines, fields)  # type: ignore[arg-type]
    assert found.rows == read_rows(array, fields).rows  # type: ignore[arg-type]
    assert found.rows == ({"q": "Who?", "w": ("a", "b"), "n": 1}, {"q": "Where?", "w": ("c",), "n": 0})
    assert [found.item(at) for at in range(2)] == ["a/0", "a/1"]


def test_bare_texts_are_rows(tmp_path: Path) -> None:
    found = read_rows(write(tmp_path / "t.json", ["one", "two"], as_array=True), {"text": "text"})
    assert [row["text"] for row in found.rows] == ["one", "two"]


def test_all_faults_are_told_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text('{"qestion": "Who?", "w": ["a"]}\n\n{"q": " ", "w": ["a", 3]}\nno\n[1]\n{"q": "x", "w": []}\n')
    with pytest.raises(BadInput) as raised:
        read_rows(path, {"q": "text", "w": "texts"})
    told = "\n".join(raised.value.problems)
    for said in (
        f"{path}, line 1: no 'q' field",
        f"{path}, line 3: field 'q' is ' ', not a text that is not empty",
        f"{path}, line 3: field 'w' is ['a', 3], not a list of texts",
        f"{path}, line 4: not JSON",
        f"{path}, line 5: holds list, not an object with 'q', 'w'",
        f"{path}, line 6: field 'w' is [], not a list",
    ):
        assert said in told
    assert len(raised.value.problems) == 6


@pytest.mark.parametrize(("text", "said"), [("", "holds no rows"), ("[{", "not JSON"), ("[]", "holds no rows")])
def test_a_file_without_rows_is_a_fault(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(text)
    with pytest.raises(BadInput, match=said):
        read_rows(tmp_path / "e.json", {"q": "text"})


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no forget01\.json and no forget01\.jsonl in it"):
        find(tmp_path, "forget01", what="TOFU data")
    with pytest.raises(BadInput, match="no such file"):
        read_rows(tmp_path / "no.json", {"q": "text"})
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot be read"):
        read_rows(tmp_path / "b.json", {"q": "text"})


def test_a_true_is_no_number_and_half_a_character_no_text(tmp_path: Path) -> None:
    path = tmp_path / "n.json"
    path.write_text('{"n": true, "q": "\\ud83d"}\n')
    with pytest.raises(BadInput) as raised:
        read_rows(path, {"n": "number", "q": "text"})
    assert len(raised.value.problems) == 2
