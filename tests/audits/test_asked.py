"""Which items are asked: a protocol's limits, units kept, held-out wordings apart from the trained ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from letheon.audits.asked import Asked, kinds_of, make_sets, questions_about
from letheon.data.records import DataFile, Record
from letheon.errors import BadInput
from tests.toys import encoder, question, text


def data(role: str, *records: Record) -> DataFile:
    return DataFile(Path(f"{role}.jsonl"), role, records, unit_is_line=False)


def people(count: int, each: int, *, first: int = 1) -> list[Record]:
    return [
        question(f"Q{k} of person {unit}?", "Bru", line=first + unit * each + k, unit=f"p{unit}")
        for unit in range(count)
        for k in range(each)
    ]


def asked_of(records: list[Record], limit: int) -> Asked:
    return make_sets({"retain": data("retain", *records)}, encoder=encoder(), limits={"retain": limit}, only_units={})[
        "retain_questions"
    ]


def test_questions_held_out_wordings_and_texts_stand_in_sets_of_their_own() -> None:
    record = Record(
        line=4, unit="a", fact="a/x", prompt="Who is A?", answer="Dax", paraphrase=("Tell me of A:", "A is")
    )
    sets = make_sets(
        {"forget": data("forget", record, text("A ran home.", line=5, unit="a"))},
        encoder=encoder(),
        limits={},
        only_units={},
    )
    assert sets["forget_questions"].prompts == ("Who is A?",) and sets["forget_questions"].items == ("forget/4",)
    assert sets["forget_held_out"].prompts == ("Tell me of A:", "A is")
    assert sets["forget_held_out"].items == ("forget/4/paraphrase 1", "forget/4/paraphrase 2")
    assert sets["forget_held_out"].answers == ("Dax", "Dax") and sets["forget_held_out"].units == ("a", "a")
    assert sets["forget_texts"].answers == ("A ran home.",) and sets["forget_texts"].examples[0].labelled_from == 1
    for name in ("forget_questions", "forget_held_out"):
        for prompt, example in zip(sets[name].prompts, sets[name].examples, strict=True):
            assert encoder().tokenizer.decode(example.prompt_ids) == prompt
    assert len(sets["holdout_questions"]) == 0


@pytest.mark.parametrize("limit", [12, 13, 30, 47, 59, 60, 100])
def test_a_limit_keeps_every_unit_and_takes_of_all_alike(limit: int) -> None:
    records = people(12, 5)
    asked = asked_of(records, limit)
    assert len(asked) == min(limit, 60)
    counts = Counter(asked.units)
    assert set(counts) == {f"p{unit}" for unit in range(12)}
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len(set(asked.items)) == len(asked)
    lines = [int(item.split("/")[1]) for item in asked.items]
    assert lines == sorted(lines)
    assert asked.items == asked_of(records, limit).items


def test_what_is_taken_has_the_wordings_of_the_whole() -> None:
    """Wordings come in turn in a file: every fourth line alone would ask about all facts in one wording."""
    asked = asked_of(people(40, 20), 200)
    wordings = Counter((int(item.split("/")[1]) - 1) % 4 for item in asked.items)
    assert all(abs(wordings[wording] - 50) <= 15 for wording in range(4)), wordings


def test_units_of_different_sizes_are_all_kept() -> None:
    records = [*people(1, 50), *[question("Who?", "Bru", line=60 + k, unit=f"small {k}") for k in range(5)]]
    counts = Counter(asked_of(records, 10).units)
    assert counts == {"p0": 5, **{f"small {k}": 1 for k in range(5)}}


def test_only_some_units_may_be_asked() -> None:
    sets = make_sets(
        {
            "holdout": data("holdout", *people(6, 2), text("x y", line=90, unit="p0")),
            "retain": data("retain", *people(2, 1)),
        },
        encoder=encoder(),
        limits={},
        only_units={"holdout": {"p1", "p4"}},
    )
    assert set(sets["holdout_questions"].units) == {"p1", "p4"} and len(sets["holdout_texts"]) == 0
    assert set(sets["retain_questions"].units) == {"p0", "p1"}


def test_all_that_cannot_be_encoded_is_told_at_once_with_its_line() -> None:
    long = "bru " * 60
    records = [question("Who?", long, line=3), question("Who?", "Bru", line=4), question("What?", long, line=9)]
    with pytest.raises(BadInput) as caught:
        make_sets({"forget": data("forget", *records)}, encoder=encoder(40), limits={}, only_units={})
    assert len(caught.value.problems) == 2
    for problem, line in zip(caught.value.problems, (3, 9), strict=True):
        assert problem.startswith(f"forget set forget.jsonl, line {line}: answer 'bru bru")


def test_questions_that_stand_in_no_file() -> None:
    asked = questions_about("lookalike_questions", [("lookalike/1", "u", "Who is Zed?", "Bru")], encoder())
    assert (asked.name, asked.items, asked.units, asked.prompts, asked.answers) == (
        "lookalike_questions", ("lookalike/1",), ("u",), ("Who is Zed?",), ("Bru",),
    )  # fmt: skip
    assert asked.examples == (encoder().question("Who is Zed?", "Bru"),)


# --- what only some probes ask


def with_wrong(*records: Record) -> list[Record]:
    return [replace(record, wrong=("Dax", "Fel")) for record in records]


def test_sets_of_wrong_answers_are_made_when_a_probe_asks_them_and_not_before() -> None:
    records = [*with_wrong(*people(2, 1)), question("Who?", "Bru", line=9), text("A ran HOME.", line=10)]
    files = {"forget": data("forget", *records)}
    plain, more = (
        make_sets(files, encoder=encoder(), limits={}, only_units={}, also=also)
        for also in ((), ("answers", "letters", "lower_case", "moments"))
    )
    assert set(plain.sets) == {"forget_questions", "forget_held_out", "forget_texts"}
    assert {name: one.items for name, one in plain.sets.items()} == {name: more[name].items for name in plain.sets}
    assert more["forget_answers"].items == tuple(f"forget/{line}/answer {n}" for line in (1, 2) for n in range(3))
    assert more["forget_answers"].answers == ("Bru", "Dax", "Fel") * 2
    assert more["forget_answers"].units == ("p0",) * 3 + ("p1",) * 3
    assert more["forget_letters"].items == tuple(f"forget/{line}/shift {n}" for line in (1, 2) for n in range(3))
    assert sorted(more["forget_letters"].answers[:3]) == ["A", "B", "C"]
    assert more["forget_lower_case"].items == more["forget_texts"].items
    assert more["forget_lower_case"].answers == ("a ran home.",)
    assert more["forget_texts"].with_moments and not plain["forget_texts"].with_moments
    assert not more["forget_questions"].with_moments
    for prompt, example in zip(more["forget_letters"].prompts, more["forget_letters"].examples, strict=True):
        assert encoder().tokenizer.decode(example.prompt_ids) == prompt


def test_of_retained_texts_only_what_usefulness_needs_is_made() -> None:
    made = make_sets(
        {"retain": data("retain", text("A ran."))}, encoder=encoder(), limits={}, only_units={}, also=("lower_case", "moments")
    )  # fmt: skip
    assert "retain_lower_case" not in made.sets and not made["retain_texts"].with_moments


def test_a_limit_counts_questions_and_not_their_answers() -> None:
    records = with_wrong(*people(4, 3))
    made = make_sets(
        {"forget": data("forget", *records)}, encoder=encoder(), limits={"forget": 5}, only_units={}, also=("answers",)
    )
    assert len(made["forget_answers"]) == 15 and set(made["forget_answers"].units) == {"p0", "p1", "p2", "p3"}


def test_answers_that_do_not_fit_together_are_told_with_their_lines_when_they_are_asked() -> None:
    records = [replace(one, wrong=("Bru",)) for one in people(2, 1)]
    files = {"forget": data("forget", *records)}
    make_sets(files, encoder=encoder(), limits={}, only_units={})
    with pytest.raises(BadInput) as caught:
        make_sets(files, encoder=encoder(), limits={}, only_units={}, also=("answers", "letters"))
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        "forget set forget.jsonl, line 1",
        "forget set forget.jsonl, line 2",
    ]


def test_a_wish_that_nobody_grants_is_refused() -> None:
    """A slip in a probe of one's own would else be a set that is never there."""
    with pytest.raises(BadInput, match=r"'letter' is not something that a probe can ask .* Did you mean 'letters'"):
        make_sets(
            {"forget": data("forget", *people(1, 1))}, encoder=encoder(), limits={}, only_units={}, also=("letter",)
        )


def test_records_by_what_a_column_is_about() -> None:
    offered = replace(question("Who?", "Bru", line=1), choices=("Bru", "Dax"))
    bare, words = question("Who?", "Bru", line=2), text("A ran.", line=3)
    found = kinds_of(data("forget", offered, bare, words))
    assert found == {"questions": [offered, bare], "texts": [words], "wrong answers": [offered]}
