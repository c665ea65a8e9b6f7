"""What so few people, or so few different answers, can show is told before anything is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy.stats import beta

from letheon.audits.inputs import compare_data
from letheon.audits.scope import few_warning, guess_warning
from letheon.data.records import DataFile, Record


def forget(units: int, answers: list[str] | None = None) -> DataFile:
    answers = answers or [f"Town {at}" for at in range(units)]
    records = tuple(
        Record(at + 1, f"Person {at % units}", f"Person {at % units}/town", f"Where does Person {at} live?", answer)
        for at, answer in enumerate(answers)
    )
    return DataFile(Path("f.jsonl"), "forget", records, unit_is_line=False)


@pytest.mark.parametrize("units", [1, 8, 19])
def test_few_units_are_told_with_the_exact_width_of_nothing(units: int) -> None:
    said = few_warning(forget(units))
    assert f"forget set: {units} units, fewer than 20" in said
    assert f"still reaches {beta.ppf(0.975, 1, units):.2f}" in said  # Clopper and Pearson, 0 of n


def test_twenty_units_are_not_told() -> None:
    assert few_warning(forget(20)) == ""


def test_one_answer_for_many_questions_is_told_by_its_share_and_not_by_name() -> None:
    said = guess_warning(forget(20, ["Secretville"] * 5 + [f"Town {at}" for at in range(15)]))
    assert "one answer is right for 25% of the questions" in said and "ecretville" not in said
    assert guess_warning(forget(20, ["Secretville"] * 4 + [f"Town {at}" for at in range(16)])) == ""
    assert "100%" in guess_warning(forget(2, ["yes", " Yes "]))
    assert guess_warning(forget(1)) == "", "of one question nothing can be said"


def test_both_are_told_by_an_audit() -> None:
    found = compare_data({"forget": forget(8, ["yes"] * 8)})
    assert [next(word for word in ("fewer", "right") if word in one) for one in found.warnings] == ["fewer", "right"]
    assert compare_data({"forget": forget(30)}).warnings == ()
