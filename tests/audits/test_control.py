"""Which control there is, and invented names that nobody bears."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from letheon.audits.control import choose_control, lookalike_items, lookalike_names
from letheon.data.records import DataFile, Record

NAMES = ("Mara Quill", "Tobin Ashgrove", "Lena Vossberg")


def question(line: int, unit: str, prompt: str, answer: str = "Lindgard", **more: Any) -> Record:
    return Record(line=line, unit=unit, fact=f"{unit}/{line}", prompt=prompt, answer=answer, **more)


def data(role: str, *records: Record) -> DataFile:
    return DataFile(Path(f"{role}.jsonl"), role, records, unit_is_line=False)


def forget_set() -> DataFile:
    return data(
        "forget", *(question(line, name, f"Where does {name} work?") for line, name in enumerate(NAMES, start=1))
    )


def invented_in(forget: DataFile, *others: DataFile, seed: int = 0) -> list[tuple[str, str, str, str]]:
    names = lookalike_names(forget, others, seed=seed)
    return lookalike_items([(f"forget/{record.line}", record, record.prompt) for record in forget.questions], names)


@pytest.mark.parametrize(
    ("reference", "holdout", "lookalikes", "kind"),
    [
        (True, 50, 9, "reference"),
        (True, 0, 0, "reference"),
        (False, 3, 9, "holdout"),
        (False, 2, 9, "lookalike"),
        (False, 0, 0, "lookalike"),
    ],
)
def test_the_first_control_that_there_is(reference: bool, holdout: int, lookalikes: int, kind: str) -> None:
    found = choose_control(has_reference=reference, has_shipped=False, holdout_units=holdout, lookalikes=lookalikes)
    assert found.kind == kind
    if kind == "holdout":
        assert found.sentence.startswith("3 units that were never trained on")
    if kind == "lookalike":
        assert found.sentence.startswith(f"{lookalikes} of the same questions" if lookalikes else "none:")


def test_the_sentence_says_what_the_shipped_folder_is_compared_with() -> None:
    plain, shipped = (
        choose_control(has_reference=True, has_shipped=ships, holdout_units=0, lookalikes=0).sentence
        for ships in (False, True)
    )
    assert "ships" not in plain and shipped.startswith(plain) and "as it is" in shipped


def test_an_invented_name_stands_in_no_input() -> None:
    """Not one of its words, in any case, anywhere: not even as a wrong answer, a choice, an alias or a fact."""
    forget = forget_set()
    probe = invented_in(forget)
    words = [word for _, _, prompt, _ in probe for word in re.findall(r"\w+", prompt)[2:-1]]
    assert len(words) == 6
    # What was invented now occurs in the data, each in another field: other names must be found.
    where = ["text", "wrong", "choices", "aliases", "paraphrase", "fact"]
    records = []
    for line, (word, field) in enumerate(zip(words, where, strict=True), start=10):
        if field == "text":
            records.append(Record(line=line, unit="u", fact="f", text=f"so {word.upper()} said"))
        elif field == "fact":
            records.append(Record(line=line, unit="u", fact=f"{word}/x", text="nothing"))
        else:
            records.append(question(line, "u", "What?", **{field: (word.lower(),)}))
    others = (data("retain", *records[:3]), data("holdout", *records[3:]))
    again = invented_in(forget, *others)
    found = {word.casefold() for _, _, prompt, _ in again for word in re.findall(r"\w+", prompt)[2:-1]}
    assert not found & {word.casefold() for word in words}
    known = {word.casefold() for name in NAMES for word in name.split()}
    assert not found & known


def test_only_the_name_is_replaced_and_the_answer_asked_for_stays() -> None:
    for (item, unit, prompt, answer), name in zip(invented_in(forget_set()), NAMES, strict=True):
        assert item.startswith("lookalike/forget/") and unit == name and answer == "Lindgard"
        assert re.fullmatch(r"Where does [A-Z]\w+ [A-Z]\w+ work\?", prompt) and name not in prompt


def test_one_person_has_one_invented_name_in_all_wordings() -> None:
    forget = data(
        "forget",
        question(1, NAMES[0], f"Who employs {NAMES[0]}?", paraphrase=(f"{NAMES[0]} works at",)),
        question(2, NAMES[0], f"Does {NAMES[0]}'s firm pay {NAMES[0]}?"),
        question(3, NAMES[1], f"Who employs {NAMES[1]}?"),
    )
    names = lookalike_names(forget, [], seed=0)
    (_, _, first, _), (_, _, second, _), (_, _, third, _) = invented_in(forget)
    name = first.removeprefix("Who employs ").removesuffix("?")
    assert second == f"Does {name}'s firm pay {name}?" and name not in third
    assert names.swap(forget.records[0], forget.records[0].paraphrase[0]) == f"{name} works at"


def test_names_depend_on_the_seed_and_the_unit_alone() -> None:
    forget = forget_set()
    assert invented_in(forget) == invented_in(forget)
    assert invented_in(forget) != invented_in(forget, seed=1)
    turned = data("forget", *reversed(forget.records))
    assert sorted(invented_in(turned)) == sorted(invented_in(forget))


def test_a_name_inside_a_longer_word_is_no_name() -> None:
    forget = data("forget", question(1, "Ann", "Where does Joanna live?"), question(2, "Ann", "Where does Ann live?"))
    (only,) = invented_in(forget)
    assert only[0] == "lookalike/forget/2"
    assert invented_in(data("forget", question(1, "Ann", "Does Joanna know Ann?")))[0][2].startswith(
        "Does Joanna know "
    )


def test_an_alias_is_a_name_too() -> None:
    forget = data("forget", question(1, "person 7", "Where does Mara Quill work?", aliases=("Mara Quill",)))
    ((_, unit, prompt, _),) = invented_in(forget)
    assert unit == "person 7" and "Mara" not in prompt and "Quill" not in prompt


def test_a_question_that_names_nobody_has_no_look_alike() -> None:
    forget = data("forget", question(1, "Mara Quill", "What is the capital?"), question(2, "line 2", "Who?"))
    assert invented_in(forget) == []


def test_a_name_without_letters_cannot_be_invented_and_is_left_out() -> None:
    """Else the control would be the very question it should be compared with."""
    forget = data("forget", question(1, "42", "Who is 42?"), question(2, "Mara Quill", "Who is Mara Quill?"))
    assert [item for item, _, _, _ in invented_in(forget)] == ["lookalike/forget/2"]
