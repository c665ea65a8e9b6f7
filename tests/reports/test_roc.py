from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest

from letheon.errors import NotMeasured
from letheon.numerics.familiarity import tpr_at_fpr
from letheon.numerics.scores import auc
from letheon.reports.roc import curve, curves_of, roc, roc_rows
from letheon.reports.tables import find
from letheon.reports.wording import number, percent


def scores(seed: int, members: int, strangers: int, digits: int) -> tuple[list[float], list[int]]:
    rng = random.Random(seed)
    side = [int(rng.random() < 0.5) for _ in range(members + strangers - 2)] + [0, 1]
    return [round(rng.gauss(0.7 * one, 1), digits) for one in side], side


@pytest.mark.parametrize(("seed", "size", "digits"), [(0, 30, 1), (1, 60, 0), (2, 250, 2), (3, 2, 1), (4, 120, 6)])
def test_points_are_a_slow_count_and_the_area_is_the_auc(seed: int, size: int, digits: int) -> None:
    values, side = scores(seed, size, size, digits)
    one = curve(values, side)
    expected = []
    for threshold in sorted(set(values), reverse=True):
        flagged = [who for value, who in zip(values, side, strict=True) if value >= threshold]
        expected.append((threshold, flagged.count(0), flagged.count(1)))
    assert list(one.points) == expected
    assert one.rates[0] == (0, 0) and one.rates[-1] == (1, 1)
    assert one.area == pytest.approx(auc(one.members, one.strangers), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_the_drawn_point_is_the_rate_at_few_false_positives(seed: int, rate: float) -> None:
    values, side = scores(seed, 90, 90, seed % 3)
    one = curve(values, side)
    false, true = one.at(rate)
    assert false <= rate and (false, true) in one.rates
    assert true == pytest.approx(tpr_at_fpr(one.members, one.strangers, rate), abs=1e-12)
    best = max(
        sum(member >= cut for member in one.members) / len(one.members)
        for cut in [*values, 1e9]
        if sum(stranger >= cut for stranger in one.strangers) <= rate * len(one.strangers)
    )
    assert true == pytest.approx(best)


def test_equal_scores_are_flagged_together() -> None:
    one = curve([1.0] * 6, [1, 1, 0, 0, 0, 1])
    assert one.points == ((1.0, 3, 3),) and one.area == 0.5 and one.at(0.05) == (0.0, 0.0)


def test_one_side_alone_is_no_curve() -> None:
    with pytest.raises(NotMeasured, match="0 members and 2 strangers"):
        curve([1.0, 2.0], [0, 0])


def test_the_words_are_the_numbers(fakes: ModuleType) -> None:
    audit = fakes.with_scores(fakes.make_audit(), members=60, strangers=150)
    (figure,) = roc(audit, "k")
    for column, tables in curves_of(audit).items():
        cell, mine = find(audit, column, "as_is"), tables["subject"]
        assert mine.area == pytest.approx(cell["value"], abs=1e-12), "the area under the drawn points is the cell's AUC"
        assert f"AUC {number(cell['value'])} (95 % interval [{number(cell['lower'])}, " in figure.text_alternative
        for rate in (0.01, 0.05):
            found = percent(tpr_at_fpr(mine.members, mine.strangers, rate))
            assert f"{found} of the members found at {percent(rate)} false positives" in figure.text_alternative
        assert f"the original's AUC {number(tables['original'].area)}" in figure.text_alternative
        assert f"AUC {number(cell['value'])} [" in figure.svg
    assert "60 members and 150 strangers" in figure.text_alternative and "too few" not in figure.text_alternative


def test_few_strangers_are_said(fakes: ModuleType) -> None:
    (figure,) = roc(fakes.with_scores(fakes.make_audit(), strangers=30), "k")
    assert "found with no false positive (30 strangers are too few for 1 %)" in figure.text_alternative
    assert "found at 5 % false positives" in figure.text_alternative
    assert figure.caption.endswith("; with fewer than 100 strangers 1 % means no false positive.")
    (fewer,) = roc(fakes.with_scores(fakes.make_audit(), strangers=19), "k")
    assert "with no false positive (19 strangers are too few for 5 %)" in fewer.text_alternative
    assert fewer.caption.endswith("; with fewer than 20 strangers 5 % means no false positive.")


@pytest.mark.parametrize(("shift", "said"), [(-4.0, "over-forgotten"), (4.0, "still more familiar than strangers")])
def test_an_auc_far_from_half_is_read(fakes: ModuleType, shift: float, said: str) -> None:
    audit = fakes.with_scores(fakes.make_audit(), shift=shift)
    (figure,) = roc(audit, "k")
    assert figure.text_alternative.count(said) == 2
    (plain,) = roc(fakes.with_scores(fakes.make_audit(), shift=0.0, members=80, strangers=80), "k")
    assert said not in plain.text_alternative


def test_a_control_of_strangers_against_strangers_is_the_diagonal_alone(fakes: ModuleType) -> None:
    audit = fakes.with_scores(fakes.make_audit())
    for column in ("membership_texts", "membership_questions"):
        audit["scores"]["control"]["as_is"][column] = {"constant": 0.5}
    assert {table for tables in curves_of(audit).values() for table in tables} == {"subject", "original"}
    (figure,) = roc(audit, "k")
    assert "the control's AUC" not in figure.text_alternative


def test_what_was_not_measured_draws_nothing(fakes: ModuleType) -> None:
    audit = fakes.with_scores(fakes.make_audit())
    audit["scores"]["subject"]["as_is"]["membership_texts"] = {"not_measured": "no holdout"}
    assert list(curves_of(audit)) == ["membership_questions"]
    assert roc(fakes.make_audit(), "k") == []


def test_rows_hold_every_threshold(fakes: ModuleType) -> None:
    audit: Any = fakes.with_scores(fakes.make_audit())
    rows = [row for row in roc_rows(audit) if (row["column"], row["model"]) == ("membership_texts", "subject")]
    values = audit["scores"]["subject"]["as_is"]["membership_texts"]["values"]
    assert [row["threshold"] for row in rows] == sorted(set(values), reverse=True)
    assert rows[-1]["false_positives"] == rows[-1]["strangers"] == 30
    assert rows[-1]["true_positive_rate"] == 1.0
