from __future__ import annotations

import doctest

import pytest

from letheon.reports import wording
from letheon.reports.wording import codes_in_words, interval, is_number, moment, number, percent, signed


def test_the_examples_run() -> None:
    assert doctest.testmod(wording).failed == 0


@pytest.mark.parametrize("share", [1e-9, 1e-4, 0.009, 0.5, 0.991, 1 - 1e-4, 1 - 1e-9])
def test_a_share_between_the_ends_is_never_said_to_be_one(share: float) -> None:
    assert percent(share) not in ("0 %", "100 %", "0.0 %", "100.0 %")


@pytest.mark.parametrize(("share", "said"), [(0.0, "0 %"), (1.0, "100 %")])
def test_the_ends_are_said_plainly(share: float, said: str) -> None:
    assert percent(share) == said


@pytest.mark.parametrize(
    ("match", "said", "not_said"),
    [
        (1.0, "with equal scales this grid rounds the model back", "nearly"),
        (0.999, "with equal scales this grid rounds the model nearly back", "No code"),
        (0.98, "2 % of the codes differ", "back"),
        (0.3, "70 % of the codes differ", "back"),
    ],
)
def test_only_a_grid_that_keeps_the_codes_rounds_back(match: float, said: str, not_said: str) -> None:
    text = codes_in_words({"code_match": match, "shift_in_steps": 0.1})
    assert said in text and not_said not in text and "0.10 of a step" in text


def test_a_model_that_is_the_original_is_said_to_be_it() -> None:
    said = codes_in_words({"code_match": 1.0, "shift_in_steps": 0.0})
    assert said == "No code differs from the original’s, and no weight has moved."


def test_without_codes_or_steps_nothing_is_claimed_of_them() -> None:
    assert codes_in_words({"code_match": None}) == ""
    assert (
        codes_in_words({"code_match": 0.5, "shift_in_steps": None}) == "50 % of the codes differ from the original’s."
    )


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), True, "0.5"])
def test_what_is_no_finite_number_is_a_dash(value: object) -> None:
    assert not is_number(value) and number(value) == "–" and signed(value) == "–" and interval(0.1, value) == ""


def test_rounding_to_zero_leaves_no_sign() -> None:
    assert interval(-0.001, 0.001, is_signed=True) == "[0.00, 0.00]"


def test_a_time_keeps_its_zone() -> None:
    assert moment("2026-11-21T09:22:31.960+02:00") == "2026-11-21 09:22+02:00"
    assert moment(None) == "–"
